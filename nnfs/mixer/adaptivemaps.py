# mypy: disable-error-code="no-untyped-def,no-any-return,assignment"
"""Adaptive maps: probabilities that are learned from the bits that follow a state, faster while few were seen.

An entry has a probability of 22 bits above a count of 10 bits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nnfs.mixer.compiling import njit


def _reciprocals() -> npt.NDArray[np.int64]:
    return np.array([65536 * 2 // (2 * n + 3) for n in range(1024)], np.int64)  # 65536 / (n + 1.5)


_RECIPROCAL = _reciprocals()


@njit(cache=True, nogil=True)
def learn_entry(array, i, j, bit, limit):
    """Move entry (i, j) of an adaptive map, a uint32 array, towards a bit; its count grows up to `limit`."""
    v = np.int64(array[i, j])
    p, n = v >> 10, v & 1023
    p += (((bit << 22) - p) >> 3) * _RECIPROCAL[n] >> 13
    if p < 0:
        p = 0
    elif p > 4194303:
        p = 4194303
    if n < limit:
        n += 1
    elif n > limit:
        n = limit
    array[i, j] = p << 10 | n
