"""The state of one chunk of codec 20, and the values that it starts from, trained offline (`nnfs.train.light`)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nnfs.kernels.library import zeros
from nnfs.mixer.architecture import FIND_BITS, REFINED, SETS
from nnfs.mixer.contexts import RECORD
from nnfs.mixer.logistic import STRETCH
from nnfs.mixer.startvalues import CERTAIN, untrained_refine

PATH = os.path.join(os.path.dirname(__file__), "light.npz")
CONTEXT = (0, 1, 2, 3, 4, 6, 7, 8, 9, 11, 12)  # of those in `nnfs.mixer.contexts`
CONTEXTS = len(CONTEXT)
INPUTS = 2 * CONTEXTS + 2
ROWS = 568  # of weights
LARGEST = 1 << 18  # bytes of a chunk
MOST_LINES = 18  # binary logarithm of the most lines of the table: 4 MB


@dataclass(frozen=True)
class LightValues:
    """The values that a chunk starts from; they are part of codec 20, so they never change."""

    maps: npt.NDArray[np.uint16]  # (CONTEXTS, 256): the probability that a history stands for, 0 for history 0
    match_map: npt.NDArray[np.uint32]  # (256,)
    weights: npt.NDArray[np.int32]  # (ROWS, INPUTS)
    weights_last: npt.NDArray[np.int32]  # (256, SETS)

    def pairs(self) -> npt.NDArray[np.int32]:
        """Return what a history adds to the inputs: a stretch in the low half, a slope in the high one."""
        slope = self.maps.astype(np.int32) - 32768 >> 5
        both: npt.NDArray[np.int32] = slope << 16 | STRETCH[self.maps].astype(np.int32) & 0xFFFF
        both[self.maps == 0] = 0
        return both


@cache
def light_values() -> LightValues:
    """Return the stored start values."""
    with np.load(PATH, allow_pickle=False) as stored:
        return LightValues(*(stored[name] for name in ("maps", "match_map", "weights", "weights_last")))


def save(values: LightValues, path: str = PATH) -> None:
    """Write start values."""
    with open(path, "wb") as file:
        np.savez_compressed(file, **vars(values))


class Light(NamedTuple):
    """The state, as `Light` of mixing.h has it, and after it what only numba's kernels need."""

    plain: Any  # (size,) uint8
    pairs: Any  # (CONTEXTS, 256) int32
    table: Any  # (16 lines,) uint8
    match_map: Any  # (256,) uint32
    weights: Any  # (ROWS, INPUTS) int32
    weights_last: Any  # (256, SETS) int32
    refine: Any  # (REFINED, CERTAIN) uint32
    find: Any  # (2^FIND_BITS,) int32
    record: Any  # (RECORD,) int64
    match: Any  # (3,) int64: point, length, misses
    hashed: Any  # (14,) int64
    line: Any  # (CONTEXTS,) int64: of this nibble
    seen: Any  # (CONTEXTS,) int64: histories of this bit
    x: Any  # (INPUTS,) int64
    key: Any  # (12,) int64: rows of weights, answers, total, refining rows, cell


def lines(size: int) -> int:
    """Return the lines of the table for a chunk of `size` bytes: about 2 a byte."""
    return 1 << min(max((2 * size - 1).bit_length(), 10), MOST_LINES)


class LightState:
    """Memory for one chunk at a time, used again and again."""

    def __init__(self) -> None:
        self._table = zeros((16 << MOST_LINES,), np.uint8)
        self._plain = zeros((LARGEST,), np.uint8)
        self._fixed = zeros((REFINED, CERTAIN), np.uint32), zeros((1 << FIND_BITS,), np.int32)
        self._maps = zeros((256,), np.uint32), zeros((ROWS, INPUTS), np.int32), zeros((256, SETS), np.int32)
        self._refine = untrained_refine(REFINED, 6)
        self._small = tuple(np.zeros(n, np.int64) for n in (RECORD, 3, 14, CONTEXTS, CONTEXTS, INPUTS, 12))
        self._pairs: tuple[LightValues, npt.NDArray[np.int32]] | None = None

    def start(self, plain: bytes | int, values: LightValues | None = None) -> Light:
        """Return the state of a chunk to encode, or of so many bytes to decode; the one before ends."""
        size = plain if isinstance(plain, int) else len(plain)
        values = values or light_values()
        if self._pairs is None or self._pairs[0] is not values:
            self._pairs = values, values.pairs()
        s = Light(
            self._plain[:size], self._pairs[1], self._table[: 16 * lines(size)], *self._maps, *self._fixed, *self._small
        )
        s.plain[:] = 0 if isinstance(plain, int) else np.frombuffer(plain, np.uint8)
        for array in (s.table, s.find, *self._small):
            array[:] = 0
        s.match_map[:], s.weights[:], s.weights_last[:] = values.match_map, values.weights, values.weights_last
        s.refine[:] = self._refine
        return s
