# mypy: disable-error-code="no-untyped-def,no-any-return"
"""The match models: they follow an earlier occurrence of the last bytes, and predict the byte that came next there.

There are two, for 6 and for 16 equal bytes."""

from __future__ import annotations

import numpy as np

from nnfs.mixer.architecture import FIND_BITS, LEAST, P_BEGIN
from nnfs.mixer.compiling import njit
from nnfs.mixer.contexts import LENGTH, MISSES, POINT

_A = 0x2545F4914F6CDD1D


@njit(cache=True, nogil=True)
def follow(s, columns, lane, t, m):
    """Keep the match of model m in a lane, or search for one, before column t.

    s: the chunk's state (`Mix`). columns: bytes of a lane.
    """
    r = s.record[lane]
    start = s.parameters[P_BEGIN]
    base = start + lane * columns
    point, length = r[POINT + 3 * m], r[LENGTH + 3 * m]
    if t > 0 and point > 0:  # the byte before was expected at `point`
        if s.plain[point] == s.plain[base + t - 1]:
            if length < 65535:
                length += 1
            r[MISSES + 3 * m] = r[MISSES + 3 * m] << 1 & 7
        else:
            length = 0
            r[MISSES + 3 * m] = (r[MISSES + 3 * m] << 1 | 1) & 7
        point += 1
        if point >= s.plain.size or (point >= start and (point - start) % columns >= t):
            point, length = 0, 0
    least = LEAST[m]
    if length < least and t >= least:
        candidate = np.int64(s.find[m, match_hash(s.plain, base + t, least)]) - 1
        if candidate > 0:
            found = np.int64(0)
            room = min((candidate - start) % columns if candidate >= start else candidate, t)
            while found < min(room, 40) and s.plain[candidate - 1 - found] == s.plain[base + t - 1 - found]:
                found += 1
            if found >= least and found > length:
                point, length = candidate, found
                r[MISSES + 3 * m] = 0
    if point == 0:
        length = 0
    r[POINT + 3 * m], r[LENGTH + 3 * m] = point, length


@njit(cache=True, nogil=True)
def match_hash(plain, at, least):
    """Return the hash of the `least` bytes before a place."""
    h = np.int64(0)
    for i in range(1, least + 1):
        h = (h + plain[at - i] + 1) * 0x2F0B4C47
    h *= _A
    return h >> 40 & ((1 << FIND_BITS) - 1)


@njit(cache=True, nogil=True)
def length_class(length):
    """Return the class of a match length: 0..15."""
    if length < 8:
        return length
    found = np.int64(8)
    for bound in (12, 16, 24, 32, 64, 128, 512):
        if length < bound:
            return found
        found += 1
    return found
