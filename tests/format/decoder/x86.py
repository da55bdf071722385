"""Section 8: addresses of x86 code."""

from __future__ import annotations


def displacement(a: bytearray, i: int) -> int:
    """Return the distance from i to the displacement of an instruction, 0 when there is none."""
    x, y, z = a[i], a[i + 1], a[i + 2]
    if x in (0xE8, 0xE9):
        return 1
    if x == 0x0F:
        return 2 if y & 0xF0 == 0x80 else 0
    if x == 0xFF:
        return 2 if y in (0x15, 0x25) else 0
    moves = (0x03, 0x2B, 0x39, 0x3B, 0x63, 0x89, 0x8B, 0x8D)
    return 3 if x & 0xFB == 0x48 and y in moves and z & 0xC7 == 0x05 else 0


def relative(converted: bytes) -> bytes:
    """Make absolute addresses relative again."""
    a = bytearray(converted)
    for i in range(len(a) - 7):
        n = displacement(a, i)
        if n == 0 or a[i + n + 3] not in (0, 255):
            continue
        v = int.from_bytes(a[i + n : i + n + 4], "little") - (i + n + 4) & (1 << 25) - 1
        a[i + n : i + n + 4] = (v & 0xFFFFFF).to_bytes(3, "little") + (b"\xff" if v >> 24 else b"\0")
    return bytes(a)
