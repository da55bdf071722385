"""The interface of codecs: bytes to bytes, named by one id byte in the block header."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from nnfs.errors import CodecError

Result: TypeAlias = bytes | CodecError | None  # of one chunk; None: it does not become smaller
Tell: TypeAlias = Callable[[int, Result], None]  # is given a chunk's place in its batch and its result

RAW, ZSTD = 0, 1
FIRST_COLD = 16  # ids from here on are cold codecs, slow to decode: their work is queued apart from the hot tier's
NEURAL, CM = FIRST_COLD, FIRST_COLD + 1
PPM, CM_LIGHT = FIRST_COLD + 3, FIRST_COLD + 4  # 18 is kept for codec `thinned`
FIELDS = FIRST_COLD + 5  # a format of its own that codec `cm` chooses for records of numbers, and decodes
FIELDS_HEAD = b"\3"  # what its payloads begin with
RUNGS = (PPM, CM_LIGHT, CM, NEURAL)  # the cold codecs, from quick to small


def rung(codec: int) -> int:
    """Return the place of a codec in the order from quick to small: 0 for the hot ones, 1 for the quickest cold one."""
    codec = coder_of(codec)
    return RUNGS.index(codec) + 1 if codec in RUNGS else 0


def coder_of(codec: int) -> int:
    """Return the codec that decodes what a block header names."""
    return CM if codec == FIELDS else codec


def format_of(codec: int, payload: bytes) -> int:
    """Return the id by which a block header names a payload: an older nnfs must see that it does not know it."""
    return FIELDS if codec == CM and payload.startswith(FIELDS_HEAD) else codec


class Codec(Protocol):
    """A codec. To decode it needs nothing but payload, header and, for some codecs, a model."""

    id: int
    name: str

    def encode(self, plain: bytes) -> bytes | None:
        """Return the payload, or None when this codec does not make `plain` smaller."""

    def decode(self, payload: bytes, plain_length: int) -> bytes:
        """Return exactly `plain_length` bytes. Raises `CodecError` for any payload that does not hold them."""


def nothing() -> None:
    """Do nothing: the `between` where nothing more urgent can come."""


def untold(_place: int, _result: Result) -> None:
    """Do nothing: the `tell` of a caller that waits for all results."""


class ColdCodec(Codec, Protocol):
    """A codec that steps many chunks together. A chunk's result does not depend on its company.

    `between` is called several times a second while the codec works, or between chunks where it cannot be called
    within one. The function may use the same codec for something more urgent before it returns, so the state of a batch
    is kept with the batch; an exception that `between` raises ends the batch.

    `tell` is called on the same thread for each chunk whose result is there before those of the whole batch. A codec
    need not call it.
    """

    batch: int  # most plain bytes that are worth taking together on this device

    def encode_many(
        self, plains: Sequence[bytes], between: Callable[[], None] = nothing, tell: Tell = untold
    ) -> list[bytes | None]:
        """Return the payload of each chunk, None where it does not become smaller."""

    def decode_many(
        self, payloads: Sequence[tuple[bytes, int]], between: Callable[[], None] = nothing, tell: Tell = untold
    ) -> list[bytes | CodecError]:
        """Return the bytes of each (payload, plain length), or the error for that one."""
