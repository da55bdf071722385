"""Content-defined shingles, by which the share of a file that was seen before is estimated.

At every offset whose next 8 bytes hash to 0 mod `STRIDE`, the 64 bytes from there are one shingle (Broder 1997, with
anchors chosen by content as in LBFS, so that a shift does not change them). Shingles of period 8 (runs of zeros, rules
of dashes) say nothing and are left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STRIDE = 32  # one shingle in so many bytes, on average
WIDTH = 64
_MIX = np.uint64(0x9E3779B97F4A7C15)
_MIX2 = np.uint64(0xC2B2AE3D27D4EB4F)
Hashes = NDArray[np.uint64]  # (shingles,)


def shingles(data: bytes) -> Hashes:
    """Return the 64-bit hashes of the shingles of `data`, in order, duplicates included."""
    count = len(data) - WIDTH + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    words = np.empty(len(data) - 7, np.uint64)  # the 8 bytes from every offset
    for shift in range(8):
        part = np.frombuffer(data, "<u8", (len(data) - shift) // 8, shift)
        words[shift::8] = part[: len(words[shift::8])]
    with np.errstate(over="ignore"):
        anchors = np.flatnonzero((words[:count] * _MIX) >> np.uint64(32 + 27) == 0)
        anchors = anchors[words[anchors] != words[anchors + 8]]
        hashes = np.zeros(len(anchors), np.uint64)
        for offset in range(0, WIDTH, 8):
            hashes = (hashes ^ words[anchors + offset]) * _MIX2
            hashes ^= hashes >> np.uint64(29)
    return hashes


class Seen:
    """A set of hashes as a bit table: no false negatives, false positives about (members / bits)."""

    def __init__(self, log2_bits: int = 30) -> None:
        self._shift = np.uint64(64 - log2_bits)
        self._bits = np.zeros(1 << (log2_bits - 3), np.uint8)

    def add(self, hashes: Hashes) -> None:
        place = (hashes * _MIX) >> self._shift
        np.bitwise_or.at(self._bits, place >> np.uint64(3), np.uint8(1) << (place & np.uint64(7)).astype(np.uint8))

    def share(self, hashes: Hashes) -> float:
        """Return the share of `hashes` that are in the set, 0 to 1; 0 for no hashes."""
        if len(hashes) == 0:
            return 0.0
        place = (hashes * _MIX) >> self._shift
        found = self._bits[place >> np.uint64(3)] >> (place & np.uint64(7)).astype(np.uint8) & 1
        return float(found.mean())
