"""Section 3: 64-bit words, and the tables that are made by formulas."""

from __future__ import annotations

from bisect import bisect_left

ONE = 1 << 96  # of the fixed point in which the tables are made
LIMIT = 2839
A, B = 0x2545F4914F6CDD1D, 0x1B873593CC9E2D51
C = 0x3C6EF372FE94F82B
W = 0x2F0B4C47


def signed(x: int) -> int:
    """The 64-bit two's complement word of an integer."""
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x


def clamp(x: int, least: int, most: int) -> int:
    """The nearest integer of a range."""
    return min(max(x, least), most)


# -- 3.2 stretch and squash


def _exponentials(count: int) -> list[int]:
    """E[k] = e^((2 k + 1) / 512)."""
    half = step = term_half = term_step = ONE
    for n in range(1, 30):
        term_half //= 512 * n
        term_step //= 256 * n
        half, step = half + term_half, step + term_step
    values = [half]
    while len(values) < count:
        values.append(values[-1] * step >> 96)
    return values


E = _exponentials(LIMIT)


def _stretch() -> list[int]:
    table = [0] * 65536
    for p in range(32769, 65536):
        table[p] = bisect_left(E, (p << 96) // (65536 - p))
        table[65536 - p] = -table[p]
    table[0] = -LIMIT
    return table


def _squash(bits: int) -> list[int]:
    powers = [ONE] + [e * E[0] >> 96 for e in E]
    upper = [((e << bits) + (e + ONE) // 2) // (e + ONE) for e in powers]
    return [(1 << bits) - p for p in reversed(upper[1:])] + upper


STRETCH = _stretch()
SQUASH = [clamp(p, 1, 65535) for p in _squash(16)]  # index: log-odds + LIMIT
FINE = _squash(24)
COARSE = STRETCH[8::16]

# -- 3.3 bit histories

_BOUNDS = (20, 48, 15, 8, 6, 5)


def _variants(n0: int, n1: int) -> int:
    low, high = min(n0, n1), max(n0, n1)
    if low < 0 or low > 5 or high > _BOUNDS[low]:
        return 0
    return 2 if low > 0 and n0 + n1 <= 17 else 1


def _after(n0: int, n1: int, bit: int) -> tuple[int, int]:
    if n0 < n1:
        a, b = _after(n1, n0, 1 - bit)
        return b, a
    if bit:
        n0, n1 = sum(n0 >= edge for edge in (1, 2, 3, 4, 5, 7, 8)), n1 + 1
    else:
        n0, n1 = n0 + 1, sum(n1 >= edge for edge in (1, 2, 3, 4, 5, 7, 8))
    while not _variants(n0, n1):
        if n1 < 2:
            n0 -= 1
        else:
            n0, n1 = (n0 * (n1 - 1) + n1 // 2) // n1, n1 - 1
    return n0, n1


def _histories() -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    first: dict[tuple[int, int], int] = {}
    count = 0
    for total in range(50):
        for n1 in range(total + 1):
            if number := _variants(total - n1, n1):
                first[total - n1, n1] = count
                count += number
    following, counts = [(0, 0)] * 256, [(0, 0)] * 256
    for (n0, n1), state in first.items():
        for variant in range(_variants(n0, n1)):
            counts[state + variant] = n0, n1
            zero, one = _after(n0, n1, 0), _after(n0, n1, 1)
            following[state + variant] = first[zero], first[one] + (_variants(*one) == 2)
    return following, counts


NEXT, COUNTS = _histories()

# -- 3.4 adaptive maps

_RECIPROCAL = [131072 // (2 * n + 3) for n in range(1024)]


def learn_entry(entries: list[int], at: int, bit: int, limit: int) -> None:
    """Move an entry towards a bit."""
    p, n = entries[at] >> 10, entries[at] & 1023
    p = clamp(p + (((bit << 22) - p >> 3) * _RECIPROCAL[n] >> 13), 0, (1 << 22) - 1)
    entries[at] = p << 10 | min(n + 1, limit)


def untrained_map() -> list[int]:
    """Return the probability that the counts of each history suggest."""
    return [((10 * n1 + 4) * 4194303 // (10 * (n0 + n1) + 8)) << 10 for n0, n1 in COUNTS]


def refining_map(count: int) -> list[int]:
    """33 cells that change nothing yet."""
    return [SQUASH[clamp(180 * i - 2880, -LIMIT, LIMIT) + LIMIT] << 16 | count for i in range(33)]
