"""The hot codecs: round trips, early decisions, bad payloads."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnfs import codec
from nnfs.codec.base import RAW, ZSTD
from nnfs.errors import CodecError

CHUNK = 128 * 1024
TEXT = b"".join(b"line %d of a log, status=%d\n" % (n, n % 7) for n in range(5000))[:CHUNK]


@pytest.mark.parametrize(
    ("plain", "expected"),
    [
        (TEXT, ZSTD),
        (random.Random(1).randbytes(CHUNK), RAW),
        (random.Random(2).randbytes(16384) * 8, ZSTD),  # repeats further apart than the samples are long
        (random.Random(3).randbytes(CHUNK - 65536) + bytes(65536), ZSTD),
        (b"x", RAW),
        (b"", RAW),
        (b"abc" * 100, ZSTD),
    ],
)
def test_choice_and_round_trip(plain: bytes, expected: int) -> None:
    number, payload = codec.encode_hot(plain)
    assert number == expected
    assert len(payload) <= len(plain)
    assert codec.decode(number, payload, len(plain)) == plain


@settings(derandomize=True, max_examples=60)
@given(st.binary(max_size=3000), st.integers(1, 60))
def test_any_bytes(piece: bytes, times: int) -> None:
    plain = piece * times
    number, payload = codec.encode_hot(plain)
    assert len(payload) <= len(plain)
    assert codec.decode(number, payload, len(plain)) == plain


@settings(derandomize=True, max_examples=200)
@given(st.sampled_from([RAW, ZSTD, 7, 255]), st.binary(max_size=300), st.integers(0, CHUNK))
def test_arbitrary_payloads_never_give_other_lengths(number: int, payload: bytes, length: int) -> None:
    try:
        plain = codec.decode(number, payload, length)
    except CodecError:
        return
    assert len(plain) == length


def test_damaged_zstd_payloads() -> None:
    number, payload = codec.encode_hot(TEXT)
    for cut in (0, 1, len(payload) // 2, len(payload) - 1):
        with pytest.raises(CodecError):
            codec.decode(number, payload[:cut], len(TEXT))
    with pytest.raises(CodecError):
        codec.decode(number, payload + b"x", len(TEXT))
    with pytest.raises(CodecError):
        codec.decode(number, payload, len(TEXT) - 1)


def test_a_bomb_is_bounded() -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1 << 28))
    with pytest.raises(CodecError):
        codec.decode(ZSTD, bomb, CHUNK)
