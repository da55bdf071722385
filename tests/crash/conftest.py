"""Fixtures of the crash tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.journal import build_shim


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled LD_PRELOAD library."""
    return build_shim(tmp_path_factory.mktemp("shim"))
