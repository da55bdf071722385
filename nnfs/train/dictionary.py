"""Choice of a dictionary (`nnfs.model.dictionary`): the pieces of a sample that most of its chunks share.

Greedy cover, as zstd's dictionary builder has it (COVER, Liao et al. 2016): a piece is worth the sum of what its
distinct 8-byte strings are worth, a string the root of the number of other chunks that have it, until a chosen piece
covers it. The best pieces come last, nearest to the chunk.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PIECE = 1024  # bytes, fewer at the end of a chunk
GRAM = 8  # bytes
HASH_BITS = 21
CANDIDATES = 16384  # pieces that are looked at


def choose(chunks: Sequence[bytes], size: int, seed: int = 1) -> bytes:
    """Return a dictionary of at most `size` bytes of the chunks."""
    hashed = [_grams(chunk) for chunk in chunks]
    worth = np.zeros(1 << HASH_BITS)
    for grams in hashed:
        worth[np.unique(grams)] += 1
    worth = np.sqrt(np.maximum(worth - 1, 0))
    places = [(k, at) for k, chunk in enumerate(chunks) for at in range(0, len(chunk) - GRAM + 1, PIECE)]
    if len(places) > CANDIDATES:
        places = random.Random(seed).sample(places, CANDIDATES)
    sets = [np.unique(hashed[k][at : at + PIECE]) for k, at in places]
    heap = [(-float(worth[grams].sum()), i) for i, grams in enumerate(sets)]
    heapq.heapify(heap)
    chosen: list[bytes] = []
    while heap and sum(map(len, chosen)) + PIECE <= size:
        _, i = heapq.heappop(heap)
        now = float(worth[sets[i]].sum())
        if heap and now < -heap[0][0]:  # some of it has been covered since it was looked at
            heapq.heappush(heap, (-now, i))
            continue
        k, at = places[i]
        chosen.append(chunks[k][at : at + PIECE])
        worth[sets[i]] = 0
    return b"".join(reversed(chosen))


def _grams(chunk: bytes) -> NDArray[np.int64]:
    """Return a hash of the GRAM bytes from each position on."""
    plain = np.frombuffer(chunk, np.uint8).astype(np.uint64)
    hashed = np.zeros(max(len(plain) - GRAM + 1, 0), np.uint64)
    for i in range(GRAM):
        hashed = hashed * np.uint64(0x9E3779B97F4A7C15) + plain[i : i + len(hashed)] + np.uint64(1)
    return (hashed >> np.uint64(64 - HASH_BITS)).astype(np.int64)
