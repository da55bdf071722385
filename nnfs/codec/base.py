"""What a codec is: bytes to bytes, named by one id byte in the block header."""

from __future__ import annotations

from typing import Protocol

RAW, ZSTD = 0, 1
FIRST_COLD = 16  # ids from here on are cold codecs, slow to decode: their work is queued apart from the hot tier's


class Codec(Protocol):
    """Decoding needs nothing but payload, header and, for some codecs, a model."""

    id: int
    name: str

    def encode(self, plain: bytes) -> bytes | None:
        """Return the payload, or None when this codec does not make `plain` smaller."""

    def decode(self, payload: bytes, plain_length: int) -> bytes:
        """Return exactly `plain_length` bytes. Raises `CodecError` for any payload that does not hold them."""
