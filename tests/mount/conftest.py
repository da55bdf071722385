"""Fixtures of the tests of a mount."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other users may enter, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="nnfs-connection-") as name:
        os.chmod(name, 0o755)
        yield Path(name)
