"""Reading: dirty data over the cache over the store, every stored block proved by its hash (DESIGN.md, "Reads")."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from nnfs import codec
from nnfs.blockio.cache import BlockCache
from nnfs.blockio.cold import AHEAD, URGENT, Cold, Progress
from nnfs.blockio.dirty import Buffer, DirtyData
from nnfs.blockio.guard import Nursery, Task
from nnfs.blockio.patience import Patience
from nnfs.blockio.readahead import Around, Sequences
from nnfs.blockio.repair import Repairs
from nnfs.blockio.thawcache import Thawed
from nnfs.errors import (
    BlockDamaged,
    CodecError,
    ModelMissing,
    NnfsError,
    StoreDamaged,
    TimedOut,
    WorkerError,
    again,
    kept,
)
from nnfs.store.blocks import load_block
from nnfs.store.env import Store
from nnfs.store.schema import Block, Inode
from nnfs.store.txn import Snapshot
from nnfs.workers.ladder import decode_hot

log = logging.getLogger(__name__)

_TRIES = 16  # to find a consistent state while commits go on; each commit can spoil one
AROUND_BYTES = 512 << 10  # plain bytes of small files that are fetched around others at a time
_GONE = object()  # a block that a commit has removed since its number was looked up


@dataclass(frozen=True, slots=True)
class _Stored:
    """A block that is not decoded yet: its codec is slow, or something is wrong with it."""

    block: Block
    payload: bytes
    damage: BlockDamaged | None = None


class ChunkMap(Protocol):
    """What the reader needs of the filesystem."""

    def block_numbers(self, inode: Inode, first: int, last: int) -> list[int]: ...


class _Pending:
    """A block that is being fetched, and who waits for it."""

    __slots__ = ("done", "progress", "result", "scope", "urgent", "waiters")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.waiters = 0
        self.result: object = None
        self.scope: trio.CancelScope | None = None  # of a cold block's decoding
        self.progress = Progress()
        self.urgent = False  # it is being decoded for somebody who waits

    def reconsider(self) -> None:
        """Take back what has not begun: somebody waits for what was only read ahead, or nobody waits any more."""
        if self.scope is not None and self.urgent != bool(self.waiters) and not self.progress.has_begun():
            self.scope.cancel()


class Reader:
    """Answers reads. `start` runs its fetch tasks in the daemon's nursery."""

    def __init__(
        self, store: Store, chunks: ChunkMap, data: DirtyData, *, cache_bytes: int, timeout: float, ahead: int = 16,
        cold: Cold | None = None, thawed: Thawed | None = None,
    ) -> None:  # fmt: skip
        self.store, self.chunks, self.data = store, chunks, data
        self.cold, self.thawed = cold, thawed
        self.cache = BlockCache(cache_bytes)
        self.patience = Patience(timeout)  # in seconds: then a read ends, unless workers get on with what they have
        self.waiting = 0  # reads that are being answered
        self.cooling: set[int] = set()  # blocks that are about to become cold: nothing may be laid over them any more
        self.damaged: dict[int, str] = {}  # block numbers found damaged, for status and scrub
        self._repairs = Repairs(timeout)
        self._nursery: Nursery | None = None
        self._pending: dict[int, _Pending] = {}
        self._sequences, self._around = Sequences(ahead), Around()
        self._hot = trio.CapacityLimiter(4)
        self._keeping = trio.CapacityLimiter(1)  # threads that write copies of what was thawed

    def start(self, nursery: Nursery) -> None:
        self._nursery = nursery
        nursery.start_soon(self.patience.run)
        if self.cold is not None:
            self.cold.watch(self.patience.go_on)

    # -- requests

    async def read(self, inode: Inode, offset: int, size: int) -> Buffer:
        """Return the bytes [offset, offset + size) of a file, cut at its end.

        Raises `BlockDamaged` (logged with file, offset and block), `RecordDamaged`, and `TimedOut` when for `timeout`
        seconds no worker got on with what it has, whoever waits for it.
        """
        end = min(offset + size, inode.size)
        if offset >= end:
            return b""
        chunk_size = self.data.chunk_size
        first, last = offset // chunk_size, (end - 1) // chunk_size
        with self._answering(inode, offset):
            if self.data.has(inode.ino):
                parts = [await self._chunk(inode, number) for number in range(first, last + 1)]
            else:
                parts = await self.stored(inode, first, last)
                self._try(self._look_ahead, inode, offset, end, last)
        return _join(parts, offset - first * chunk_size, end - offset, chunk_size)

    @contextlib.contextmanager
    def _answering(self, inode: Inode, offset: int) -> Iterator[None]:
        """A request that waits for old content: counted, bounded, its errors logged."""
        self.waiting += 1
        try:
            with self.patience.bound():
                yield
        except BlockDamaged as error:
            log.error("inode %d, offset %d, block %d: %s", inode.ino, offset, error.block, error)
            raise
        except (CodecError, WorkerError, TimedOut) as error:
            log.error("inode %d, offset %d: %s", inode.ino, offset, error)
            raise
        finally:
            self.waiting -= 1

    def plain_length(self, inode: Inode, number: int) -> int:
        """Return the length of a chunk's committed content, 0 for a hole. Raises `StoreDamaged`."""
        [block_number] = self.chunks.block_numbers(inode, number, number)
        if not block_number:
            return 0
        with self.store.read() as snapshot:
            block = load_block(snapshot, block_number)
        return block.plain if block is not None else self.data.chunk_size

    async def _chunk(self, inode: Inode, number: int) -> Buffer:
        """Return the content of a chunk of a file that has dirty data."""
        for _ in range(_TRIES):
            generation = self.data.generation
            base: Buffer = b""
            if self.data.layers(inode.ino, number)[1]:
                base = (await self.stored(inode, number, number))[0]
            if self.data.generation == generation:
                layers, below = self.data.layers(inode.ino, number)  # again: what lies on top may be newer by now
                if not below:
                    base = b""
                for chunk in reversed(layers):
                    base = chunk.merge(base)
                return base
        raise TimedOut(f"inode {inode.ino}: chunk {number} changed with every try to read it")

    async def stored(self, inode: Inode, first: int, last: int) -> list[Buffer]:
        """Return the committed content of chunks first..last, holes as empty bytes."""
        for _ in range(_TRIES):
            numbers = self.chunks.block_numbers(inode, first, last)
            plains = [self.cache.get(number) if number else b"" for number in numbers]
            if numbers[0] in self._around:
                self._try(self._look_around, numbers[0])
            if None not in plains:
                return plains  # type: ignore[return-value]
            found = await self._fetch_all([n for n, plain in zip(numbers, plains, strict=True) if plain is None])
            if found is not None:
                return [found[n] if plain is None else plain for n, plain in zip(numbers, plains, strict=True)]
        raise TimedOut(f"inode {inode.ino}: chunks {first}-{last} changed with every try to read them")

    # -- what is written in part

    def cold_below(self, inode: Inode, offset: int, end: int) -> dict[int, int]:
        """Return the blocks, by chunk, that a write of [offset, end) changes in part and that workers have to decode.

        `offset == end`: that a truncation does. The writer waits for them (`blocks`) as a reader would, so that
        commits never wait for workers. Raises `StoreDamaged`.
        """
        found = {}
        for chunk in self.data.partly_changed(inode.ino, inode.size, offset, end):
            [number] = self.chunks.block_numbers(inode, chunk, chunk)
            if number:
                with self.store.read() as snapshot:
                    block = load_block(snapshot, number)
                if number in self.cooling or (block is not None and block.codec >= codec.FIRST_COLD):
                    found[chunk] = number
        return found

    async def blocks(self, inode: Inode, offset: int, numbers: list[int]) -> dict[int, bytes]:
        """Return the content of blocks of a file that is about to be changed at `offset`, none if one of them is gone.

        Raises as `read` does.
        """
        cached = {number: plain for number in numbers if (plain := self.cache.get(number)) is not None}
        missing = [number for number in numbers if number not in cached]
        if not missing:
            return cached
        with self._answering(inode, offset):
            return cached | (await self._fetch_all(missing) or {})

    def _look_ahead(self, inode: Inode, offset: int, end: int, last: int) -> None:
        """Fetch what a reader of the whole file will ask for next."""
        ahead = self._sequences.read(inode.ino, offset, end, last + 1 - offset // self.data.chunk_size)
        until = min(last + ahead, (inode.size - 1) // self.data.chunk_size)
        if until > last:
            numbers = self.chunks.block_numbers(inode, last + 1, until)
            self._begin([n for n in numbers if n and n not in self.cache])

    def _look_around(self, number: int) -> None:
        """Fetch what was stored near a small cold file that is read."""
        after, before, count = self._around.read(number)
        if self.cache.limit < 2 * AROUND_BYTES:
            return
        found: list[int] = []
        room = AROUND_BYTES
        with self.store.read() as snapshot:
            for near in itertools.chain(after, before):
                if len(found) >= count or room <= 0:
                    break
                if near not in self.cache and near not in self._pending:
                    block = load_block(snapshot, near)
                    if block is not None and block.codec >= codec.FIRST_COLD and block.plain < self.data.chunk_size:
                        found.append(near)
                        room -= block.plain
        self._around.fetched(found)
        self._begin(found)

    @staticmethod
    def _try(fetch: Callable[..., None], *arguments: object) -> None:
        """Fetch what nobody has asked for yet: whatever is wrong with it, whoever asks for it will be told."""
        try:
            fetch(*arguments)
        except StoreDamaged:
            pass
        except Exception:
            log.exception("nothing is read ahead")

    # -- fetching

    async def _fetch_all(self, numbers: list[int]) -> dict[int, bytes] | None:
        """Fetch blocks; None when one of them is gone. Raises what went wrong with the first that failed."""
        if len(numbers) == 1 and not self._pending:
            [result] = _load(self.store, numbers)
            if not isinstance(result, _Stored):
                # One block for a reader that is alone: 150 us on the loop's own thread, less than the way to a data
                # thread and back. Several at a time are better off on several cores, slow codecs in their own queue.
                self._note(numbers[0], result)
                return _collect({numbers[0]: result})
        self._begin(numbers)
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

    def _begin(self, numbers: Sequence[int]) -> None:
        """Start fetching what nobody fetches yet. Numbers may repeat: equal chunks share a block."""
        numbers = [number for number in dict.fromkeys(numbers) if number not in self._pending]
        for number in numbers:
            self._pending[number] = _Pending()
        for start in range(0, len(numbers), 8):
            self._start(numbers[start : start + 8], self._fetch, numbers[start : start + 8])

    def _start(self, numbers: Sequence[int], task: Task, *arguments: object) -> None:
        """Start a task that fetches blocks. A bug in it is told to those who wait for them."""

        async def told() -> None:
            try:
                await task(*arguments)
            except Exception as bug:
                left = [number for number in numbers if number in self._pending]
                is_told = any(self._pending[number].waiters for number in left)
                for number in left:
                    self._finish(number, kept(bug) if is_told else _GONE)
                if not is_told:
                    raise

        assert self._nursery is not None
        self._nursery.start_soon(told)

    async def _fetch(self, numbers: list[int]) -> None:
        try:
            loaded = await trio.to_thread.run_sync(_load, self.store, numbers, self.thawed, limiter=self._hot)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the waiters' to know
            loaded = [kept(error)] * len(numbers)
        for number, result in zip(numbers, loaded, strict=True):
            if isinstance(result, _Stored):
                self._start([number], self._decode_cold if result.damage is None else self._mend, number, result)
            else:
                self._finish(number, result)

    async def _decode_cold(self, number: int, stored: _Stored) -> None:
        pending = self._pending[number]
        result: object = CodecError(f"block {number}: codec {stored.block.codec} is decoded by workers, here are none")
        while self.cold is not None:
            pending.urgent, pending.progress = pending.waiters > 0, Progress()
            with trio.CancelScope() as pending.scope:
                try:
                    result = await self.cold.decode(
                        number, stored.block, stored.payload,
                        priority=URGENT if pending.urgent else AHEAD, progress=pending.progress,
                    )  # fmt: skip
                except Exception as error:  # noqa: BLE001 - whatever it is, it is the waiters' to know
                    result = kept(error)
            if not pending.scope.cancelled_caught:
                other = await self._recoded(number, stored.block) if isinstance(result, ModelMissing) else None
                if isinstance(other, _Stored):
                    stored = other
                    continue
                result = result if other is None else other
                break
            if not pending.waiters:
                result = _GONE  # whoever comes later asks again
                break
        self._finish(number, result)
        if isinstance(result, bytes):
            self.patience.go_on()
            if pending.urgent and stored.block.plain < self.data.chunk_size:
                self._try(self._look_around, number)
        if self.thawed is not None and isinstance(result, bytes):  # those who waited have their answer already
            try:
                await trio.to_thread.run_sync(self.thawed.put, number, result, limiter=self._keeping)
            except Exception as error:  # noqa: BLE001 - no copy, no harm: this task must not end the mount
                log.warning("block %d: no copy of what was thawed: %r", number, error)

    async def _recoded(self, number: int, block: Block) -> object:
        """Load a block again whose model is gone; None when it is as it was.

        A retired model goes with the last block that needs it, which may have been recoded since this one was loaded.
        """
        try:
            [other] = await trio.to_thread.run_sync(_load, self.store, [number], self.thawed, limiter=self._hot)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the waiters' to know
            return kept(error)
        if not isinstance(other, _Stored):
            return other
        if other.block.payload == block.payload:
            return None
        return other if other.damage is None else other.damage

    async def _mend(self, number: int, stored: _Stored) -> None:
        """Try to repair a hot block, once: whoever reads it again is told at once what was found."""
        result: object = stored.damage
        assert stored.damage is not None
        if number not in self.damaged and len(stored.payload) == stored.block.stored:
            log.error("%s: trying to repair it", stored.damage)
            try:
                found = await self._repairs.find(stored.payload, stored.block.xxh3)
                if found is not None:
                    result = decode_hot(number, stored.block, found)
                    log.warning("block %d is repaired by a small change of its stored bytes", number)
                    if self.cold is not None:
                        self.cold.on_repaired(number, stored.block, found)
            except Exception as error:  # noqa: BLE001 - see above
                result = kept(error)
        self._finish(number, result)

    def _finish(self, number: int, result: object) -> None:
        pending = self._pending.pop(number)
        pending.result = result
        self._note(number, result)
        pending.done.set()

    def forget_gone(self) -> None:
        """Drop from `damaged` the blocks that are no more: their files were removed, or written again. For a thread."""
        with self.store.read() as snapshot:
            for number in list(self.damaged):
                with contextlib.suppress(StoreDamaged):  # a damaged header is one that is there
                    if load_block(snapshot, number) is None:
                        self.damaged.pop(number, None)

    def _note(self, number: int, result: object) -> None:
        if isinstance(result, bytes):
            self.cache.put(number, result)
            self.damaged.pop(number, None)
        elif isinstance(result, BlockDamaged):
            self.damaged[number] = str(result)


def _collect(results: dict[int, object]) -> dict[int, bytes] | None:
    found: dict[int, bytes] = {}
    for number, result in results.items():
        if result is _GONE:
            return None
        if isinstance(result, Exception):
            raise again(result)
        assert isinstance(result, bytes)
        found[number] = result
    return found


def _load(store: Store, numbers: Sequence[int], thawed: Thawed | None = None) -> list[object]:
    """Fetch blocks in one read txn: plain bytes, or `_Stored` for slow codecs and repairs, or what went wrong."""
    results: list[object] = []
    with store.read() as snapshot:
        for number in numbers:
            try:
                block = load_block(snapshot, number)
                if block is None:
                    results.append(_GONE)
                    continue
                results.append(_loaded(number, block, snapshot, thawed))
            except NnfsError as error:
                results.append(kept(error))
    return results


def _loaded(number: int, block: Block, snapshot: Snapshot, thawed: Thawed | None) -> object:
    if block.codec >= codec.FIRST_COLD:
        plain = thawed.get(number, block) if thawed is not None else None
        return _Stored(block, snapshot.payload(block.payload, block.stored)) if plain is None else plain
    payload = snapshot.payload(block.payload, block.stored)
    try:
        return decode_hot(number, block, payload)
    except BlockDamaged as damage:
        return _Stored(block, payload, kept(damage))


def _join(parts: Sequence[Buffer], skip: int, size: int, chunk_size: int) -> Buffer:
    """Return `size` bytes from `skip` on of chunks, each zero-filled up to the chunk size."""
    if len(parts) == 1:
        whole = bytes(memoryview(parts[0])[skip : skip + size])
        return whole if len(whole) == size else whole + bytes(size - len(whole))
    out = bytearray(size)
    position = 0
    for part in parts:
        piece = memoryview(part)[skip : skip + size - position]
        out[position : position + len(piece)] = piece
        position += chunk_size - skip
        skip = 0
    return out
