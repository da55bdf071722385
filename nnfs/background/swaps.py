"""Swaps of a task's payloads, committed together, and the marks of files that are done."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

from nnfs.background.encoder import ColdEncoder
from nnfs.background.flight import Flight, Ready
from nnfs.background.interfaces import Commits
from nnfs.codec.base import FIRST_COLD
from nnfs.errors import EnginesDisagree, OutOfSpace
from nnfs.fs import swapping

FLUSH_BYTES, FLUSH_S = 4 << 20, 10.0  # plain bytes, seconds: then swaps are committed
FLUSH_CHUNKS = 256


class Swaps:
    """Commits the swaps that tasks have ready. `changed` is told the files whose stored size has changed."""

    def __init__(self, commits: Commits, encoder: ColdEncoder, changed: Callable[[list[int]], None]) -> None:
        self._commits, self._encoder, self._changed = commits, encoder, changed
        self.saved = 0  # bytes, by this mount
        self.before = self.after = 0  # stored bytes of what was swapped

    async def flush(self, flight: Flight, *, force: bool = False) -> None:
        """Commit the swaps that are ready, and mark the files that are done."""
        many = flight.ready_bytes >= FLUSH_BYTES or len(flight.ready) >= FLUSH_CHUNKS
        if many and flight.ready:
            many = self._encoder.is_checked(flight.ready[0].proof)  # if it is not, nearly all wait for the reference
        if not (force or many or time.monotonic() - flight.flushed >= FLUSH_S):
            return
        flight.flushed = time.monotonic()
        ready = [] if isinstance(flight.error, EnginesDisagree) else flight.take(self._encoder.is_checked)
        if force:  # the task is over, and the reference has not checked these, or refutes them
            flight.drop(flight.ready)
            flight.ready.clear()
        if ready:
            try:
                await self._swap(flight, ready)
            except BaseException:
                flight.drop(ready)
                raise
        await self._settle(flight, waiting={one.swap.owner[0] for one in flight.ready})

    async def _swap(self, flight: Flight, ready: list[Ready]) -> None:
        """Commit swaps, except of blocks that are being written in part: a commit must not wait for a worker.

        While the swaps wait for their commit, a write to a part of a block is merged at once (`Bases.cooling`).
        """
        in_use = self._commits.bases.in_use()
        flight.drop(one for one in ready if one.swap.number in in_use)
        ready = [one for one in ready if one.swap.number not in in_use]
        if ready:
            with self._commits.bases.cooling({one.swap.number for one in ready}):
                await self._swap_now(flight, ready)

    async def _swap_now(self, flight: Flight, ready: list[Ready]) -> None:
        swaps = [one.swap for one in ready]
        size = sum(len(one.data or b"") for one in swaps)
        frees = sum(one.block.stored for one in ready if one.swap.data is not None)
        swap = functools.partial(swapping.swap, swaps=swaps, fingerprints=flight.models)
        try:
            changes = await self._commits.amend(swap, size, frees=frees)
        except OutOfSpace:
            if len(ready) == 1:
                raise
            for half in (ready[: len(ready) // 2], ready[len(ready) // 2 :]):  # less at once needs less room
                await self._swap_now(flight, half)
            return
        files: set[int] = set()
        for (one, block, _), change in zip(ready, changes, strict=True):
            if change is None:
                flight.failed.add(one.owner[0])  # it is not as it was, or its model is gone: the next pass looks again
            if change is None or one.data is None:
                continue
            files.add(one.owner[0])
            flight.changes[one.owner[0]] = flight.changes.get(one.owner[0], 0) + change
            flight.task.stored_before += block.stored
            flight.task.stored_after += len(one.data)
            flight.task.cold_chunks += one.codec >= FIRST_COLD
            self.before, self.after = self.before + block.stored, self.after + len(one.data)
            self.saved -= change
        self._changed(sorted(files))

    async def _settle(self, flight: Flight, waiting: set[int]) -> None:
        done = [ino for ino in flight.ends if flight.open.get(ino, 0) <= 0 and ino not in waiting]
        files = []
        for ino in done:
            piece = flight.ends.pop(ino)
            flight.open.pop(ino, None)
            growth = flight.changes.pop(ino, 0)
            rung = 0 if ino in flight.failed else piece.rung
            files.append(swapping.Settled(ino, piece.proof, piece.ctime, max(0, piece.stored + growth), rung))
        if files:
            digest, slow = self._encoder.digest(), self._encoder.slow
            await self._commits.amend(functools.partial(swapping.settle, files=files, digest=digest, slow=slow))
