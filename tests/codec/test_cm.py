"""The classical cold codec: every kind of payload comes back, layouts are recognised, bad payloads are refused."""

from __future__ import annotations

import hashlib
import math
import random
import struct

import numpy as np
import pytest

from nnfs.codec.cm import FIELDS, GENERIC, NUMBERS, RECORDS, X86, ContextMixing
from nnfs.codec.layout import propose, record_length
from nnfs.errors import CodecError

CODEC = ContextMixing()
TEXT = b"".join(b"%d: what was said of %d\n" % (n, n * n % 97) for n in range(3000))


def picture(channels: int, width: int, height: int, seed: int = 1) -> bytes:
    """Return smooth waves with noise."""
    noise = np.random.default_rng(seed)
    y, x, c = np.mgrid[:height, :width, :channels]
    wave = 128 + 70 * np.sin(x / 17 + c) * np.cos(y / 23) + noise.normal(0, 2, x.shape)
    return bytes(wave.clip(0, 255).astype(np.uint8))


def sound(channels: int, count: int, kind: str) -> bytes:
    """Return a chord with noise."""
    noise = np.random.default_rng(2)
    t = np.arange(count)[:, None]
    wave = 9000 * np.sin(t / 9 + np.arange(channels)) + 3000 * np.sin(t / 31) + noise.normal(0, 20, (count, channels))
    if kind == "u1":
        return bytes((128 + wave / 120).astype(np.uint8))
    return bytes(wave.astype(kind))


def records(count: int) -> bytes:
    source = random.Random(3)
    return b"".join(
        struct.pack("<IHHQ4s", n, source.randrange(50), 7, source.randrange(1 << 40), b"abcd") for n in range(count)
    )


def code() -> bytes:
    source, made = random.Random(4), bytearray()
    while len(made) < 6000:
        made += b"\x48\x89\xe5\x53" + b"\xe8" + struct.pack("<i", source.choice([9000, 12345]) - len(made) - 9)
        made += bytes([0x8B, source.randrange(64)])
    return bytes(made)


CASES = {
    "text": (TEXT[:8000], GENERIC),
    "one byte": (b"a" * 9, GENERIC),
    "code": (code(), GENERIC + X86),
    "records": (records(400), FIELDS),
    "rgb": (picture(3, 100, 60), NUMBERS),
    "grey": (picture(1, 120, 90), NUMBERS),
    "rgba, cut": (b"header!" + picture(4, 64, 50)[:-1], NUMBERS),
    "16 bit stereo": (sound(2, 4000, "<i2"), NUMBERS),
    "16 bit mono, odd": (b"x" + sound(1, 4000, "<i2") + b"y", NUMBERS),
    "16 bit big-endian": (sound(1, 4000, ">i2"), NUMBERS),
    "8 bit": (sound(1, 8000, "u1"), NUMBERS),
}


@pytest.mark.parametrize("case", CASES)
def test_round_trip(case: str) -> None:
    plain, kind = CASES[case]
    payload = CODEC.encode(plain)
    assert payload is not None
    assert payload[0] & ~RECORDS == kind & ~RECORDS if kind in (GENERIC, RECORDS) else payload[0] == kind
    assert len(payload) < len(plain)
    assert CODEC.decode(payload, len(plain)) == plain


def test_frozen() -> None:
    """The format: what an older version wrote must stay readable. Compare byte for byte."""
    for case, digest in FROZEN.items():
        plain = CASES[case][0]
        payload = CODEC._mix(plain, 20) if case == "records" else CODEC.encode(plain)  # FIELDS: test_fields.py
        assert payload is not None
        assert (len(payload), hashlib.sha256(payload).hexdigest()[:16]) == digest, case


def test_small() -> None:
    assert CODEC.encode(b"") is None
    assert CODEC.encode(random.Random(5).randbytes(300)) is None
    text = b"The quick brown fox jumps over the lazy dog, and the dog does not mind it. " * 4
    payload = CODEC.encode(text)
    assert payload is not None
    assert len(payload) < 90


def test_layouts() -> None:
    best = propose(np.frombuffer(picture(3, 100, 60), np.uint8))[0]
    assert (best.size, best.channels, best.stride) == (1, 3, 300)
    found = propose(np.frombuffer(sound(1, 4000, ">i2"), np.uint8))
    assert any((one.size, one.big, one.skip) == (2, True, 0) for one in found)
    assert record_length(np.frombuffer(records(400), np.uint8)) == 20
    assert propose(np.frombuffer(TEXT, np.uint8)) == []


@pytest.mark.parametrize("case", ["text", "code", "records", "rgb", "16 bit stereo"])
def test_damage(case: str) -> None:
    plain, _ = CASES[case]
    payload = CODEC.encode(plain)
    assert payload is not None
    source = random.Random(7)
    for _ in range(12):
        at = source.randrange(len(payload))
        flipped = payload[:at] + bytes([payload[at] ^ 1 << source.randrange(8)]) + payload[at + 1 :]
        for bad in (payload[:at], flipped, bytes([payload[0]]) + source.randbytes(at)):
            try:
                assert CODEC.decode(bad, len(plain)) != plain  # nothing shows it but the chunk's hash
            except CodecError:
                pass


HEADS = [b"", b"\x03", b"\x01", b"\x01\0\0abc", b"\x02", b"\x02\xff\0\0", b"\x02\x60\0\0ab", b"\xff" * 40]


@pytest.mark.parametrize("payload", HEADS)
def test_impossible_heads(payload: bytes) -> None:
    with pytest.raises(CodecError):
        CODEC.decode(payload, 100)
    with pytest.raises(CodecError):
        CODEC.decode(payload, 0)


def test_entropy_of_noise_is_reached() -> None:
    """Noise of a known width around a smooth curve costs what it must, and little more."""
    noise = np.random.default_rng(8)
    wave = 5000 * np.sin(np.arange(12000) / 40) + noise.normal(0, 30, 12000)
    plain = wave.astype("<i2").tobytes()
    payload = CODEC.encode(plain)
    assert payload is not None
    least = 12000 * math.log2(30 * math.sqrt(2 * math.pi * math.e)) / 8
    assert least < len(payload) < least * 1.04


FROZEN: dict[str, tuple[int, str]] = {
    "text": (344, "a0d875128cbc73a8"),
    "code": (525, "9d77b29bb8e65700"),
    "records": (2620, "001c559e23f97901"),
    "rgb": (7544, "cc16fa96e1303f6c"),
    "16 bit stereo": (6798, "558bdb40fd8155a6"),
}
