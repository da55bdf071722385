"""Warming: cold files are decoded ahead of reading, into copies on disk, or into memory where no copies are kept.

As much is decoded as the limit of these copies allows, and no copy of the same task is evicted for another one: blocks
whose copies are there already become the newest before the first new one is made. The files that do not fit are told.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from nnfs import codec
from nnfs.background.expectation import Way, expect, kind_of, weight
from nnfs.background.interfaces import Parts
from nnfs.background.tasks import Task
from nnfs.blockio.cold import BACKGROUND, READ
from nnfs.blockio.thawcache import Thawed
from nnfs.codec.base import FIRST_COLD
from nnfs.errors import BlockDamaged, CodecUnavailable, ModelMissing, NnfsError, RecordDamaged, again, kept
from nnfs.fs.coldfiles import ColdFiles, Piece
from nnfs.store.blocks import load_block
from nnfs.store.env import Store
from nnfs.store.schema import Block

log = logging.getLogger(__name__)

WINDOW, IN_FLIGHT = 16 << 20, 400  # plain bytes and blocks that workers have in hand
LEAST = 8 << 10  # bytes that a block counts for in the window at least
WAIT_S = 1.0  # at most, until a task notices that it is cancelled
FAILURES = 8  # of workers in a row, then the task fails
LISTED = 1000  # files in an answer
DISK, MEMORY = "disk", "memory"
NO_ROOM = "the disk below has no room to spare for copies"

File = tuple[int, bytes]  # place of its root, path below that


@dataclass(slots=True)
class _Run:
    """The state of one task."""

    task: Task
    spent: int  # bytes of copies, by this task and those that it belongs to
    files: set[File] = field(default_factory=set)
    left: Counter[File] = field(default_factory=Counter)  # plain bytes that did not fit
    warm: int = 0  # chunks that were so already
    decoded: int = 0
    full: str = ""  # why nothing more is decoded
    renewed: set[int] = field(default_factory=set)  # blocks that were warm at the beginning
    flying: set[int] = field(default_factory=set)  # those with workers
    pending_bytes: int = 0  # plain, `LEAST` for each at least
    promised: int = 0  # plain bytes of these
    moved: trio.Event = field(default_factory=trio.Event)
    failures: int = 0  # of workers, in a row
    error: NnfsError | None = None


class Warming:
    """The work of `nnfs warm`. `costs()` are those of a worker's steps, for the time left."""

    def __init__(self, parts: Parts, costs: Callable[[], Mapping[str, float]]) -> None:
        self._store, self._reads, self._cold, self._costs = parts.store, parts.reads, parts.cold, costs
        self._looking, self._copying = trio.CapacityLimiter(1), trio.CapacityLimiter(1)

    async def run(self, task: Task, roots: Sequence[int], depth: int | None = None, spent: int = 0) -> None:
        """Decode the cold chunks of what is at and below inodes.

        `spent` are the bytes of copies that belong to the same, as told by an earlier task. Raises the error of workers
        that fail again and again.
        """
        run = _Run(task, spent)
        task.phase = "looking for cold chunks"
        async for piece in self._walk(task, roots, depth):
            await self._expect(run, piece)
        task.costs = self._costs
        if not task.total_chunks:
            task.note = "nothing there is cold"
        async with trio.open_nursery() as nursery:
            try:
                async for piece in self._walk(task, roots, depth):
                    for number, block in piece.blocks:
                        await self._take_up(run, (piece.root, piece.path), number, block, nursery)
                while run.flying:
                    await self._wait(run)
            except NnfsError as error:
                run.error = run.error or kept(error)
                nursery.cancel_scope.cancel()
        task.result = self._result(run)
        if run.error is not None:
            raise again(run.error)

    async def _walk(self, task: Task, roots: Sequence[int], depth: int | None) -> AsyncGenerator[Piece]:
        found = ColdFiles(self._store, roots, depth)
        while True:
            await task.checkpoint()
            pieces = await trio.to_thread.run_sync(found.next, limiter=self._looking)
            if pieces is None:
                return
            for piece in pieces:
                yield piece

    async def _expect(self, run: _Run, piece: Piece) -> None:
        """Count a piece, and have the copies of its blocks outlive all others."""
        run.files.add((piece.root, piece.path))
        for number, block in piece.blocks:
            run.task.total_chunks += 1
            run.task.total_bytes += block.plain
            if number in run.renewed:
                continue  # an equal chunk
            if size := await self._renewed(number):
                run.renewed.add(number)
                run.spent += size
            else:
                expect(run.task, block, thaw=True, codec=block.codec)

    @property
    def _copies(self) -> Thawed | None:
        """The copies on disk, None where none are kept: then decoded chunks are kept in memory."""
        thawed = self._reads.thawed
        return thawed if thawed is not None and thawed.limit else None

    @property
    def _limit(self) -> int:
        copies = self._copies
        return self._reads.cache.limit if copies is None else copies.limit

    async def _renewed(self, number: int) -> int:
        """Have a chunk that is kept outlive all others. Return the bytes that it takes, 0 if it is not kept."""
        copies = self._copies
        if copies is None:
            return self._reads.cache.renew(number)
        return await trio.to_thread.run_sync(copies.renew, number, limiter=self._copying) if number in copies else 0

    def _is_warm(self, number: int) -> bool:
        copies = self._copies
        return number in self._reads.cache if copies is None else number in copies

    async def _take_up(self, run: _Run, file: File, number: int, block: Block, nursery: trio.Nursery) -> None:
        """Have a chunk decoded, if it is not warm and there is room for it."""
        if number in run.flying or self._is_warm(number):
            run.warm += 1
            _count(run, block)
            if number not in run.renewed:
                run.task.left.drop(kind_of(block, thaw=True), weight(block))  # an equal chunk has been decoded
            return
        while run.flying and (self._is_over(run, block) or self._is_busy(run, block)) and not run.full:
            await self._wait(run)
        if self._is_over(run, block) and not run.full:
            run.full = f"the limit of {'the cache in memory' if self._copies is None else 'copies on disk'} is reached"
        if run.full:
            run.left[file] += block.plain
            run.task.left.drop(kind_of(block, thaw=True), weight(block))
            return
        run.flying.add(number)
        run.pending_bytes += max(LEAST, block.plain)
        run.promised += block.plain
        nursery.start_soon(self._one, run, file, number, block)

    def _is_over(self, run: _Run, block: Block) -> bool:
        """Return whether a chunk may not fit: those under way are taken to need copies as large as they are."""
        return run.spent + run.promised + block.plain > self._limit

    def _is_busy(self, run: _Run, block: Block) -> bool:
        return run.pending_bytes + max(LEAST, block.plain) > WINDOW or len(run.flying) >= IN_FLIGHT

    async def _wait(self, run: _Run) -> None:
        """Wait until a chunk is done. Raises `Cancelled`, and the error of the task."""
        run.moved = trio.Event()
        now = time.monotonic
        if self._cold.waits_for(READ):
            run.task.phase = "starting a worker"
            run.task.left.stop(now())
        else:
            run.task.phase = "decoding"
            run.task.left.go(now())
        with trio.move_on_after(WAIT_S):
            await run.moved.wait()
        await run.task.checkpoint()
        if run.error is not None:
            raise again(run.error)

    async def _one(self, run: _Run, file: File, number: int, block: Block) -> None:
        way = Way(run.task, block, thaw=True)
        try:
            await self._decode(run, file, number, way)
            run.failures = 0
        except (BlockDamaged, RecordDamaged) as error:
            self._reads.damaged.add(number, str(error))
            run.task.failed_chunks += 1
            log.error("block %d: %s", number, error)
        except NnfsError as error:
            run.task.failed_chunks += 1
            run.failures += not isinstance(error, ModelMissing)
            log.warning("block %d is not decoded ahead: %s", number, error)
            if run.failures >= FAILURES or isinstance(error, CodecUnavailable):
                run.error = run.error or kept(error)
        finally:
            run.flying.discard(number)
            run.pending_bytes -= max(LEAST, block.plain)
            run.promised -= block.plain
            _count(run, block)
            way.end()
            run.moved.set()

    async def _decode(self, run: _Run, file: File, number: int, way: Way) -> None:
        loaded = await trio.to_thread.run_sync(_load, self._store, number, limiter=self._looking)
        if loaded is None:
            return  # gone, or hot by now
        block, payload = loaded
        plain = await self._cold.decode(number, block, payload, priority=BACKGROUND, worker=READ)
        way(f"decode {codec.NAMES.get(block.codec, block.codec)}")
        if await self._keep(run, number, plain):
            run.decoded += 1
        else:
            run.full = run.full or NO_ROOM
            run.left[file] += block.plain
        way("look")

    async def _keep(self, run: _Run, number: int, plain: bytes) -> bool:
        """Keep decoded bytes. Return whether they were kept."""
        copies = self._copies
        if copies is None:
            self._reads.cache.put(number, plain)
        else:
            await trio.to_thread.run_sync(copies.put, number, plain, limiter=self._copying)
        size = await self._renewed(number)
        run.spent += size
        return bool(size)

    def _result(self, run: _Run) -> dict[str, Any]:
        """Return what came of it. `left` names files as the place of their root and the path below that."""
        return {
            "files": len(run.files), "decoded_chunks": run.decoded, "warm_chunks": run.warm,
            "failed_chunks": run.task.failed_chunks,
            "kept_in": MEMORY if self._copies is None else DISK, "copies_bytes": run.spent, "limit_bytes": self._limit,
            "full": run.full,
            "left_files": len(run.left), "left_bytes": run.left.total(),
            "left": [
                {"root": root, "path": path.decode(errors="surrogateescape"), "bytes": size}
                for (root, path), size in list(run.left.items())[:LISTED]
            ],
        }  # fmt: skip


def _count(run: _Run, block: Block) -> None:
    run.task.done_chunks += 1
    run.task.done_bytes += block.plain


def _load(store: Store, number: int) -> tuple[Block, bytes] | None:
    """Return a cold block and its payload, None for one that is gone or hot."""
    with store.read() as snapshot:
        block = load_block(snapshot, number)
        if block is None or block.codec < FIRST_COLD:
            return None
        return block, snapshot.payload(block.payload, block.stored)
