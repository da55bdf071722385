"""The state of a chunk of records of numbers, for `nnfs.mixer.fields`."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nnfs.kernels.library import zeros
from nnfs.mixer.architecture import FIND_BITS, REFINED
from nnfs.mixer.contexts import RECORD
from nnfs.mixer.startvalues import untrained_maps, untrained_refine

CONTEXTS, INPUTS = 16, 48
GUESSES, INDIRECT, WAYS, BACK = 3, 2, 7, 3
MATCH, GUESS, ONE = 2 * CONTEXTS, 2 * CONTEXTS + 1, INPUTS - 1  # inputs
SETS = 6
SET_STARTS = (0, 16, 272, 528, 592, 848)
ROWS = 1552  # of weights
WEIGHT = 5000  # of an input at the start
MOST_LINES = 20  # binary logarithm of the most lines of the table: 16 MB

# Parameters of a chunk
LINES, STRIDE, WIDTH, SKIP, BIG = 0, 1, 2, 3, 4


class Fields(NamedTuple):
    """The state, as `Fields` of mixing.h has it, and after it what only numba's kernels need."""

    parameters: Any  # (5,) int64
    plain: Any  # (size,) uint8
    table: Any  # (16 lines,) uint8
    maps: Any  # (CONTEXTS, 256) uint32
    match_map: Any  # (1, 256) uint32
    guess_map: Any  # (GUESSES, 512) uint32
    delta: Any  # (GUESSES * 44 * 8, 256) uint32
    indirect: Any  # (2^16,) uint16
    weights: Any  # (ROWS, INPUTS) int32
    weights_last: Any  # (256, SETS) int32
    refine: Any  # (REFINED, CERTAIN) uint32
    find: Any  # (2^FIND_BITS,) int32
    record: Any  # (RECORD,) int64
    match: Any  # (3,) int64: point, length, misses
    numbers: Any  # (2, BACK + 3) int64: the field's in earlier records, and those to its left
    scores: Any  # (2, WAYS) int64: bits of the last errors, and whether there was none
    field: Any  # (3,) int64: place, the number above, what is known of this one
    guess: Any  # (GUESSES, 4) int64: byte, difference, hits, noise
    hashed: Any  # (CONTEXTS,) int64
    line: Any  # (CONTEXTS,) int64: of this nibble
    seen: Any  # (CONTEXTS,) int64: histories of this bit
    x: Any  # (INPUTS,) int64
    key: Any  # (24,) int64: see `nnfs.mixer.fields`


@cache
def _start_values() -> tuple[npt.NDArray[Any], ...]:
    """Return maps, match map, weights and refining maps at the start."""
    weights = np.zeros((ROWS, INPUTS), np.int32)
    weights[:, :CONTEXTS] = weights[:, MATCH : GUESS + 3 * GUESSES] = WEIGHT
    slot = np.arange(256)
    right = 4194303 - 4194303 // ((slot >> 4) * 2 + 3)
    match_map = (np.where(slot & 1, right, 4194303 - right) << 10).astype(np.uint32)
    return untrained_maps(CONTEXTS), match_map, weights, untrained_refine(REFINED, 6)


def lines(size: int) -> int:
    """Return the lines of the table for a chunk of `size` bytes: about 4 a byte."""
    return 1 << min(max((4 * size - 1).bit_length(), 10), MOST_LINES)


class FieldState:
    """Memory for one chunk at a time, used again and again."""

    def __init__(self) -> None:
        self._table = zeros((16 << MOST_LINES,), np.uint8)

    def start(self, plain: bytes | int, stride: int, width: int, skip: int, big: bool) -> Fields:
        """Return the state of a chunk to encode, or of so many bytes to decode; the one before ends."""
        size = plain if isinstance(plain, int) else len(plain)
        maps, match_map, weights, refine = _start_values()
        small = (RECORD,), (3,), (2, BACK + 3), (2, WAYS), (3,), (GUESSES, 4), *((CONTEXTS,),) * 3, (INPUTS,), (24,)
        count, half = lines(size), np.uint32(1 << 31)
        s = Fields(
            np.array((count, stride, width, skip, big), np.int64),
            np.zeros(size, np.uint8) if isinstance(plain, int) else np.frombuffer(plain, np.uint8).copy(),
            self._table[: 16 * count], maps.copy(), match_map[None].copy(), np.full((GUESSES, 512), half),
            np.full((GUESSES * 44 * 8, 256), half), np.zeros(1 << 16, np.uint16), weights.copy(),
            np.full((256, SETS), 65536 // SETS, np.int32), refine.copy(), np.zeros(1 << FIND_BITS, np.int32),
            *(np.zeros(shape, np.int64) for shape in small),
        )  # fmt: skip
        s.table[:] = 0
        return s
