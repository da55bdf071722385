"""Vectors for search in plain Python, written from `nnfs/store/FORMAT.md`."""

from __future__ import annotations

import math
import re
from collections import Counter

from xxhash import xxh3_64_intdigest

W = (
    0, 16, 27, 34, 38, 42, 45, 47, 49, 51, 53, 54, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 65, 66, 67, 67, 68, 69, 69,
    70, 70, 71, 71,
)  # fmt: skip
COMMON = (
    b"the and for with this that from are not was can you will have has all any its may but use used one which when "
    b"there been other more than into also only out see some such"
).split()
M64 = (1 << 64) - 1


def signs(h: int) -> list[int]:
    """256 signs of a hash."""
    found = []
    for k in range(1, 5):
        x = (h + k * 0x9E3779B97F4A7C15) & M64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M64
        x = (x ^ x >> 27) * 0x94D049BB133111EB & M64
        x ^= x >> 31
        found += [1 if x >> bit & 1 else -1 for bit in range(63, -1, -1)]
    return found


def scaled(weights: dict[int, int]) -> list[int]:
    """The sum of signs, in a length that does not depend on the weights."""
    sums = [0] * 256
    for h, weight in weights.items():
        sums = [s + weight * sign for s, sign in zip(sums, signs(h), strict=True)]
    length = max(1, math.isqrt(sum(s * s for s in sums)))
    return [16000 * s // length for s in sums]


def vector(content: bytes) -> list[int]:
    """The numbers of a file that begins so; none where there is no vector."""
    text = content[:1024].lower()
    if not text.strip(b"\0"):
        return []
    words = Counter(re.findall(rb"[a-z\x80-\xff]{3,}", text))
    grams = Counter(text[at : at + 4] for at in range(len(text) - 3))
    of_words = {
        xxh3_64_intdigest(word): W[min(n, 32)] * (3 if word in COMMON else 4 * min(12, len(word)))
        for word, n in words.items()
    }
    of_grams = {
        (1 << 40) + int.from_bytes(gram, "big"): W[min(n, 32)] * (8 + 4 * sum(b not in b" \n\tetaoinsr" for b in gram))
        for gram, n in grams.items()
    }
    total = [3 * w + 2 * g for w, g in zip(scaled(of_words), scaled(of_grams), strict=True)]
    length = math.isqrt(sum(v * v for v in total))
    if not length:
        return []
    found = [min(127, (1280 * abs(v) + length) // (2 * length)) for v in total]
    return [-number if v < 0 else number for number, v in zip(found, total, strict=True)]
