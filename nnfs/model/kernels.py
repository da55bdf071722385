"""The CPU engine's kernels: what stands between two products, fused and compiled.

Each does for one row exactly what `nnfs.model.reference` does; rows do not depend on each other, so any batch and any number
of threads give the same integers.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nnfs.model.units import (
    ACT_LIMIT,
    EMBEDDING_SHIFT,
    HIDDEN_LIMIT,
    LOGIT_SHIFT,
    RESIDUAL_LIMIT,
    SCORE_SHIFT,
    SQUARE_SHIFT,
    TABLE,
)

Int8, Int16, Int32 = NDArray[np.int8], NDArray[np.int16], NDArray[np.int32]

HEAD, WINDOW = 32, 64  # the sizes that the attention kernel is compiled for


@njit(cache=True, nogil=True)
def norm_row(x: Int32, numerator: int, out: Int8) -> None:
    """RMSNorm of one row of residuals."""
    width = x.shape[0]
    total = np.int64(0)
    for c in range(width):
        total += np.int64(x[c]) * np.int64(x[c])
    root = max(np.int64(math.sqrt(np.float64(total << 8))), 16)
    inverse = numerator // root
    for c in range(width):
        y = (np.int64(x[c]) * inverse + (1 << 27)) >> 28
        out[c] = np.int8(min(max(y, -ACT_LIMIT), ACT_LIMIT))


@njit(cache=True, nogil=True)
def embed(
    inputs: Int8, ngram_tables: tuple[Int8, ...], rows: Int32, ngrams: Int32, numerator: int, x: Int32, u: Int8
) -> None:
    """Sum the embeddings of every row into the residual stream `x` (rows, width), and its norm into `u`."""
    width = x.shape[1]
    for r in range(rows.shape[0]):
        at = 0
        for k in range(len(ngram_tables)):
            table = ngram_tables[k]
            g = ngrams[r, k]
            for c in range(table.shape[1]):
                x[r, at + c] = table[g, c]
            at += table.shape[1]
        for k in range(rows.shape[1]):
            row = rows[r, k]
            for c in range(width):
                x[r, c] += inputs[row, c]
        for c in range(width):
            x[r, c] <<= EMBEDDING_SHIFT
        norm_row(x[r], numerator, u[r])


@njit(cache=True, nogil=True)
def add_norm(
    sums: Int32, multiplier: Int32, pre: int, shift: int, numerator: int, x: Int32, u: Int8
) -> None:
    """Add a product's sums to the residual stream, and norm it."""
    half_pre, half = np.int32((1 << pre) >> 1), np.int32(1 << (shift - 1))
    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            y = np.int32(np.int32(np.int32(np.int32(sums[r, c] + half_pre) >> pre) * multiplier[c] + half) >> shift)
            x[r, c] = min(max(x[r, c] + y, -RESIDUAL_LIMIT), RESIDUAL_LIMIT)
        norm_row(x[r], numerator, u[r])


@njit(cache=True, nogil=True)
def square(sums: Int32, multiplier: Int32, pre: int, shift: int, out: Int8) -> None:
    """Squared ReLU of the feed-forward part's hidden units."""
    half_pre, half = np.int32((1 << pre) >> 1), np.int32(1 << (shift - 1))
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            y = np.int32(np.int32(np.int32(np.int32(sums[r, c] + half_pre) >> pre) * multiplier[c] + half) >> shift)
            y = min(max(y, np.int32(0)), np.int32(HIDDEN_LIMIT))
            out[r, c] = np.int8(np.int32(y * y + np.int32(1 << (SQUARE_SHIFT - 1))) >> SQUARE_SHIFT)


