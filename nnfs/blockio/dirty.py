"""Dirty data: chunks of the active and the frozen epoch that are not in the store yet.

A dirty chunk either stands alone (`whole`) or is an overlay over its base: extents of new bytes, and `base_limit`, how
much of the base a truncation has left visible. Overlays are merged by `merge` when somebody reads them, and before the
commit that stores them; a write does not wait for its base, unless a worker has to decode that: then it is merged at
once (`lay_over`), so that no commit ever waits for a worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from nnfs.store.blocks import Encoded

Buffer = bytes | bytearray | memoryview


class DirtyChunk:
    """New content of one chunk. Bytes behind the end of `data` are those of the base (an overlay) or zeros (whole)."""

    __slots__ = ("base_limit", "data", "encoded", "extents", "version", "whole")

    def __init__(self, data: Buffer, extents: list[tuple[int, int]], *, whole: bool, base_limit: int) -> None:
        self.data = data
        self.extents = extents  # sorted, disjoint [start, end); meaningful for overlays only
        self.whole = whole
        self.base_limit = base_limit  # bytes of the base that are visible
        self.version = 0  # of the content: an encoding of an older one is thrown away
        self.encoded: tuple[Encoded | None] | None = None  # the encoder's result for this version

    @property
    def cost(self) -> int:
        """Bytes of memory that the chunk will take: an overlay grows to its base's size when it is merged."""
        return max(len(self.data), self.base_limit)

    def changed(self) -> None:
        self.version += 1
        self.encoded = None

    def write(self, start: int, piece: memoryview) -> None:
        """Write `piece` into the chunk at `start`."""
        end = start + len(piece)
        data = self.data
        if not isinstance(data, bytearray):
            data = self.data = bytearray(data)
        if len(data) < start:
            data.extend(bytes(start - len(data)))
        data[start:end] = piece
        if not self.whole:
            self._add_extent(start, end)
        self.changed()

    def _add_extent(self, start: int, end: int) -> None:
        kept = []
        for low, high in self.extents:
            if high < start or low > end:
                kept.append((low, high))
            else:
                start, end = min(start, low), max(end, high)
        kept.append((start, end))
        self.extents = sorted(kept)

    def covers(self, visible: int) -> bool:
        """Return whether the new bytes hide the first `visible` bytes of any base."""
        return self.whole or min(visible, self.base_limit) == 0 or (
            len(self.extents) == 1 and self.extents[0][0] == 0 and self.extents[0][1] >= min(visible, self.base_limit)
        )  # fmt: skip

    def cut(self, length: int) -> None:
        """Truncate the chunk to `length` bytes."""
        self.base_limit = min(self.base_limit, length)
        self.extents = [(low, min(high, length)) for low, high in self.extents if low < length]
        if len(self.data) > length:
            self.data = bytearray(self.data[:length])
        self.changed()

    def merge(self, base: Buffer) -> Buffer:
        """Return the chunk's plain bytes, given those of its base (ignored when whole)."""
        if self.whole:
            return self.data
        out = bytearray(base[: self.base_limit])
        if self.extents and len(out) < self.extents[-1][1]:
            out.extend(bytes(self.extents[-1][1] - len(out)))
        for low, high in self.extents:
            out[low:high] = self.data[low:high]
        return out


@dataclass(slots=True)
class Cut:
    """A truncation: chunks from `first` on are removed; the inode `spare` may take over their map nodes."""

    first: int
    spare: int


@dataclass(slots=True)
class Layer:
    """The data side of one epoch."""

    chunks: dict[int, dict[int, DirtyChunk]] = field(default_factory=dict)
    cuts: dict[int, Cut] = field(default_factory=dict)
    size: int = 0  # bytes held by its chunks
    rewritten: int = 0  # about how many of its chunks may take the place of others

    @property
    def empty(self) -> bool:
        return not (self.chunks or self.cuts)

    def cut_before(self, ino: int, chunk: int) -> bool:
        """Return whether this layer hides a chunk of the layers below."""
        cut = self.cuts.get(ino)
        return cut is not None and chunk >= cut.first


