"""The training corpus: one file of plain files end to end, an index, and how to draw chunks from it.

On disk, for a corpus named C: ``C`` holds the plain bytes of all files, one after another; ``C.npy`` one `ENTRY` for
each file, in order; ``C.json`` the names of kinds and sources, the weights of the kinds, and where all of it came from;
``C.txt`` the same for people.
"""

from __future__ import annotations

import json
import random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CHUNK = 128 * 1024
ENTRY = np.dtype([("offset", "<u8"), ("length", "<u4"), ("kind", "<u2"), ("source", "<u2"), ("held", "?")])


class _Chunks(NamedTuple):
    """The places of all chunks of one kind."""

    offset: NDArray[np.int64]  # (chunks,): in the data
    length: NDArray[np.int64]  # (chunks,): 1 to CHUNK bytes
    odds: NDArray[np.float64]  # (chunks,): running sum of how often each is to be drawn


class Corpus:
    """A corpus, memory-mapped, to draw chunks from.

    `split` is "train", or "held" for the one percent of the files kept aside. Of each chunk drawn the caller uses
    `take` bytes (the whole chunk when it is shorter): the odds are such that the *bytes used* are spread evenly over
    the files of a kind, and over the kinds as their weights say. Small files are so drawn more often.

    Raises OSError when there is no corpus at `path`, ValueError when its parts do not fit together.
    """

    def __init__(self, path: str, split: str = "train", take: int = CHUNK) -> None:
        with open(path + ".json", encoding="utf-8") as file:
            about: dict[str, Any] = json.load(file)
        self.data = np.memmap(path, np.uint8, "r")
        index = np.load(path + ".npy")
        if index.dtype != ENTRY or (
            len(index) and int(index[-1]["offset"]) + int(index[-1]["length"]) != len(self.data)
        ):
            raise ValueError(f"{path}: the index does not belong to the data")
        self.index = index[index["held"] == (split == "held")]
        self.kinds: list[str] = about["kinds"]
        self.sources: list[str] = about["sources"]
        self.weights: dict[str, float] = about["weights"]
        self._chunks: dict[str, _Chunks] = {}
        self._odds: dict[str, float] = {}
        for number, kind in enumerate(self.kinds):
            files = self.index[self.index["kind"] == number]
            if len(files) and self.weights.get(kind, 0) > 0:
                chunks = _cut(files, take)
                self._chunks[kind] = chunks
                self._odds[kind] = self.weights[kind] * float(chunks.odds[-1]) / float(chunks.length.sum())

    def sample(self, rng: random.Random, kind: str | None = None) -> tuple[bytes, str]:
        """Draw a chunk (at most `CHUNK` bytes, cut as the store cuts files); return it and its kind."""
        if kind is None:
            (kind,) = rng.choices(list(self._odds), list(self._odds.values()))
        chunks = self._chunks[kind]
        number = int(np.searchsorted(chunks.odds, rng.random() * float(chunks.odds[-1]), "right"))
        offset = int(chunks.offset[number])
        return self.data[offset : offset + int(chunks.length[number])].tobytes(), kind

    def file(self, entry: Any) -> bytes:
        """Return all of a file of the index."""
        return self.data[int(entry["offset"]) : int(entry["offset"]) + int(entry["length"])].tobytes()


def _cut(files: Any, take: int) -> _Chunks:
    count = (files["length"].astype(np.int64) + CHUNK - 1) // CHUNK  # (files,)
    first = np.repeat(np.cumsum(count) - count, count)  # (chunks,): number of the first chunk of its file
    start = (np.arange(len(first)) - first) * CHUNK
    length = np.minimum(np.repeat(files["length"].astype(np.int64), count) - start, CHUNK)
    odds = np.cumsum(length / np.minimum(length, take))
    return _Chunks(np.repeat(files["offset"].astype(np.int64), count) + start, length, odds)
