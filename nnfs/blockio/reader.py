"""Reads: the bytes of a file from dirty data, the cache of decoded blocks and the store (DESIGN.md, "Reads")."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

from nnfs.blockio.dirty import Buffer, DirtyData
from nnfs.blockio.fetch import Fetcher
from nnfs.blockio.interfaces import Files
from nnfs.blockio.nursery import Nursery
from nnfs.blockio.readahead import ReadAhead
from nnfs.errors import BlockDamaged, CodecError, TimedOut, WorkerError
from nnfs.store.schema import Inode

log = logging.getLogger(__name__)

_TRIES = 16  # to find a consistent state while commits go on; each commit can spoil one


class Reader:
    """Answers reads. `start` runs the tasks of its fetcher in the daemon's nursery."""

    def __init__(self, files: Files, data: DirtyData, fetcher: Fetcher, ahead: ReadAhead) -> None:
        self._files, self._data, self._fetcher, self._ahead = files, data, fetcher, ahead
        self.cache, self.damaged, self.thawed = fetcher.cache, fetcher.damaged, fetcher.thawed
        self.listings = ahead.listings
        self.waiting = 0  # reads that are being answered

    def start(self, nursery: Nursery) -> None:
        self._fetcher.start(nursery, self._ahead.after_cold_read)

    async def read(self, inode: Inode, offset: int, size: int) -> Buffer:
        """Return the bytes [offset, offset + size) of a file, cut at its end.

        Raises `BlockDamaged` (logged with file, offset and block), `RecordDamaged`, and `TimedOut` when no worker got
        on with anything for the time that `Patience` allows.
        """
        end = min(offset + size, inode.size)
        if offset >= end:
            return b""
        chunk_size = self._data.chunk_size
        first, last = offset // chunk_size, (end - 1) // chunk_size
        with self._answering(inode, offset):
            if self._data.has(inode.ino):
                parts = [await self._chunk(inode, number) for number in range(first, last + 1)]
            else:
                parts = await self.stored(inode, first, last)
                self._ahead.after_read(inode, offset, end)
        return _join(parts, offset - first * chunk_size, end - offset, chunk_size)

    async def stored(self, inode: Inode, first: int, last: int) -> list[Buffer]:
        """Return the committed content of chunks first..last, holes as empty bytes. Raises as `read` does."""
        for _ in range(_TRIES):
            numbers = self._files.block_numbers(inode, first, last)
            plains = [self.cache.get(number) if number else b"" for number in numbers]
            self._ahead.after_look_up(numbers[0])
            if None not in plains:
                return plains  # type: ignore[return-value]
            found = await self._fetcher.fetch([n for n, plain in zip(numbers, plains, strict=True) if plain is None])
            if found is not None:
                return [found[n] if plain is None else plain for n, plain in zip(numbers, plains, strict=True)]
        raise TimedOut(f"inode {inode.ino}: chunks {first}-{last} changed with every try to read them")

    async def blocks(self, inode: Inode, offset: int, numbers: Sequence[int]) -> dict[int, bytes]:
        """Return the content of blocks of a file that is about to be changed at `offset`.

        If one of them is gone, only blocks of the cache are returned. Raises as `read` does.
        """
        cached = {number: plain for number in numbers if (plain := self.cache.get(number)) is not None}
        missing = [number for number in numbers if number not in cached]
        if not missing:
            return cached
        with self._answering(inode, offset):
            return cached | (await self._fetcher.fetch(missing) or {})

    @contextlib.contextmanager
    def _answering(self, inode: Inode, offset: int) -> Iterator[None]:
        """Count a request that waits for committed content, bound it, and log its errors."""
        self.waiting += 1
        try:
            with self._fetcher.patience.bound():
                yield
        except BlockDamaged as error:
            log.error("inode %d, offset %d, block %d: %s", inode.ino, offset, error.block, error)
            raise
        except (CodecError, WorkerError, TimedOut) as error:
            log.error("inode %d, offset %d: %s", inode.ino, offset, error)
            raise
        finally:
            self.waiting -= 1

    async def _chunk(self, inode: Inode, number: int) -> Buffer:
        """Return the content of a chunk of a file that has dirty data."""
        for _ in range(_TRIES):
            generation = self._data.generation
            base: Buffer = b""
            if self._data.layers(inode.ino, number)[1]:
                base = (await self.stored(inode, number, number))[0]
            if self._data.generation == generation:
                layers, below = self._data.layers(inode.ino, number)  # again: what lies on top may be newer by now
                if not below:
                    base = b""
                for chunk in reversed(layers):
                    base = chunk.merge(base)
                return base
        raise TimedOut(f"inode {inode.ino}: chunk {number} changed with every try to read it")


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
