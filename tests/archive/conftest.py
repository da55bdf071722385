"""A place for archives."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import work_dir


@pytest.fixture
def out() -> Iterator[Path]:
    """A directory that is not on the mount."""
    path = work_dir()
    yield path
    shutil.rmtree(path)
