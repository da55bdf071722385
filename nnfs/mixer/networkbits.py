# mypy: disable-error-code="no-untyped-def,no-any-return"
"""The bits that a network's frequencies of bytes give: the probability of each bit after the bits before it."""

from __future__ import annotations

import numpy as np

from nnfs.mixer.compiling import njit


@njit(cache=True, nogil=True)
def branch(frequencies, c0, k, total):
    """Return (sum, probability) of the bytes whose bit k is 1 among those that begin with the bits of c0."""
    width = 256 >> k
    first = c0 * width - 256 + (width >> 1)
    ones = np.int64(0)
    for i in range(first, first + (width >> 1)):
        ones += np.int64(frequencies[i])
    p = (ones << 16) // total
    return ones, min(max(p, 1), 65535)


@njit(cache=True, nogil=True)
def net_path(frequencies, bytes_, out):
    """Set `out` (rows, 8) uint16 to the probability of 1 of each bit of `bytes_` (rows,).

    frequencies: (rows, 256) uint32, sums < 2^31.
    """
    for row in range(bytes_.size):
        total = np.int64(0)
        for i in range(256):
            total += np.int64(frequencies[row, i])
        byte = np.int64(bytes_[row]) | 256
        for k in range(8):
            ones, p = branch(frequencies[row], byte >> (8 - k), k, total)
            out[row, k] = p
            total = ones if byte >> (7 - k) & 1 else total - ones
