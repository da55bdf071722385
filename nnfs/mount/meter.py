"""The meter of a mount: counts of its requests, as plain integers, since a request must hardly notice.

A histogram is a list: place b counts values of b bits, from 2^(b-1) to 2^b - 1, and the last place has their sum. That
costs 0.3 us for each request; a histogram of a metrics library costs 2 us. `metrics` makes its text of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import accumulate

BITS = 64  # of the largest value; larger ones do not occur
SUM = BITS + 1  # place of the sum of all values

Counts = list[int]


def histogram() -> Counts:
    """Return an empty histogram."""
    return [0] * (SUM + 1)


class Meter:
    """Requests and commits of one mount. Changed by the event loop's thread only."""

    def __init__(self) -> None:
        self.nanoseconds: defaultdict[str, Counts] = defaultdict(histogram)  # by operation
        self.errors: Counter[tuple[str, int]] = Counter()  # by operation and errno
        self.commits = histogram()  # nanoseconds
        self.read, self.written = histogram(), histogram()  # bytes of requests

    def committed(self, taken: int) -> None:
        """Count a commit that took so many nanoseconds."""
        self.commits[taken.bit_length()] += 1
        self.commits[SUM] += taken


def quantile(counts: Counts, share: float) -> int:
    """Return a bound, a power of two, below which at least this share of the values is; 0 without values."""
    wanted, below = share * total(counts), 0
    for bits, count in enumerate(counts[: BITS + 1]):
        below += count
        if below and below >= wanted:
            return 1 << bits
    return 0


def cumulated(counts: Counts, first: int, last: int) -> list[tuple[int, int]]:
    """Return (bound, how many values are smaller) for the bounds 2^first to 2^last. The rest is larger."""
    below = list(accumulate(counts[: BITS + 1]))
    return [(1 << bits, below[bits]) for bits in range(first, last + 1)]


def total(counts: Counts) -> int:
    """Return how many values a histogram has."""
    return sum(counts[: BITS + 1])


def count(counts: Counts, value: int) -> None:
    """Count one value."""
    counts[value.bit_length()] += 1
    counts[SUM] += value
