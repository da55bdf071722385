"""The state machine and its random walks once more, while everything turns cold and warm under them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.background.kit import Chaos, restless
from tests.conftest import why_no_mount
from tests.harness import FULL
from tests.sidebyside import side_by_side, walk

pytestmark = pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")


@pytest.fixture(scope="module")
def moving() -> Iterator[Chaos]:
    with restless() as mount:
        yield mount


@pytest.mark.long
@pytest.mark.skipif(not FULL, reason="few examples of few steps leave little to recompress")
def test_side_by_side_with_tmpfs(moving: Chaos, shm: Path) -> None:
    side_by_side(moving, shm, 100)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 120 if FULL else 103))
def test_random_walk(moving: Chaos, shm: Path, seed: int) -> None:
    walk(moving, shm, seed)
    assert moving.swaps > 50
