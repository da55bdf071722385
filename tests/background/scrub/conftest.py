"""Fixtures of the tests of scrub."""

from __future__ import annotations

import pytest

from nnfs.background import blockrepair, busy, scrub


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "REST_S", 0)
    monkeypatch.setattr(busy, "BUSY_S", 0)
    monkeypatch.setattr(scrub, "SAVE_S", 0)
    monkeypatch.setattr(blockrepair, "SEARCH_S", 60)  # of a search that finds at once, however busy the machine
