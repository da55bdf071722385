# mypy: disable-error-code="no-untyped-def,no-any-return"
"""The x86 filter: it makes relative addresses absolute, so that calls of one function look the same; and back.

It converts the 32-bit displacements of call and jmp (E8, E9), of near conditional jumps (0F 80..8F), of call and
jmp through memory (FF 15, FF 25) and of common instructions with REX prefix and RIP-relative operand, where they
reach less than 16 MiB either way. "Absolute" counts from the chunk's start, modulo 2^25. Each conversion keeps what
it is recognised by, so it can be undone; they are done from the end to the start and undone from the start to the
end, as they may overlap (the order is ZPAQ's)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nnfs.mixer.compiling import njit

Bytes = npt.NDArray[np.uint8]
ENOUGH = 256  # one displacement in so many bytes makes code


@njit(cache=True, nogil=True)
def _displacement(a, i):
    """Return the distance from i to the displacement of an instruction that starts at i, 0 where there is none."""
    x = a[i]
    if x == 0xE8 or x == 0xE9:
        return 1
    y = a[i + 1]
    if x == 0x0F:
        return 2 if y & 0xF0 == 0x80 else 0
    if x == 0xFF:
        return 2 if y == 0x15 or y == 0x25 else 0
    # mov, lea, cmp, add, sub, movsxd; without the prefix the same bytes are absolute already in 32-bit code
    if (
        x & 0xFB == 0x48
        and a[i + 2] & 0xC7 == 0x05
        and (y == 0x8B or y == 0x8D or y == 0x89 or y == 0x3B or y == 0x39 or y == 0x03 or y == 0x2B or y == 0x63)
    ):
        return 3
    return 0


@njit(cache=True, nogil=True)
def convert(a, sign):
    """Convert in place (sign 1: to absolute, -1: back), and return the number of displacements."""
    count = 0
    for step in range(a.size - 7):
        i = step if sign < 0 else a.size - 8 - step
        n = _displacement(a, i)
        at = i + n
        if n == 0 or not (a[at + 3] == 0 or a[at + 3] == 0xFF):
            continue
        v = np.int64(a[at]) | np.int64(a[at + 1]) << 8 | np.int64(a[at + 2]) << 16 | np.int64(a[at + 3]) << 24
        v = (v + sign * (at + 4)) & 0x1FFFFFF
        a[at], a[at + 1], a[at + 2] = v & 0xFF, v >> 8 & 0xFF, v >> 16 & 0xFF
        a[at + 3] = 0xFF if v >> 24 else 0
        count += 1
    return count


def absolute(plain: bytes) -> bytes | None:
    """Return the chunk with absolute addresses, None where it does not look like x86 code."""
    a = np.frombuffer(plain, np.uint8).copy()
    return a.tobytes() if convert(a, 1) * ENOUGH > a.size else None


def relative(converted: bytes) -> bytes:
    """Undo `absolute`."""
    a = np.frombuffer(converted, np.uint8).copy()
    convert(a, -1)
    return a.tobytes()
