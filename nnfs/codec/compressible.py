"""A quick test of a chunk, at hundreds of MB/s: data that is compressed already is left alone."""

from __future__ import annotations

import zstandard

TEXT = 0.9  # share of printable bytes and UTF-8 above which data is text, where the network always wins
_BINARY = bytes(set(range(32)) - {9, 10, 12, 13, 27} | {127})
FLAT = 7.95  # bits per byte of the frequencies alone: what a JPEG's or a zstd frame's bytes reach
GAIN = 0.995  # of the plain size, by zstd: repeats between bytes of even frequency


def compressible(plain: bytes) -> bool:
    """Return whether a cold codec is worth its time: a guess that rather errs towards True."""
    try:
        import numpy as np  # late: a mount that compresses nothing does without
    except ImportError:  # the workers will say so
        return len(zstandard.ZstdCompressor(level=3).compress(plain)) < len(plain) * GAIN
    counts = np.bincount(np.frombuffer(plain, np.uint8), minlength=256)
    share = counts[counts > 0] / max(len(plain), 1)
    if float(-(share * np.log2(share)).sum()) < min(FLAT, np.log2(max(len(plain), 2)) - 1):
        return True
    return len(zstandard.ZstdCompressor(level=3).compress(plain)) < len(plain) * GAIN


def is_text(plain: bytes) -> bool:
    """Return whether a chunk is mostly text, in any encoding that includes ASCII."""
    return len(plain.translate(None, _BINARY)) >= TEXT * len(plain)
