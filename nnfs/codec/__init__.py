"""Codecs by id. `encode` lets the hot codecs compete, `decode` finds the one that a block header names."""

from __future__ import annotations

from nnfs.codec.base import CM, CM_LIGHT, FIELDS, FIRST_COLD, NEURAL, PPM, Codec
from nnfs.codec.raw import Raw
from nnfs.codec.zstd import Zstd
from nnfs.errors import CodecError

__all__ = ["CODECS", "FIRST_COLD", "NAMES", "Codec", "decode", "encode_hot", "register"]

CODECS: dict[int, Codec] = {}  # those that decode in any process; the cold ones do in workers
NAMES: dict[int, str] = {}


def register(codec: Codec) -> None:
    """Make a codec known under its id."""
    CODECS[codec.id] = codec
    NAMES[codec.id] = codec.name


_raw, _zstd = Raw(), Zstd()
register(_raw)
register(_zstd)
NAMES |= {NEURAL: "neural", CM: "cm", PPM: "ppm", CM_LIGHT: "cm-light", FIELDS: "fields"}


def encode_hot(plain: bytes) -> tuple[int, bytes]:
    """Return (codec id, payload) of the hot tier: zstd where it helps, raw otherwise."""
    payload = _zstd.encode(plain)
    return (_raw.id, plain) if payload is None else (_zstd.id, payload)


def decode(codec: int, payload: bytes, plain: int) -> bytes:
    """Return the `plain` bytes of a payload. Raises `CodecError`, also for an unknown codec."""
    known = CODECS.get(codec)
    if known is None and codec in NAMES:
        raise CodecError(f"codec {NAMES[codec]} is decoded by worker processes only")
    if known is None:
        raise CodecError(f"unknown codec {codec}: written by a newer nnfs?")
    return known.decode(payload, plain)
