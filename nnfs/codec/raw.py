"""The codec that stores bytes as they are."""

from __future__ import annotations

from nnfs.codec.base import RAW
from nnfs.errors import CodecError


class Raw:
    """The identity: the payload is the chunk, for data that does not compress."""

    id = RAW
    name = "raw"

    def encode(self, plain: bytes) -> bytes | None:
        return plain

    def decode(self, payload: bytes, plain_length: int) -> bytes:
        if len(payload) != plain_length:
            raise CodecError(f"raw payload of {len(payload)} bytes for a chunk of {plain_length}")
        return payload
