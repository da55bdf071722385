"""Chunks to measure codecs with: one for each kind of content that the classical codec treats in its own way.

They are files in `samples/`; tests/background/test_calibration.py says how they were made.
"""

from __future__ import annotations

import enum
import lzma
import os
from functools import cache

from nnfs.codec.base import CM
from nnfs.errors import CodecUnavailable

X86 = 16  # bit of a payload's first byte, see the codec's format


class Kind(enum.Enum):
    """Kinds of content by the speed of their decoding. The network decodes all at the same speed."""

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
    return {1: Kind.RECORDS, 2: Kind.SAMPLES, 3: Kind.RECORDS}.get(payload[0], Kind.TEXT)


@cache
def sample(kind: Kind) -> bytes:
    """Return the chunk of a kind. Raises `CodecUnavailable` when this nnfs lacks it."""
    path = os.path.join(os.path.dirname(__file__), "samples", f"{kind.value or 'text'}.xz")
    try:
        with lzma.open(path) as file:
            return file.read()
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise CodecUnavailable(f"codecs cannot be measured: {path}: {error}; install nnfs again") from error
