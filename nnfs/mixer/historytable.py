# mypy: disable-error-code="no-untyped-def,no-any-return"
"""The hash table of bit histories: for each context and nibble a line with a check byte and 15 histories.

A line may lie at one of three places. If all are taken by other contexts, the line whose first history is worth least
is replaced."""

from __future__ import annotations

import numpy as np

from nnfs.mixer.compiling import njit

_A = 0x2545F4914F6CDD1D


@njit(cache=True, nogil=True)
def _line_of(table, h, c0):
    """Return (first place, check) for a context hash at a nibble (c0 = 1, or 16..31)."""
    h = (h + c0 * 0x3C6EF372FE94F82B) * _A
    h ^= h >> 32
    mask = (table.size >> 4) - 1
    return h & mask, h >> 40 & 0xFF


@njit(cache=True, nogil=True)
def find(table, h, c0):
    """Return the place of a nibble's histories in the table, -1 where there are none.

    table: (16 lines,) uint8, a power of two of lines. h: the context's hash. c0: 1, or 16..31 for the second nibble.
    """
    place, check = _line_of(table, h, c0)
    for i in range(3):
        at = (place ^ i) << 4
        if table[at] == check:
            return at
    return np.int64(-1)


@njit(cache=True, nogil=True)
def find_or_make(table, h, c0, found):
    """Return the place of a nibble's histories in the table; if need be, they replace histories that were seen less.

    table, h, c0: as for `find`. found: the place that it returned before.
    """
    place, check = _line_of(table, h, c0)
    if found >= 0 and table[found] == check:  # other lanes may have taken the place since
        return found
    worst, least = np.int64(0), np.int64(1 << 30)
    for i in range(3):
        at = (place ^ i) << 4
        if table[at] == check:
            return at
        value = np.int64(table[at + 1])
        if value < least:
            worst, least = at, value
    for j in range(16):
        table[worst + j] = 0
    table[worst] = check
    return worst
