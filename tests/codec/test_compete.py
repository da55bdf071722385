from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from nnfs.codec import decode
from nnfs.codec.base import RAW, ZSTD, nothing
from nnfs.codec.compete import Payload, compressible, encode_many
from nnfs.errors import CodecError

TEXT = b"the same words again and again, " * 64
NOISE = os.urandom(4096)


class Claims:
    """Says that everything becomes `size` bytes, and gives back `answer`, or what it was given."""

    batch = 1 << 20
    name = "claims"

    def __init__(self, number: int, size: int, answer: bytes | CodecError | None = None) -> None:
        self.id, self.size, self.answer = number, size, answer
        self.asked: list[bytes] = []

    def encode(self, plain: bytes) -> bytes | None:
        return self.encode_many([plain])[0]

    def decode(self, payload: bytes, plain_length: int) -> bytes:
        raise NotImplementedError

    def encode_many(self, plains: Sequence[bytes], between: Callable[[], None] = nothing) -> list[bytes | None]:
        self.asked += plains
        return [bytes(self.size) if self.size < len(plain) else None for plain in plains]

    def decode_many(
        self, payloads: Sequence[tuple[bytes, int]], between: Callable[[], None] = nothing
    ) -> list[bytes | CodecError]:
        return [self.answer or self.asked[-1] for _ in payloads]


def test_the_smallest_wins() -> None:
    assert encode_many([Claims(16, 9), Claims(17, 8), Claims(18, 10)], [TEXT]) == [Payload(17, bytes(8))]


def test_a_codec_that_lies_loses_to_the_next() -> None:
    wrong, broken = Claims(16, 5, b"something else"), Claims(17, 6, CodecError("cannot"))
    assert encode_many([wrong, broken, Claims(18, 9)], [TEXT]) == [Payload(18, bytes(9))]


def test_without_a_cold_codec_that_works_it_is_zstd() -> None:
    ((codec, data),) = encode_many([Claims(16, 5, b"something else")], [TEXT])
    assert codec == ZSTD
    assert decode(codec, data, len(TEXT)) == TEXT


def test_what_does_not_get_smaller_stays_raw_and_costs_no_time() -> None:
    codec = Claims(16, 9)
    assert encode_many([codec], [NOISE, b"", b"x"]) == [Payload(RAW, NOISE), Payload(RAW, b""), Payload(RAW, b"x")]
    assert NOISE not in codec.asked


def test_no_larger_than_zstd() -> None:
    ((codec, _),) = encode_many([Claims(16, len(TEXT) - 1)], [TEXT])
    assert codec == ZSTD


def test_compressible() -> None:
    assert compressible(TEXT)
    assert compressible(bytes(100))
    assert compressible(NOISE + NOISE)
    assert not compressible(NOISE)
    assert not compressible(b"")
