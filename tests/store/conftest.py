"""Fixtures of the tests of LMDB's pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.store.kit import open_env


@pytest.fixture
def env(tmp_path: Path) -> Iterator[Any]:
    opened = open_env(tmp_path)
    yield opened
    opened.close()
