# mypy: disable-error-code="no-untyped-def,no-any-return"
"""The contexts of the mixer: each lane has a small record of its past, which gives the hashes of its contexts.

All of it is integers (64 bit, wrapping). Here a lane sees its own past only; the past of other lanes reaches it through
the shared tables."""

from __future__ import annotations

from nnfs.mixer.compiling import njit

CONTEXTS = 14
RECORD = 12  # fields of a lane's record:
LAST, WORD, WORD_BEFORE, LINE, LINE_BEFORE = (
    0,
    1,
    2,
    3,
    4,
)  # last 8 bytes, word hashes, first columns of this line and the one before
POINT, LENGTH, MISSES = 5, 6, 7  # of the match models: two of each, at POINT + 3 m

_A = 0x2545F4914F6CDD1D
_B = 0x1B873593CC9E2D51
_WORD = 0x2F0B4C47


@njit(cache=True, nogil=True)
def context_hash(value, index):
    """Return the hash of a context's value."""
    h = (value + index * _B + 1) * _A
    h ^= h >> 31
    return h * _B


@njit(cache=True, nogil=True)
def hashes(plain, base, t, stride, record, out):
    """Set the 14 context hashes of column t of a lane whose bytes start at `base`.

    plain: uint8, the dictionary and the chunk as far as it is known. stride: bytes of a record, 0 without records.
    record: (RECORD,) int64, the lane's. out: (CONTEXTS,) int64.
    """
    c8 = record[LAST]
    c1 = c8 & 0xFF
    word, before = record[WORD], record[WORD_BEFORE]
    column = t - record[LINE]
    at = record[LINE_BEFORE] + column
    above = 0
    if at < record[LINE]:
        above = plain[base + at]
    out[0] = 0
    out[1] = context_hash(c1, 1)
    out[2] = context_hash(c8 & 0xFFFF, 2)
    out[3] = context_hash(c8 & 0xFFFFFF, 3)
    out[4] = context_hash(c8 & 0xFFFFFFFF, 4)
    out[5] = context_hash(c8 & 0xFFFFFFFFFF, 5)
    out[6] = context_hash(c8 & 0xFFFFFFFFFFFF, 6)
    out[7] = context_hash(word * 256 + c1, 7)
    out[8] = context_hash((word + before * 0x9E3779B1) * 256 + c1, 8)
    out[9] = context_hash(c8 & 0xFFFF00, 9)
    out[10] = context_hash(c8 & 0xE0E0E0E0E0E0, 10)
    out[13] = context_hash(c8 & 0xFFFF0000, 13)
    if stride > 0:
        up = 0
        up2 = 0
        if t >= stride:
            up = plain[base + t - stride]
        if t >= 2 * stride:
            up2 = plain[base + t - 2 * stride]
        out[11] = context_hash(c1 << 8 | up, 11)
        out[12] = context_hash((t % stride) << 16 | up << 8 | up2, 12)
    else:
        out[11] = context_hash(above << 8 | c1, 11)
        out[12] = context_hash(above << 8 | min(column, 255), 12)


@njit(cache=True, nogil=True)
def advance(t, byte, record):
    """Update a lane's record with the byte of column t, except the match models."""
    record[LAST] = record[LAST] << 8 | byte
    letter = byte
    if 65 <= byte <= 90:
        letter = byte + 32
    if byte >= 128 or 97 <= letter <= 122:
        record[WORD] = (record[WORD] + letter + 1) * _WORD & 0x3FFFFFFFFFFF
    elif record[WORD] != 0:
        record[WORD_BEFORE] = record[WORD]
        record[WORD] = 0
    if byte == 10:
        record[LINE_BEFORE] = record[LINE]
        record[LINE] = t + 1
