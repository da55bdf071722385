"""Encoding of dirty chunks for a commit: merged with their bases, hashed and compressed, early if possible."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence

import trio

from nnfs import codec
from nnfs.blockio.bases import Bases
from nnfs.blockio.dirty import Buffer, DirtyChunk, Layer
from nnfs.blockio.reader import Reader
from nnfs.blockio.threads import run_fairly
from nnfs.errors import FsError, NnfsError, StoreDamaged, kept
from nnfs.proof import content_hash
from nnfs.store.blocks import ChunkChanges, Encoded
from nnfs.store.schema import Inode

log = logging.getLogger(__name__)

BATCH = 8  # chunks per hop to an encoder thread
ENCODERS = 2
_ZEROS = bytes(1 << 20)

Changes = dict[int, ChunkChanges]  # by inode


class Encoding:
    """Encodes dirty chunks, in data threads. `early` runs while writers go on, `changes` within a commit."""

    def __init__(self, reader: Reader, bases: Bases, inode: Callable[[int], Inode]) -> None:
        self._reader, self._bases, self._inode = reader, bases, inode
        self._queue: deque[DirtyChunk] = deque()
        self._queued = trio.Event()
        self._encoding: set[int] = set()  # id() of chunks that an encoder has in hand
        self._encoded = trio.Event()
        self._limiter = trio.CapacityLimiter(ENCODERS)
        self._merged: list[DirtyChunk] = []  # rewritten in part: likely bases of the next partial writes

    def offer(self, full: list[tuple[int, DirtyChunk]]) -> None:
        """Queue wholly written chunks, to be encoded while the writer goes on."""
        for _, chunk in full:
            self._queue.append(chunk)
        if full:
            self._queued.set()

    def merged(self) -> list[tuple[int, bytes]]:
        """Return (block number, plain bytes) of the chunks that the last `changes` merged, after their commit."""
        merged, self._merged = self._merged, []
        return [(c.encoded[0].number, bytes(c.data)) for c in merged if c.encoded and c.encoded[0] is not None]

    async def changes(self, layer: Layer, released: Collection[int], errors: dict[int, NnfsError]) -> Changes:
        """Return the encoded content of a frozen layer. Chunks whose base cannot be read are left out.

        Their errors are put into `errors`, by inode. Inodes in `released` are being deleted: their content is not
        encoded.
        """
        self._merged.clear()  # those of a failed commit: their block numbers will be given to other blocks
        overlays = [
            (ino, number, chunk)
            for ino, chunks in layer.chunks.items()
            for number, chunk in chunks.items()
            if not chunk.whole and ino not in released
        ]
        skipped: set[int] = set()
        await self._merge_all(layer, overlays, skipped, errors)
        whole = [c for chunks in layer.chunks.values() for c in chunks.values() if c.whole and c.encoded is None]
        await self._encode(whole)
        changes: Changes = {}
        for ino in layer.chunks.keys() | layer.cuts.keys():
            cut = layer.cuts.get(ino)
            chunks = {
                n: c.encoded[0] for n, c in layer.chunks.get(ino, {}).items() if c.encoded and id(c) not in skipped
            }
            changes[ino] = ChunkChanges(cut.first if cut else None, cut.spare if cut else 0, chunks)
        return changes

    async def _merge_all(
        self, layer: Layer, overlays: list[tuple[int, int, DirtyChunk]], skipped: set[int],
        errors: dict[int, NnfsError],
    ) -> None:  # fmt: skip
        """Merge chunks that were written in part with their bases, which no worker has to decode (see `Bases`)."""

        async def merge(ino: int, number: int, chunk: DirtyChunk) -> None:
            try:
                base: Buffer = b""  # bytes that this layer has cut off must not come back
                if not layer.cut_before(ino, number):
                    inode = self._inode(ino)
                    if not chunk.extents and self._bases.length(inode, number) <= chunk.base_limit:
                        skipped.add(id(chunk))  # a truncation that has cut nothing off
                        return
                    base = (await self._reader.stored(inode, number, number))[0]
            except FsError:
                skipped.add(id(chunk))  # the inode is gone
                return
            except StoreDamaged as error:
                log.error("inode %d, chunk %d: unreadable, new bytes in it are lost: %s", ino, number, error)
                errors[ino] = kept(error)
                skipped.add(id(chunk))
                return
            chunk.data = chunk.merge(base)
            chunk.extents, chunk.whole, chunk.base_limit = [], True, 0
            self._merged.append(chunk)

        for start in range(0, len(overlays), 16):
            async with trio.open_nursery() as nursery:
                for item in overlays[start : start + 16]:
                    nursery.start_soon(merge, *item)

    async def _encode(self, chunks: list[DirtyChunk]) -> None:
        todo = [chunk for chunk in chunks if id(chunk) not in self._encoding]
        async with trio.open_nursery() as nursery:
            for start in range(0, len(todo), BATCH):
                nursery.start_soon(self._encode_batch, todo[start : start + BATCH])
        while any(chunk.encoded is None for chunk in chunks):
            again = [chunk for chunk in chunks if chunk.encoded is None and id(chunk) not in self._encoding]
            if again:
                await self._encode_batch(again)
            else:
                await self._encoded.wait()

    async def _encode_batch(self, batch: list[DirtyChunk]) -> None:
        versions = [chunk.version for chunk in batch]
        plains = [bytes(chunk.data) if isinstance(chunk.data, bytearray) else chunk.data for chunk in batch]
        self._encoding.update(map(id, batch))
        try:
            results = await run_fairly(encode_many, plains, limiter=self._limiter)
        finally:
            self._encoding.difference_update(map(id, batch))
            self._encoded.set()
            self._encoded = trio.Event()
        for chunk, version, result in zip(batch, versions, results, strict=True):
            if chunk.version == version:
                chunk.encoded = (result,)
                if result is not None and len(result.payload) == result.plain:
                    chunk.data = result.payload  # raw: one copy in memory is enough

    async def early(self) -> None:
        """Encode the chunks that are offered, until cancelled."""
        while True:
            await self._queued.wait()
            batch: list[DirtyChunk] = []
            while self._queue and len(batch) < BATCH:
                chunk = self._queue.popleft()
                if chunk.whole and chunk.encoded is None and id(chunk) not in self._encoding:
                    batch.append(chunk)
            if not self._queue:
                self._queued = trio.Event()
            if batch:
                try:
                    await self._encode_batch(batch)
                except Exception:
                    log.exception("chunks could not be encoded early; the commit tries again")


def encode(plain: Buffer) -> Encoded | None:
    """Return the stored form of a chunk by the hot codecs, None when it holds nothing but zeros."""
    data = bytes(plain)
    if not data or (data[0] == 0 and data == _ZEROS[: len(data)]):
        return None
    codec_id, payload = codec.encode_hot(data)
    return Encoded(content_hash(data), codec_id, len(data), payload)


def encode_many(plains: Sequence[Buffer]) -> list[Encoded | None]:
    """Encode several chunks in a data thread: a change of threads costs some 60 us, a chunk 120, mostly without GIL."""
    return [encode(plain) for plain in plains]
