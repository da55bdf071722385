"""The cold tier's encoder: every codec tries a chunk, and the smallest payload that gives the chunk back is kept.

Data that is compressed already is recognised first, at hundreds of MB/s: neither bytes of uneven frequency nor repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import zstandard

from nnfs.codec.base import RAW, ZSTD, ColdCodec, nothing
from nnfs.errors import CodecError

FLAT = 7.95  # bits per byte of the frequencies alone: what a JPEG's or a zstd frame's bytes reach
GAIN = 0.995  # of the plain size, by zstd: repeats between bytes of even frequency
LEVEL = 19  # zstd's, as one of the competitors: it decodes 1,000 times faster, so it wins when it is as small


class Payload(NamedTuple):
    """One chunk as it would be stored."""

    codec: int
    data: bytes


def compressible(plain: bytes) -> bool:
    """Tell whether a cold codec is worth its time: a guess that errs towards yes."""
    counts = np.bincount(np.frombuffer(plain, np.uint8), minlength=256)
    share = counts[counts > 0] / max(len(plain), 1)
    if float(-(share * np.log2(share)).sum()) < min(FLAT, np.log2(max(len(plain), 2)) - 1):
        return True
    return len(zstandard.ZstdCompressor(level=3).compress(plain)) < len(plain) * GAIN


def encode_many(
    codecs: Sequence[ColdCodec], chunks: Sequence[bytes], between: Callable[[], None] = nothing
) -> list[Payload]:
    """Return the smallest payload of each chunk that decodes to it again; never larger than the chunk itself."""
    work = [i for i, plain in enumerate(chunks) if compressible(plain)]
    candidates: dict[int, list[tuple[int, ColdCodec, bytes]]] = {i: [] for i in work}
    for codec in codecs:
        for i, data in zip(work, codec.encode_many([chunks[i] for i in work], between), strict=True):
            if data is not None:
                candidates[i].append((len(data), codec, data))
    payloads = [_hot(plain) for plain in chunks]
    while True:
        best = {i: min(c, key=lambda one: one[0]) for i, c in candidates.items() if c}
        best = {i: one for i, one in best.items() if one[0] < len(payloads[i].data)}
        if not best:
            return payloads
        for codec in {id(one[1]): one[1] for one in best.values()}.values():
            mine = [i for i, one in best.items() if one[1] is codec]
            decoded = codec.decode_many([(best[i][2], len(chunks[i])) for i in mine], between)
            for i, plain in zip(mine, decoded, strict=True):
                if not isinstance(plain, CodecError) and plain == chunks[i]:
                    payloads[i] = Payload(codec.id, best[i][2])
                    candidates[i] = []
                else:  # a codec that fails is a bug, but not one that may cost a byte
                    candidates[i].remove(best[i])


def _hot(plain: bytes) -> Payload:
    """Return what zstd makes of a chunk at its best, or the chunk."""
    data = zstandard.ZstdCompressor(level=LEVEL, write_content_size=False, write_checksum=False).compress(plain)
    return Payload(ZSTD, data) if len(data) < len(plain) else Payload(RAW, plain)
