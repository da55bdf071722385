"""Rows of positions to learn from: chunks of the corpus with their features, cut and packed to one length."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nnfs.codec.neural import prepared
from nnfs.model import features
from nnfs.model.architecture import CANDIDATES, INPUTS, NGRAMS
from nnfs.model.dictionary import Dictionary
from nnfs.model.lanes import lanes_for

PAD = -100  # the target of a position that does not count (the value that torch's cross_entropy ignores)
PIECES = 32  # rows taken from one long chunk: its features cost as much, however few rows are used
POOL = 1024  # rows that are shuffled together
MANY_LANES = 1 / 3  # share of the rows whose chunks are cut as for a GPU or for a reader that waits: into many lanes
SHORTEST_LANE, LONGEST_LANE = 64, 4096  # bytes of such a lane


class Source(Protocol):
    """The source of chunks: `nnfs.train.corpus.Corpus`."""

    def sample(self, rng: random.Random) -> tuple[bytes, str]:
        """Return a chunk and its kind of data."""


class Rows(NamedTuple):
    """A batch of rows, or one row without the first axis."""

    rows: NDArray[np.int32]  # (batch, time, INPUTS)
    ngrams: NDArray[np.int32]  # (batch, time, 5)
    candidates: NDArray[np.int64]  # (batch, time, CANDIDATES)
    buckets: NDArray[np.int32]  # (batch, time, CANDIDATES)
    start: NDArray[np.int32]  # (batch, time): where in its row the position's lane begins
    target: NDArray[np.int64]  # (batch, time): the byte to predict, or PAD


def empty_row(time: int) -> Rows:
    """Return a row of `time` positions of which none counts."""
    return Rows(
        np.zeros((time, INPUTS), np.int32),
        np.zeros((time, len(NGRAMS)), np.int32),
        np.zeros((time, CANDIDATES), np.int64),
        np.zeros((time, CANDIDATES), np.int32),
        np.zeros(time, np.int32),
        np.full(time, PAD, np.int64),
    )


class Packer:
    """Cuts and packs chunks into rows of `time` positions: pieces of long lanes, and short lanes one after another."""

    def __init__(self, time: int, ngram_bits: int, dictionary: Dictionary | None = None) -> None:
        self.time = time
        self.ngram_bits = ngram_bits
        self.dictionary = dictionary
        self.row = empty_row(time)
        self.used = 0

    def add(self, chunk: bytes, rng: random.Random | None, lanes: int | None = None) -> Iterator[Rows]:
        """Add a chunk, cut into `lanes` or as the store cuts it, and yield the rows that are full.

        With `rng` it takes about PIECES rows: pieces of long lanes, or as many short ones; else all of the chunk.
        """
        plain = np.frombuffer(prepared(chunk)[0], np.uint8).copy()
        lanes = lanes or lanes_for(len(plain))
        all_features = features.of_chunk(plain, lanes, self.ngram_bits, self.dictionary)
        length = len(all_features.rows)
        if rng is None:
            pieces = [(lane, start) for lane in range(lanes) for start in range(0, length, self.time)]
        elif length < self.time:
            pieces = [(lane, 0) for lane in rng.sample(range(lanes), min(lanes, -(-PIECES * self.time // length)))]
        else:
            pieces = [
                (rng.randrange(lanes), rng.randrange(-self.time // 4, length - self.time + 1))
                for _ in range(min(PIECES, lanes * length // self.time))
            ]
        for lane, start in pieces:
            start = max(start, 0)
            known = min(length, len(plain) - lane * length) - start
            if known > 0:
                target = plain[lane * length + start :][: min(known, self.time)]
                yield from self._append(all_features, lane, start, target)

    def _append(
        self, all_features: features.Features, lane: int, start: int, target: NDArray[np.uint8]
    ) -> Iterator[Rows]:
        while len(target):
            take = min(self.time - self.used, len(target))
            if take < min(64, len(target)):  # a scrap is not worth a lane's cold start
                yield self._flush()
                continue
            here, there = slice(self.used, self.used + take), slice(start, start + take)
            fields: tuple[NDArray[Any], ...] = self.row[:4]
            for mine, theirs in zip(fields, all_features, strict=True):
                mine[here] = np.asarray(theirs)[there, lane]
            self.row.start[here] = self.used
            self.row.target[here] = target[:take]
            self.used += take
            start += take
            target = target[take:]
            if self.used == self.time:
                yield self._flush()

    def _flush(self) -> Rows:
        row, self.row, self.used = self.row, empty_row(self.time), 0
        return row

    def rest(self) -> Iterator[Rows]:
        """Yield the last row, if it holds anything."""
        if self.used:
            yield self._flush()


def many_lanes(size: int, rng: random.Random) -> int | None:
    """Return, for `MANY_LANES` of the chunks, a number of lanes of 64 to 4,096 bytes; None: as the store cuts them.

    The length of a lane is spread evenly over its logarithm. A chunk of `size` bytes gets two lanes at least.
    """
    longest = min(LONGEST_LANE, size // 2)
    if longest < SHORTEST_LANE or rng.random() >= MANY_LANES:
        return None
    return -(-size // round(SHORTEST_LANE * math.pow(longest / SHORTEST_LANE, rng.random())))


def stacked(rows: list[Rows]) -> Rows:
    """Return the rows as one batch."""
    return Rows(*(np.stack(fields) for fields in zip(*rows, strict=True)))


def batches(source: Source, batch: int, time: int, ngram_bits: int, seed: str) -> Iterator[tuple[Rows, dict[str, int]]]:
    """Yield shuffled batches for ever, each with the bytes of every kind taken since the last one."""
    rng = random.Random(seed)
    packer = Packer(time, ngram_bits)
    pool: list[Rows] = []
    seen: dict[str, int] = {}
    while True:
        while len(pool) < POOL:
            chunk, kind = source.sample(rng)
            if chunk:
                before = len(pool)
                pool.extend(packer.add(chunk, rng, many_lanes(len(chunk), rng)))
                seen[kind] = seen.get(kind, 0) + (len(pool) - before) * time
        chosen = []
        for _ in range(batch):
            at = rng.randrange(len(pool))
            pool[at], pool[-1] = pool[-1], pool[at]
            chosen.append(pool.pop())
        yield stacked(chosen), seen
        seen = {}
