"""Blocks that reads have repaired are stored once there is a committer, and a failure to do so costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from nnfs.background.blockrepair import RepairedBlocks
from nnfs.errors import OutOfSpace
from nnfs.store.schema import Block

BLOCK = Block(1, 0, 9, 7, 0, 0, 5, 1, bytes(64))


class Commits:
    """Notes the blocks that are to be stored; `full` are those for which there is no room."""

    def __init__(self, *full: int) -> None:
        self.full, self.stored = full, list[tuple[int, bytes | None]]()

    async def amend(self, change: Callable[[Any], Any], size: int = 0, *, frees: int = 0) -> Any:
        [one] = change.keywords["swaps"]  # type: ignore[attr-defined]
        if one.number in self.full:
            raise OutOfSpace("full")
        assert size == len(one.data)
        self.stored.append((one.number, one.data))


async def test_what_was_repaired_before_there_was_a_committer_is_stored(caplog: pytest.LogCaptureFixture) -> None:
    under_test = RepairedBlocks()
    commits: Any = Commits(2)
    for number in (1, 2):
        under_test.put(number, BLOCK, b"payload")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(under_test.run, commits)
        await trio.testing.wait_all_tasks_blocked()
        assert commits.stored == [(1, b"payload")]
        assert "block 2 was repaired, but that is not stored: full" in caplog.text
        under_test.put(3, BLOCK, b"other")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert commits.stored[1:] == [(3, b"other")]


async def test_a_mount_that_is_read_only_keeps_nothing_in_the_queue() -> None:
    under_test = RepairedBlocks(read_only=True)
    commits: Any = Commits()
    under_test.put(1, BLOCK, b"payload")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(under_test.run, commits)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert commits.stored == []
