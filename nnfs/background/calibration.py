"""Chunks to measure codecs with: one for each kind of content that the classical codec treats in its own way."""

from __future__ import annotations

import enum
import random
import struct
from functools import cache

from nnfs.codec.base import CM

SIZE = 1 << 17  # bytes of a chunk
X86 = 16  # bit of a payload's first byte, see the codec's format


class Kind(enum.Enum):
    """How a payload is decoded, as far as that makes it quicker or slower. The network takes all alike."""

    TEXT = ""
    RECORDS = "records"
    SAMPLES = "samples"  # sound, pictures
    X86 = "x86"


SPECIAL = (Kind.RECORDS, Kind.SAMPLES, Kind.X86)


def kind_of(codec: int, payload: bytes) -> Kind:
    """Return the kind of a payload."""
    if codec != CM or not payload:
        return Kind.TEXT
    if payload[0] & X86:
        return Kind.X86
    return {1: Kind.RECORDS, 2: Kind.SAMPLES}.get(payload[0], Kind.TEXT)


@cache
def sample(kind: Kind) -> bytes:
    """Return a chunk of a kind, the same one for ever."""
    chance = random.Random(0)
    if kind is Kind.SAMPLES:  # 16 bits, two channels: two slow waves and some noise
        waves = (abs(n % 400 - 200) * 60 + abs(n % 91 - 45) * 40 - 6000 for n in range(SIZE // 4))
        values = [wave + chance.randrange(-64, 64) for wave in waves]
        return b"".join(struct.pack("<hh", value, value * 3 // 4 + chance.randrange(-32, 32)) for value in values)
    if kind is Kind.RECORDS:
        records = (
            struct.pack("<IHHQII", n * 7, n % 12, chance.randrange(500), n * 60, chance.randrange(1 << 16), 0)
            for n in range(SIZE // 24 + 1)
        )
        return b"".join(records)[:SIZE]
    if kind is Kind.X86:
        targets = [chance.randrange(1 << 20) for _ in range(40)]
        code = bytearray()
        while len(code) < SIZE:
            code += b"\x48\x89\xc7\x31\xc0" + bytes(chance.choices(b"\x55\x53\x5d\xc3\x90\x8b\x45\xf8", k=6))
            code += b"\xe8" + struct.pack("<i", chance.choice(targets) - len(code) - 5)
        return bytes(code[:SIZE])
    words = [bytes(chance.choices(b"abcdefghijklmnoprstuvwy", k=chance.randrange(1, 9))) for _ in range(600)]
    return b" ".join(chance.choices(words, k=SIZE // 4))[:SIZE]