class DirtyData:
    """Active and frozen layers of all inodes. Used by the loop only."""

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self.active = Layer()
        self.frozen: Layer | None = None
        self.generation = 0  # changes with each freeze and commit: content found before that may be out of date

    @property
    def size(self) -> int:
        """Estimated bytes of memory held by dirty chunks of both layers."""
        return self.active.size + (self.frozen.size if self.frozen else 0)

    @property
    def rewritten(self) -> int:
        """Estimated number of dirty chunks that may take the place of others, in both layers."""
        return self.active.rewritten + (self.frozen.rewritten if self.frozen else 0)

    def has(self, ino: int) -> bool:
        """Return whether anything of an inode is dirty."""
        layers = (self.active, self.frozen)
        return any(layer is not None and (ino in layer.chunks or ino in layer.cuts) for layer in layers)

    def dirty_bytes(self, ino: int) -> int:
        """Return the bytes of an inode's dirty chunks."""
        layers = (self.active, self.frozen)
        return sum(len(c.data) for layer in layers if layer for c in layer.chunks.get(ino, {}).values())

    def write(self, ino: int, offset: int, data: bytes, size: int) -> list[tuple[int, DirtyChunk]]:
        """Write `data` at `offset` of a file of `size` bytes; return the chunks that are now whole and full."""
        view, position, full = memoryview(data), 0, []
        chunks = self.active.chunks.setdefault(ino, {})
        while position < len(data):
            number, start = divmod(offset + position, self.chunk_size)
            piece = view[position : position + self.chunk_size - start]
            chunk = self._write_chunk(chunks, ino, number, start, piece, size)
            if chunk.whole and len(chunk.data) == self.chunk_size:
                full.append((number, chunk))
            position += len(piece)
        return full

    def _write_chunk(
        self, chunks: dict[int, DirtyChunk], ino: int, number: int, start: int, piece: memoryview, size: int
    ) -> DirtyChunk:
        end = start + len(piece)
        visible = min(max(0, size - number * self.chunk_size), self.chunk_size)  # bytes that a base could show
        chunk = chunks.get(number)
        if chunk is None:
            if start == 0 and end >= visible:
                # The usual case, a chunk in one piece: keep the request's bytes, copy nothing.
                chunk = DirtyChunk(piece, [], whole=True, base_limit=0)
            else:
                whole = visible == 0 or self.active.cut_before(ino, number)
                chunk = DirtyChunk(bytearray(), [], whole=whole, base_limit=0 if whole else visible)
                chunk.write(start, piece)
            chunks[number] = chunk
            self.active.size += chunk.cost
            self.active.rewritten += visible > 0
            return chunk
        before = chunk.cost
        if start == 0 and end >= max(visible, len(chunk.data)):
            chunk.data, chunk.extents, chunk.whole, chunk.base_limit = piece, [], True, 0
            chunk.changed()
        else:
            chunk.write(start, piece)
            if not chunk.whole and chunk.covers(visible):
                chunk.whole, chunk.extents, chunk.base_limit = True, [], 0
        self.active.size += chunk.cost - before
        return chunk

    def truncate(self, ino: int, old: int, new: int, spare: int) -> None:
        """Cut a file of `old` bytes to `new`, or let it grow: bytes that were never written read as zeros.

        `spare` is an unused inode number, which the commit may give to the map nodes that are cut off.
        """
        if new >= old:
            return
        first, rest = -(-new // self.chunk_size), new % self.chunk_size
        chunks = self.active.chunks.setdefault(ino, {})
        for number in [number for number in chunks if number >= first]:
            self.active.size -= chunks.pop(number).cost
        cut = self.active.cuts.get(ino)
        self.active.cuts[ino] = Cut(min(first, cut.first), cut.spare or spare) if cut else Cut(first, spare)
        if rest:
            number = new // self.chunk_size
            chunk = chunks.get(number)
            if chunk is None:
                if self.active.cut_before(ino, number):
                    return
                chunk = chunks[number] = DirtyChunk(bytearray(), [], whole=False, base_limit=self.chunk_size)
                self.active.size += chunk.cost
                self.active.rewritten += 1
            before = chunk.cost
            chunk.cut(rest)
            self.active.size += chunk.cost - before

    def partly_changed(self, ino: int, size: int, offset: int, end: int) -> list[int]:
        """Return the chunks of a file of `size` bytes of which a write of [offset, end) needs the committed content.

        With `offset == end`: the chunks of which a truncation to `offset` needs it.
        """
        found = []
        for number in {offset // self.chunk_size, max(offset, end - 1) // self.chunk_size}:
            start, visible = number * self.chunk_size, min(size - number * self.chunk_size, self.chunk_size)
            if offset == end:
                needs = start < end < start + visible
            else:
                needs = visible > 0 and (offset > start or end < start + visible)
            if needs and number not in self.active.chunks.get(ino, {}) and self.layers(ino, number)[1]:
                found.append(number)
        return found

    def lay_over(self, ino: int, number: int, base: Buffer) -> None:
        """Merge the overlays of a chunk with its committed content."""
        top = self.active.chunks.get(ino, {}).get(number)
        if top is not None and not top.whole:
            for chunk in reversed(self.layers(ino, number)[0]):
                base = chunk.merge(base)
            before = top.cost
            top.data, top.extents, top.whole, top.base_limit = base, [], True, 0
            top.changed()
            self.active.size += top.cost - before

    def overlays(self) -> Iterator[tuple[int, int]]:
        """Yield (ino, chunk) of every overlay."""
        for layer in (self.active, self.frozen):
            for ino, chunks in layer.chunks.items() if layer is not None else ():
                yield from ((ino, number) for number, chunk in chunks.items() if not chunk.whole)

    def drop(self, ino: int) -> None:
        """Drop the active layer of an inode that nobody can reach any more."""
        for chunk in self.active.chunks.pop(ino, {}).values():
            self.active.size -= chunk.cost
        self.active.cuts.pop(ino, None)

    def layers(self, ino: int, number: int) -> tuple[list[DirtyChunk], bool]:
        """Return the dirty chunks that make up a chunk, topmost first, and whether the store's is below them."""
        found = []
        for layer in (self.active, self.frozen):
            if layer is None:
                continue
            chunk = layer.chunks.get(ino, {}).get(number)
            if chunk is not None:
                found.append(chunk)
                if chunk.whole:
                    return found, False
            if layer.cut_before(ino, number):
                return found, False
        return found, True

    def freeze(self) -> Layer:
        """End the active layer; one that is still frozen (its commit failed) takes in the active one."""
        if self.frozen is None:
            self.frozen = self.active
        else:
            self._absorb(self.frozen, self.active)
        self.active = Layer()
        self.generation += 1
        return self.frozen

    @staticmethod
    def _absorb(lower: Layer, upper: Layer) -> None:
        for ino, cut in upper.cuts.items():
            chunks = lower.chunks.get(ino, {})
            for number in [number for number in chunks if number >= cut.first]:
                del chunks[number]
            old = lower.cuts.get(ino)
            lower.cuts[ino] = Cut(min(cut.first, old.first), old.spare or cut.spare) if old else cut
        for ino, chunks in upper.chunks.items():
            below = lower.chunks.setdefault(ino, {})
            for number, chunk in chunks.items():
                under = below.get(number)
                if under is not None and not chunk.whole:
                    chunk = _stack(chunk, under)
                below[number] = chunk
        lower.rewritten += upper.rewritten
        lower.size = sum(chunk.cost for chunks in lower.chunks.values() for chunk in chunks.values())

    def committed(self) -> None:
        """Drop the frozen layer, which the store has now.

        Overlays over its chunks are merged: equal content may have been stored before, and be cold.
        """
        assert self.frozen is not None
        for ino, chunks in self.frozen.chunks.items():
            for number, chunk in chunks.items():
                if chunk.whole and not self.active.cut_before(ino, number):
                    self.lay_over(ino, number, b"")
        self.frozen = None
        self.generation += 1


def _stack(upper: DirtyChunk, lower: DirtyChunk) -> DirtyChunk:
    """Return one chunk that shows an overlay over another dirty chunk."""
    if lower.whole:
        return DirtyChunk(upper.merge(lower.data), [], whole=True, base_limit=0)
    merged = DirtyChunk(bytearray(lower.data), list(lower.extents), whole=False, base_limit=lower.base_limit)
    if upper.base_limit < max([lower.base_limit] + [high for _, high in lower.extents]):
        merged.cut(upper.base_limit)
    for low, high in upper.extents:
        merged.write(low, memoryview(upper.data)[low:high])
    return merged
