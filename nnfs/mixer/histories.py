"""Bit histories: the bits that one context has seen, as one byte (the indirect states of ZPAQ and lpaq, Mahoney).

A state stands for the numbers of zeros and ones seen (bounded, old evidence against the last bit discounted) and,
while there are few, for the last bit. State 0 has seen nothing; states are numbered by rising total, so that a
smaller one is worth less."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_BOUNDS = (20, 48, 15, 8, 6, 5)  # index: the smaller count, value: how large the other may get
_RECENT = 17  # up to this total a state with both bits in it also knows which came last


def _variants(n0: int, n1: int) -> int:
    """Return how many states stand for these counts."""
    if n0 < n1:
        n0, n1 = n1, n0
    if n1 < 0 or n1 >= len(_BOUNDS) or n0 > _BOUNDS[n1]:
        return 0
    return 2 if n1 > 0 and n0 + n1 <= _RECENT else 1


def _next(n0: int, n1: int, bit: int) -> tuple[int, int]:
    """Return the counts after one more bit."""
    if n0 < n1:
        a, b = _next(n1, n0, 1 - bit)
        return b, a
    if bit:
        n1 += 1
        n0 = sum(n0 >= edge for edge in (1, 2, 3, 4, 5, 7, 8))
    else:
        n0 += 1
        n1 = sum(n1 >= edge for edge in (1, 2, 3, 4, 5, 7, 8))
    while not _variants(n0, n1):
        if n1 < 2:
            n0 -= 1
        else:
            n0 = (n0 * (n1 - 1) + n1 // 2) // n1
            n1 -= 1
    return n0, n1


def _tables() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return (next state by state and bit, the counts of zeros and ones of each state)."""
    first: dict[tuple[int, int], int] = {}
    count = 0
    for total in range(50):
        for n1 in range(total + 1):
            n0 = total - n1
            if _variants(n0, n1):
                first[n0, n1] = count
                count += _variants(n0, n1)
    following = np.zeros((256, 2), np.uint8)
    counts = np.zeros((256, 2), np.uint8)
    for (n0, n1), state in first.items():
        for variant in range(_variants(n0, n1)):
            counts[state + variant] = n0, n1
            for bit in (0, 1):
                after = _next(n0, n1, bit)
                following[state + variant, bit] = first[after] + (bit if _variants(*after) == 2 else 0)
    return following, counts


NEXT, COUNTS = _tables()  # (256, 2) each
