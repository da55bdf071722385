"""Fixtures of the tests of fsck."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fs.kit import make_store


@pytest.fixture
def store(tmp_path: Path) -> Any:
    store = make_store(tmp_path / "store")
    yield store
    store.close()