@njit(cache=True, nogil=True)
def attend(
    sums: Int32,
    multiplier: Int32,
    pre: int,
    shift: int,
    keys: Int8,
    values: Int8,
    at: int,
    known: int,
    columns: int,
    distance: Int32,
    table: Int32,
    out: Int8,
) -> None:
    """Attention of `columns` columns of all lanes, rows in (column, lane) order.

    `sums` (rows, queries + keys + values) are the product's. `keys` (lanes, kv_heads, places, HEAD) and `values` (lanes,
    kv_heads, HEAD, places): those of column t of this call go to place `at + t`, the WINDOW - 1 columns before them lie before,
    of which `known` hold something. `distance` (heads, WINDOW) is reversed: its last entry is the position itself.

    Both inner loops are sums along contiguous int8, which compilers turn into the machine's instruction for that.
    """
    lanes, kv_heads, heads = keys.shape[0], keys.shape[1], distance.shape[0]
    group = heads // kv_heads
    half_pre, half = np.int32((1 << pre) >> 1), np.int32(1 << (shift - 1))
    width = sums.shape[1]
    act = np.empty((width // HEAD, HEAD), np.int8)
    flat = act.reshape(-1)
    scores = np.empty((group, WINDOW), np.int32)
    weights = np.empty((group, WINDOW), np.int16)
    den = np.empty(group, np.int32)
    total = np.empty((group, HEAD), np.int32)
    for t in range(columns):
        place = at + t
        first = place + 1 - WINDOW
        unseen = max(0, WINDOW - (known + t + 1))
        for lane in range(lanes):
            r = t * lanes + lane
            sum_row = sums[r]
            for c in range(width):
                y = np.int32(np.int32(np.int32(np.int32(sum_row[c] + half_pre) >> pre) * multiplier[c] + half) >> shift)
                flat[c] = np.int8(min(max(y, np.int32(-ACT_LIMIT)), np.int32(ACT_LIMIT)))
            for kv in range(kv_heads):
                for c in range(HEAD):
                    keys[lane, kv, place, c] = act[heads + kv, c]
                    values[lane, kv, c, place] = act[heads + kv_heads + kv, c]
                _score(act[kv * group : (kv + 1) * group], keys[lane, kv], first, scores)
                for g in range(group):
                    den[g] = _weigh(scores[g], distance[kv * group + g], unseen, table, weights[g])
                _gather(weights, values[lane, kv], first, total)
                for g in range(group):
                    _quotient(total[g], np.float64(den[g]), out[r, (kv * group + g) * HEAD : (kv * group + g + 1) * HEAD])


@njit(cache=True, nogil=True)
def _score(queries: Int8, keys: Int8, first: int, scores: Int32) -> None:
    """Queries of a group (group, HEAD) . keys (places, HEAD) from place `first` -> scores (group, WINDOW)."""
    for j in range(WINDOW):
        key = keys[first + j]
        for g in range(scores.shape[0]):
            query = queries[g]
            total = np.int32(0)
            for c in range(key.shape[0]):  # a constant here would be unrolled into scalars: 5 times slower
                total += np.int32(query[c]) * np.int32(key[c])
            scores[g, j] = total


@njit(cache=True, nogil=True)
def _weigh(scores: Int32, distance: Int32, unseen: int, table: Int32, weights: Int16) -> np.int32:
    """Turn scores into weights, and return their sum."""
    top = np.int32(-(1 << 30))
    for j in range(scores.shape[0]):
        scores[j] += distance[j]
    for j in range(unseen):
        scores[j] = np.int32(-(1 << 30))
    for j in range(scores.shape[0]):
        top = max(top, scores[j])
    for j in range(scores.shape[0]):
        scores[j] = min(np.int32(top - scores[j]) >> np.int32(SCORE_SHIFT), np.int32(TABLE - 1))
    den = np.int32(0)
    for j in range(scores.shape[0]):
        weight = table[scores[j]]
        weights[j] = np.int16(weight)
        den += weight
    for j in range(unseen):
        den -= np.int32(weights[j])
        weights[j] = 0
    return den


@njit(cache=True, nogil=True)
def _gather(weights: Int16, values: Int8, first: int, total: Int32) -> None:
    """Weights (group, WINDOW) . values (HEAD, places) from place `first` -> total (group, HEAD)."""
    for c in range(HEAD):
        value = values[c][first : first + WINDOW]
        for g in range(weights.shape[0]):
            weight = weights[g]
            part = np.int32(0)
            for j in range(WINDOW):
                part += np.int32(weight[j]) * np.int32(value[j])
            total[g, c] = part


@njit(cache=True, nogil=True)
def _quotient(total: Int32, den: float, out: Int8) -> None:
    """Floor of (2 total + den) / (2 den), all integers below 2^26.

    With half a unit added to the numerator the quotient is at least 0.5 / (2 den) > 2^-19 away from every integer, and
    float64 errs by less than 2^-43: the floor is exact, whatever the rounding.
    """
    inverse = 1.0 / (2.0 * den)
    for c in range(total.shape[0]):
        out[c] = np.int8(math.floor((2.0 * np.float64(total[c]) + den + 0.5) * inverse))


@njit(cache=True, nogil=True)
def frequencies(
    sums: Int32,
    multiplier: Int32,
    pre: int,
    shift: int,
    candidates: NDArray[np.uint8],
    buckets: Int32,
    biases: Int32,
    table: Int32,
    out: NDArray[np.uint32],
) -> None:
    """Logits with the candidates' biases to integer frequencies (rows, 256)."""
    half_pre, half = np.int32((1 << pre) >> 1), np.int32(1 << (shift - 1))
    logits = np.empty(256, np.int32)
    for r in range(out.shape[0]):
        for c in range(256):
            logits[c] = np.int32(np.int32(np.int32(np.int32(sums[r, c] + half_pre) >> pre) * multiplier[c] + half) >> shift)
        for k in range(candidates.shape[1]):
            logits[candidates[r, k]] += biases[buckets[r, k]]
        top = logits[0]
        for c in range(256):
            top = max(top, logits[c])
        for c in range(256):
            out[r, c] = np.uint32(table[min(np.int32(top - logits[c]) >> LOGIT_SHIFT, np.int32(TABLE - 1))] + 1)
