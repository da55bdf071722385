"""Dirty data against a plain model: writes, truncations, freezes, commits and failed commits in any order."""

from __future__ import annotations

import os
import random

import pytest

from nnfs.blockio.dirty import DirtyData

CHUNK = 16
SEEDS = 20_000 if os.environ.get("NNFS_FULL") else 1_500


class Model:
    """One file: dirty layers over a dict of committed chunks, beside the bytes it should hold."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.data = DirtyData(CHUNK)
        self.store: dict[int, bytes] = {}
        self.truth = bytearray()
        self.cold: set[int] = set()  # of the store's chunks: over these nothing may be dirty

    def lay_over(self, offset: int, end: int) -> list[tuple[int, bytes]]:
        """Return the chunks that have to be decoded before a write, as `nnfs.blockio.writer` does."""
        chunks = self.data.partly_changed(1, len(self.truth), offset, end)
        return [(number, self.store[number]) for number in chunks if number in self.cold]

    def cool(self) -> None:
        """Recompression."""
        self.cold |= self.store.keys() - {number for _, number in self.data.overlays()}

    def write(self) -> None:
        offset, length = self.random.randrange(100), self.random.randrange(1, 50)
        piece = self.random.randbytes(length)
        bases = self.lay_over(offset, offset + length)
        self.data.write(1, offset, piece, len(self.truth))
        for number, base in bases:
            self.data.lay_over(1, number, base)
        self.truth.extend(bytes(max(0, offset + length - len(self.truth))))
        self.truth[offset : offset + length] = piece

    def truncate(self) -> None:
        size = self.random.randrange(140)
        bases = self.lay_over(size, size)
        self.data.truncate(1, len(self.truth), size, 0)
        for number, base in bases:
            self.data.lay_over(1, number, base)
        self.truth = self.truth[:size] + bytes(max(0, size - len(self.truth)))

    def freeze(self) -> None:
        """Also when a layer is still frozen: that is a commit that failed."""
        self.data.freeze()

    def commit(self) -> None:
        layer = self.data.frozen
        if layer is None:
            return
        cut = layer.cuts.get(1)
        below = {n: old for n, old in self.store.items() if cut is None or n < cut.first}
        merged = {n: bytes(c.merge(below.get(n, b""))) for n, c in layer.chunks.get(1, {}).items()}
        self.store = below | merged
        self.cold &= below.keys() - merged.keys()
        self.data.committed()

    def content(self) -> bytes:
        parts = []
        for number in range(-(-len(self.truth) // CHUNK)):
            layers, below = self.data.layers(1, number)
            base = self.store.get(number, b"") if below else b""
            for chunk in reversed(layers):
                base = bytes(chunk.merge(base))
            parts.append(base.ljust(CHUNK, b"\0"))
        return b"".join(parts)[: len(self.truth)]


@pytest.mark.parametrize("block", range(10))
def test_layers_show_what_was_written(block: int) -> None:
    for seed in range(block * SEEDS // 10, (block + 1) * SEEDS // 10):
        model = Model(seed)
        steps = [model.write] * 4 + [model.truncate] * 2 + [model.freeze, model.commit, model.cool]
        for number in range(60):
            step = model.random.choice(steps)
            step()
            assert model.content() == bytes(model.truth), f"seed {seed}, step {number} ({step.__name__})"
            over_store = {number for _, number in model.data.overlays() if model.data.layers(1, number)[1]}
            assert model.cold.isdisjoint(over_store), f"seed {seed}, step {number} ({step.__name__})"
            assert model.data.active.size == sum(c.cost for c in model.data.active.chunks.get(1, {}).values())


def test_a_whole_chunk_is_not_copied() -> None:
    data = DirtyData(CHUNK)
    request = os.urandom(3 * CHUNK)
    full = data.write(1, 0, request, 0)
    assert [number for number, _ in full] == [0, 1, 2]
    assert all(isinstance(chunk.data, memoryview) and chunk.data.obj is request for _, chunk in full)
    assert data.size == len(request)


def test_drop_gives_the_memory_back() -> None:
    data = DirtyData(CHUNK)
    data.write(1, 5, b"x" * 40, 0)
    data.truncate(1, 45, 20, 0)
    data.drop(1)
    assert data.size == 0
    assert data.active.empty
