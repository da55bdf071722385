"""Fetching blocks from the store: each is fetched once, however many readers wait for it (DESIGN.md, "Reads")."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import trio

from nnfs.blockio.cache import BlockCache
from nnfs.blockio.cold import AHEAD, URGENT, Cold, Progress
from nnfs.blockio.damagelist import DamageList
from nnfs.blockio.nursery import Nursery, Task
from nnfs.blockio.patience import Patience
from nnfs.blockio.repairsearch import Repairs
from nnfs.blockio.thawcache import Thawed
from nnfs.codec import FIRST_COLD
from nnfs.codec.base import PPM
from nnfs.errors import BlockDamaged, CodecError, ModelMissing, NnfsError, again, kept
from nnfs.store.blocks import load_block
from nnfs.store.env import Store
from nnfs.store.schema import Block
from nnfs.store.txn import Snapshot
from nnfs.workers.ladder import decode_hot

log = logging.getLogger(__name__)

BATCH = 8  # blocks that one task loads in one read txn


@dataclass(frozen=True, slots=True)
class _Stored:
    """A block that is not decoded yet: a cold one, or a hot one that could not be decoded."""

    block: Block
    payload: bytes
    damage: BlockDamaged | None = None


Result: TypeAlias = bytes | Exception | None  # plain bytes, proved; what went wrong; None: the block is gone


class _Pending:
    """A block that is being fetched, and the readers that wait for it."""

    __slots__ = ("done", "progress", "result", "scope", "urgent", "waiters")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.waiters = 0
        self.result: Result = None
        self.scope: trio.CancelScope | None = None  # of a cold block's decoding
        self.progress = Progress()
        self.urgent = False  # it is being decoded for somebody who waits

    def reconsider(self) -> None:
        """Cancel a decoding that has not begun and has the wrong priority, or that nobody waits for any more."""
        if self.scope is not None and self.urgent != bool(self.waiters) and not self.progress.has_begun():
            self.scope.cancel()


class Fetcher:
    """Fetches and proves blocks, in tasks of its own. Content goes to `cache`, damage to `damaged`. For the loop only.

    `patience` bounds how long readers wait. Without `cold`, cold blocks cannot be read; `thawed` keeps copies of them.
    """

    def __init__(
        self, store: Store, cache: BlockCache, damaged: DamageList, patience: Patience,
        cold: Cold | None = None, thawed: Thawed | None = None,
    ) -> None:  # fmt: skip
        self._store = store
        self.cache, self.damaged, self.patience = cache, damaged, patience
        self.cold, self.thawed = cold, thawed
        self._repairs = Repairs(patience.timeout)
        self._nursery: Nursery | None = None
        self._on_cold_read: Callable[[int, Block], None] | None = None
        self._pending: dict[int, _Pending] = {}
        self._loading = trio.CapacityLimiter(4)
        self._copying = trio.CapacityLimiter(1)  # threads that write copies of thawed blocks

    def start(self, nursery: Nursery, on_cold_read: Callable[[int, Block], None]) -> None:
        """Start tasks in `nursery` from now on. `on_cold_read` is told each cold block that a reader waited for."""
        self._nursery, self._on_cold_read = nursery, on_cold_read
        nursery.start_soon(self.patience.run)
        if self.cold is not None:
            self.cold.watch(self.patience.go_on)

    def is_here(self, number: int) -> bool:
        """Return whether a block is in the cache or on its way there."""
        return number in self.cache or number in self._pending

    async def fetch(self, numbers: Sequence[int]) -> dict[int, bytes] | None:
        """Return the content of blocks by number, None when one of them is gone.

        Raises the error of the first block that failed: `StoreDamaged`, `CodecError`, `WorkerError`.
        """
        if len(numbers) == 1 and not self._pending:
            [loaded] = _load(self._store, numbers)
            if not isinstance(loaded, _Stored):
                # One block for a reader that is alone: 150 us on the loop's own thread, less than the way to a data
                # thread and back. Several at a time are better off on several cores, slow codecs in their own queue.
                self._note(numbers[0], loaded)
                return _collect({numbers[0]: loaded})
        self.begin(numbers)
        waiting = {number: self._pending[number] for number in numbers}
        for pending in waiting.values():
            pending.waiters += 1
            pending.reconsider()
        try:
            for pending in waiting.values():
                await pending.done.wait()
        finally:
            for pending in waiting.values():
                pending.waiters -= 1
                pending.reconsider()
        return _collect({number: pending.result for number, pending in waiting.items()})

    def begin(self, numbers: Sequence[int]) -> None:
        """Start fetching the blocks that are not being fetched. Numbers may repeat: equal chunks share a block."""
        numbers = [number for number in dict.fromkeys(numbers) if number not in self._pending]
        for number in numbers:
            self._pending[number] = _Pending()
        for start in range(0, len(numbers), BATCH):
            self._start(numbers[start : start + BATCH], self._fetch, numbers[start : start + BATCH])

    def _start(self, numbers: Sequence[int], task: Task, *arguments: object) -> None:
        """Start a task that fetches blocks. A bug in it is raised in the readers that wait for them."""

        async def told() -> None:
            try:
                await task(*arguments)
            except Exception as bug:
                left = [number for number in numbers if number in self._pending]
                is_told = any(self._pending[number].waiters for number in left)
                for number in left:
                    self._finish(number, kept(bug) if is_told else None)
                if not is_told:
                    raise

        assert self._nursery is not None
        self._nursery.start_soon(told)

    async def _fetch(self, numbers: list[int]) -> None:
        for number, loaded in zip(numbers, await self._load(numbers), strict=True):
            if isinstance(loaded, _Stored):
                self._start([number], self._fetch_cold if loaded.damage is None else self._repair, number, loaded)
            else:
                self._finish(number, loaded)

    async def _load(self, numbers: Sequence[int]) -> Sequence[_Stored | Result]:
        try:
            return await trio.to_thread.run_sync(_load, self._store, numbers, self.thawed, limiter=self._loading)
        except Exception as error:  # noqa: BLE001 - told to those who wait
            return [kept(error)] * len(numbers)

    def _finish(self, number: int, result: Result) -> None:
        pending = self._pending.pop(number)
        pending.result = result
        self._note(number, result)
        pending.done.set()

    def _note(self, number: int, result: Result) -> None:
        if isinstance(result, bytes):
            self.cache.put(number, result)
            self.damaged.remove(number)
        elif isinstance(result, BlockDamaged):
            self.damaged.add(number, str(result))

    # -- cold blocks

    async def _fetch_cold(self, number: int, stored: _Stored) -> None:
        pending = self._pending[number]
        result = await self._decode(number, stored, pending)
        self._finish(number, result)
        if not isinstance(result, bytes):
            return
        self.patience.go_on()
        if pending.urgent and self._on_cold_read is not None:
            self._on_cold_read(number, stored.block)
        if self.thawed is not None and stored.block.codec != PPM:  # the readers that waited have their answer already
            try:
                await trio.to_thread.run_sync(self.thawed.put, number, result, limiter=self._copying)
            except Exception as error:  # noqa: BLE001 - no copy, no harm: this task must not end the mount
                log.warning("block %d: no copy of its thawed content: %r", number, error)

    async def _decode(self, number: int, stored: _Stored, pending: _Pending) -> Result:
        """Decode a block in a worker; submit it again with another priority when that changes (`reconsider`)."""
        while self.cold is not None:
            pending.urgent, pending.progress = pending.waiters > 0, Progress()
            result: Result = None
            with trio.CancelScope() as pending.scope:
                try:
                    result = await self.cold.decode(
                        number, stored.block, stored.payload,
                        priority=URGENT if pending.urgent else AHEAD, progress=pending.progress,
                    )  # fmt: skip
                except Exception as error:  # noqa: BLE001 - told to those who wait
                    result = kept(error)
            if pending.scope.cancelled_caught:
                if pending.waiters:
                    continue
                return None  # nobody waits any more: a later reader asks again
            if not isinstance(result, ModelMissing):
                return result
            # A retired model goes with the last block that needs it: this one may have been recompressed meanwhile.
            [loaded] = await self._load([number])
            if not isinstance(loaded, _Stored):
                return loaded
            if loaded.block.payload == stored.block.payload:
                return result
            if loaded.damage is not None:
                return loaded.damage
            stored = loaded
        return CodecError(f"block {number}: codec {stored.block.codec} is decoded by workers, here are none")

    # -- hot blocks

    async def _repair(self, number: int, stored: _Stored) -> None:
        """Try once to repair a hot block: later readers get the outcome at once."""
        assert stored.damage is not None
        result: Result = stored.damage
        if number not in self.damaged and len(stored.payload) == stored.block.stored:
            log.error("%s: trying to repair it", stored.damage)
            try:
                found = await self._repairs.find(stored.payload, stored.block.xxh3)
                if found is not None:
                    result = decode_hot(number, stored.block, found)
                    log.warning("block %d is repaired by a small change of its stored bytes", number)
                    if self.cold is not None:
                        self.cold.on_repaired(number, stored.block, found)
            except Exception as error:  # noqa: BLE001 - told to those who wait
                result = kept(error)
        self._finish(number, result)


def _collect(results: dict[int, Result]) -> dict[int, bytes] | None:
    found: dict[int, bytes] = {}
    for number, result in results.items():
        if result is None:
            return None
        if isinstance(result, Exception):
            raise again(result)
        found[number] = result
    return found


def _load(store: Store, numbers: Sequence[int], thawed: Thawed | None = None) -> list[_Stored | Result]:
    """Load blocks in one read txn. Return hot ones decoded, and cold ones of which there is a thawed copy."""
    results: list[_Stored | Result] = []
    with store.read() as snapshot:
        for number in numbers:
            try:
                block = load_block(snapshot, number)
                results.append(None if block is None else _loaded(number, block, snapshot, thawed))
            except NnfsError as error:
                results.append(kept(error))
    return results


def _loaded(number: int, block: Block, snapshot: Snapshot, thawed: Thawed | None) -> _Stored | bytes:
    if block.codec >= FIRST_COLD:
        plain = thawed.get(number, block) if thawed is not None else None
        return _Stored(block, snapshot.payload(block.payload, block.stored)) if plain is None else plain
    payload = snapshot.payload(block.payload, block.stored)
    try:
        return decode_hot(number, block, payload)
    except BlockDamaged as damage:
        return _Stored(block, payload, kept(damage))
