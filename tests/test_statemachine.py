"""The same operations on a tmpfs directory and on the mount, side by side: answers and whole trees must agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import FULL, Mount, Plain
from tests.sidebyside import side_by_side, walk


@pytest.mark.long
def test_side_by_side_with_tmpfs(mounted: Mount | Plain, shm: Path) -> None:
    side_by_side(mounted, shm, 300 if FULL else 40)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(30 if FULL else 4))
def test_random_walk(mounted: Mount | Plain, shm: Path, seed: int) -> None:
    walk(mounted, shm, seed)
