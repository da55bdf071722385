"""Content as a vector: the words and byte 4-grams of a file's first KiB, hashed, then projected by random signs.

Nothing is learnt, and all of it is integer arithmetic: the same bytes give the same 256 numbers on every machine. A
feature is a word or a 4-gram; 256 signs follow from its hash, and are summed up with the weight of the feature. Files
that share features have vectors that point the same way. Changing any of this needs another `RECIPE`.
"""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from nnfs.store.vectors import DIMENSIONS, HEAD

WORDS, GRAMS = 3, 2  # shares of both: words tell the topic, 4-grams the kind
SCALE = 40  # root of the mean square of a vector's numbers

Words = NDArray[np.uint64]
Ints = NDArray[np.int64]

_WORD = re.compile(rb"[a-z\x80-\xff]{3,}")
_COMMON_WORDS = frozenset(
    b"the and for with this that from are not was can you will have has all any its may but use used one which when "
    b"there been other more than into also only out see some such".split()
)
_COMMON_BYTES = b" \n\tetaoinsr"  # they say little where they stand in a 4-gram
_LONGEST = 12  # letters for which a word counts
_COMMON_WEIGHT, _WORD_WEIGHT = 3, 4
_GRAM_WEIGHT, _BYTE_WEIGHT = 8, 4
_GRAM = 1 << 40  # tells 4-grams from anything else

_STEPS = np.array([(0x9E3779B97F4A7C15 * step) % (1 << 64) for step in range(1, DIMENSIONS // 64 + 1)], np.uint64)
_BYTES = np.full(256, _BYTE_WEIGHT, np.int64)
_BYTES[list(_COMMON_BYTES)] = 0
# 16 (1 + ln n) for n = 0 to 32, as integers: how much a feature counts that is there n times.
_OFTEN = np.array(
    [0, 16, 27, 34, 38, 42, 45, 47, 49, 51, 53, 54, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 65, 66, 67, 67, 68, 69, 69,
     70, 70, 71, 71], np.int64,
)  # fmt: skip


def _signs(hashes: Words) -> NDArray[np.uint8]:
    """Return 256 bits for each hash: those of SplitMix64, four times 64."""
    x = hashes[:, None] + _STEPS
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return np.unpackbits(x.astype(">u8").view(np.uint8).reshape(len(hashes), -1), axis=1)


def _projected(hashes: Words, weights: Ints) -> Ints:
    """Return the sum of the features' signs, each with its weight, scaled to a length that does not depend on them."""
    sums: Ints = 2 * (weights.astype(np.int32) @ _signs(hashes).astype(np.int32)).astype(np.int64) - weights.sum()
    return sums * 16_000 // max(1, math.isqrt(int((sums * sums).sum())))


def _often(counts: Ints) -> Ints:
    return _OFTEN[np.minimum(counts, len(_OFTEN) - 1)]


def _words(text: bytes) -> Ints:
    counts = Counter(_WORD.findall(text))
    if not counts:
        return np.zeros(DIMENSIONS, np.int64)
    hashes = np.array([xxh3_64_intdigest(word) for word in counts], np.uint64)
    weights = [_COMMON_WEIGHT if word in _COMMON_WORDS else _WORD_WEIGHT * min(len(word), _LONGEST) for word in counts]
    return _projected(hashes, np.array(weights, np.int64) * _often(np.array(list(counts.values()), np.int64)))


def _grams(text: bytes) -> Ints:
    if len(text) < 4:
        return np.zeros(DIMENSIONS, np.int64)
    at = np.frombuffer(text, np.uint8).astype(np.uint64)
    joined = at[:-3] << np.uint64(24) | at[1:-2] << np.uint64(16) | at[2:-1] << np.uint64(8) | at[3:]
    found, counts = np.unique(joined, return_counts=True)
    weights = np.full(len(found), _GRAM_WEIGHT, np.int64)
    for shift in (0, 8, 16, 24):
        weights += _BYTES[found >> np.uint64(shift) & np.uint64(255)]
    return _projected(found + np.uint64(_GRAM), weights * _often(counts.astype(np.int64)))


def _rounded(sums: Ints) -> bytes:
    """Return numbers of one byte, their mean square `SCALE` squared, those that are too large cut off."""
    length = math.isqrt(int((sums * sums).sum()))
    if not length:
        return b""
    scale = SCALE * math.isqrt(DIMENSIONS)
    rounded = (2 * scale * np.abs(sums) + length) // (2 * length) * np.sign(sums)
    values: bytes = np.clip(rounded, -127, 127).astype(np.int8).tobytes()
    return values


def vector(content: bytes) -> bytes:
    """Return the vector of a file that begins with these bytes, "" if there is nothing to tell it from others by."""
    text = content[:HEAD].lower()
    if not text.strip(b"\0"):
        return b""
    return _rounded(WORDS * _words(text) + GRAMS * _grams(text))


def of_words(text: bytes) -> bytes:
    """Return the vector of a question in words, "" if it has none."""
    return _rounded(_words(text.lower()))
