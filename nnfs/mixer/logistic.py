"""The logistic domain in integers: `stretch` = ln(p / (1 - p)) and its inverse `squash`, as tables.

Units: a probability is a count of 1/65536 in [1, 65535], a log-odds value (a "stretch") a count of 1/256 nat, within
+-`LIMIT`. The tables are made by exact integer arithmetic (no exp or log of the machine), so they are the same
everywhere."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import numpy.typing as npt

UNIT = 256  # per nat
LIMIT = 2839  # ln(65535) in units: the log-odds of the most certain probability
_BITS = 96  # of the fixed point


def _exponentials(count: int) -> list[int]:
    """Return e^((k + 1/2) / UNIT) for k < count, in fixed point; by Taylor series, rounded down at each step."""
    one = 1 << _BITS
    half, step, term_half, term_step = one, one, one, one
    for n in range(1, 30):
        term_half //= n * 2 * UNIT
        term_step //= n * UNIT
        half += term_half
        step += term_step
    values = [half]
    while len(values) < count:
        values.append(values[-1] * step >> _BITS)
    return values


def _stretch() -> npt.NDArray[np.int16]:
    """Return the log-odds of every probability: the nearest unit."""
    edges = _exponentials(LIMIT)
    table = np.zeros(65536, np.int16)
    for p in range(32769, 65536):
        value = bisect_left(edges, (p << _BITS) // (65536 - p))
        table[p], table[65536 - p] = value, -value
    table[0] = -LIMIT
    return table


def _squash(bits: int, limit: int) -> npt.NDArray[np.int64]:
    """Return the probability (2^bits = 1) of each log-odds value from -limit to limit; index 0 is -limit."""
    one = 1 << _BITS
    root = _exponentials(1)[0]  # e^(1/512), to get from the half steps to the whole ones
    powers = [one] + [e * root >> _BITS for e in _exponentials(limit)]
    upper = [((e << bits) + (e + one) // 2) // (e + one) for e in powers]
    return np.array([(1 << bits) - p for p in upper[:0:-1]] + upper, np.int64)


STRETCH = _stretch()  # (65536,) by probability
SQUASH = np.clip(_squash(16, LIMIT), 1, 65535).astype(np.int32)  # (2 * LIMIT + 1,) by log-odds + LIMIT
FINE = _squash(24, LIMIT).astype(np.int32)  # the same with 24 bits
COARSE = STRETCH[8::16].copy()  # (4096,) by the upper 12 bits: small enough for the first-level cache
