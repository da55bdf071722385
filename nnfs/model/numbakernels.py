# mypy: disable-error-code="arg-type,assignment,operator,return-value"
"""The CPU engine's kernels in numba: the arithmetic between two products, fused.

Each does for one row exactly what `nnfs.model.forward` does; rows do not depend on each other, so any batch and any
number of threads give the same integers.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnfs.mixer.compiling import njit
from nnfs.model.architecture import HEAD, WINDOW
from nnfs.model.attentiontiles import make_product
from nnfs.model.fixedpoint import (
    ACT_LIMIT,
    EMBEDDING_SHIFT,
    HIDDEN_LIMIT,
    LOGIT_SHIFT,
    RESIDUAL_LIMIT,
    SCORE_SHIFT,
    SQUARE_SHIFT,
    TABLE,
)

Int8: TypeAlias = NDArray[np.int8]
Int32: TypeAlias = NDArray[np.int32]
Float32: TypeAlias = NDArray[np.float32]

GROUP = 4  # queries that share a key: the attention kernel is compiled for it, as for HEAD and WINDOW


@njit(cache=True, nogil=True)
def norm_row(x: Int32, numerator: int, out: Int8) -> None:
    """Set `out` to the RMSNorm of one row of residuals."""
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
    inputs: Int8, ngrams: Int8, widths: NDArray[np.int64], rows: Int32, grams: Int32, numerator: int, x: Int32, u: Int8
) -> None:
    """Set the residual stream `x` (rows, width) to the sum of the embeddings of every row, and `u` to its norm.

    `ngrams`: the n-gram tables one after another, flat; `widths` (tables,): of each. `rows` and `grams` (rows, ...):
    which rows of the tables.
    """
    width = x.shape[1]
    entries = ngrams.size // width  # of every table
    for r in range(rows.shape[0]):
        at = start = 0
        for k in range(widths.shape[0]):
            place = start + np.int64(grams[r, k]) * widths[k]
            for c in range(widths[k]):
                x[r, at + c] = ngrams[place + c]
            at += widths[k]
            start += entries * widths[k]
        for k in range(rows.shape[1]):
            row = rows[r, k]
            for c in range(width):
                x[r, c] += inputs[row, c]
        for c in range(width):
            x[r, c] <<= EMBEDDING_SHIFT
        norm_row(x[r], numerator, u[r])


def flat_ngrams(tables: tuple[Int8, ...]) -> tuple[Int8, NDArray[np.int64]]:
    """Return the n-gram tables as `embed` wants them."""
    flat = np.concatenate([np.ascontiguousarray(table).reshape(-1) for table in tables])
    return flat, np.array([table.shape[1] for table in tables], np.int64)


@njit(cache=True, nogil=True)
def add_norm(sums: Int32, multiplier: Int32, pre: int, shift: int, numerator: int, x: Int32, u: Int8) -> None:
    """Add a product's sums to the residual stream, and set `u` to its norm."""
    half_pre, half = np.int32((1 << pre) >> 1), np.int32(1 << (shift - 1))
    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            y = np.int32(np.int32(np.int32(np.int32(sums[r, c] + half_pre) >> pre) * multiplier[c] + half) >> shift)
            x[r, c] = min(max(x[r, c] + y, -RESIDUAL_LIMIT), RESIDUAL_LIMIT)
        norm_row(x[r], numerator, u[r])


@njit(cache=True, nogil=True)
def square(sums: Int32, multiplier: Int32, pre: int, shift: int, out: Int8) -> None:
    """Set `out` to the squared ReLU of the feed-forward part's hidden units."""
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
    known: int,
    columns: int,
    distance: Int32,
    table: Int32,
    out: Int8,
) -> None:
    """Attend in `columns` columns of all lanes, rows in (column, lane) order.

    `sums` (rows, queries + keys + values) are the product's. `keys` (lanes, kv_heads, HEAD, WINDOW) and `values`
    (lanes, kv_heads, WINDOW, HEAD) are rings: those of column t, counted from the lane's start, are at t mod WINDOW;
    `known` columns came before this call. `distance` (heads, WINDOW): the score of a key by how many columns it lies
    back.
    """
    lanes, kv_heads, heads = keys.shape[0], keys.shape[1], distance.shape[0]
    half_pre, half = np.int32((1 << pre) >> 1), np.int32(1 << (shift - 1))
    width = sums.shape[1]
    act = np.empty(width, np.int8)
    queries = np.empty((GROUP, HEAD), np.float32)
    scores = np.empty((GROUP, WINDOW), np.float32)
    whole = np.empty(WINDOW, np.int32)
    den = np.empty(GROUP, np.int32)
    total = np.empty((GROUP, HEAD), np.float32)
    flat_keys, flat_values = keys.reshape(-1), values.reshape(-1)
    rings = np.empty((columns, heads, WINDOW), np.int32)  # the distances as the ring stands at each column
    for t in range(columns):
        for h in range(heads):
            for j in range(WINDOW):
                rings[t, h, j] = distance[h, (known + t - j) % WINDOW]
    for lane in range(lanes):
        for t in range(columns):
            place = (known + t) % WINDOW
            seen = min(WINDOW, known + t + 1)
            r = t * lanes + lane
            sum_row, out_row = sums[r], out[r]
            for c in range(width):
                y = np.int32(np.int32(np.int32(np.int32(sum_row[c] + half_pre) >> pre) * multiplier[c] + half) >> shift)
                act[c] = np.int8(min(max(y, np.int32(-ACT_LIMIT)), np.int32(ACT_LIMIT)))
            for kv in range(kv_heads):
                base = (lane * kv_heads + kv) * HEAD * WINDOW
                key, value = (heads + kv) * HEAD, (heads + kv_heads + kv) * HEAD
                for c in range(HEAD):
                    flat_keys[base + c * WINDOW + place] = act[key + c]
                    flat_values[base + place * HEAD + c] = act[value + c]
                for g in range(GROUP):
                    for c in range(HEAD):
                        queries[g, c] = np.float32(act[(kv * GROUP + g) * HEAD + c])
                _score(queries, flat_keys, base, WINDOW, scores)
                for g in range(GROUP):
                    den[g] = _weigh(scores[g], rings[t, kv * GROUP + g], seen, table, whole)
                _gather(scores, flat_values, base, HEAD, total)
                for g in range(GROUP):
                    _quotient(total[g], np.float64(den[g]), out_row, (kv * GROUP + g) * HEAD)


_score = make_product(GROUP, HEAD, WINDOW)
_gather = make_product(GROUP, WINDOW, HEAD)


@njit(cache=True, nogil=True)
def _weigh(scores: Float32, distance: Int32, seen: int, table: Int32, whole: Int32) -> np.int32:
    """Turn scores into weights in place, and return their sum. Places from `seen` on are empty."""
    top = np.int32(-(1 << 30))
    for j in range(scores.shape[0]):
        whole[j] = np.int32(scores[j]) + distance[j]
    for j in range(seen, scores.shape[0]):
        whole[j] = np.int32(-(1 << 30))
    for j in range(scores.shape[0]):
        top = max(top, whole[j])
    for j in range(scores.shape[0]):
        whole[j] = min(np.int32(top - whole[j]) >> np.int32(SCORE_SHIFT), np.int32(TABLE - 1))
    den = np.int32(0)
    for j in range(seen):
        weight = table[np.uint32(whole[j])]
        scores[j] = np.float32(weight)
        den += weight
    for j in range(seen, scores.shape[0]):
        scores[j] = np.float32(0)
    return den


@njit(cache=True, nogil=True)
def _quotient(total: Float32, den: float, out: Int8, at: int) -> None:
    """Set HEAD places of `out` from `at` to floor((2 total + den) / (2 den)), all integers below 2^26.

    With half a unit added to the numerator the quotient is at least 0.5 / (2 den) > 2^-19 away from every integer, and
    float64 errs by less than 2^-43: the floor is exact, whatever the rounding.
    """
    inverse = 1.0 / (2.0 * den)
    for c in range(total.shape[0]):
        out[at + c] = np.int8(math.floor((2.0 * np.float64(total[c]) + den + 0.5) * inverse))


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
    """Set integer frequencies (rows, 256) from logits and the candidates' biases."""
    half_pre, half = np.int32((1 << pre) >> 1), np.int32(1 << (shift - 1))
    logits = np.empty(256, np.int32)
    for r in range(out.shape[0]):
        for c in range(256):
            logits[c] = np.int32(
                np.int32(np.int32(np.int32(sums[r, c] + half_pre) >> pre) * multiplier[c] + half) >> shift
            )
        for k in range(candidates.shape[1]):
            logits[candidates[r, k]] += biases[buckets[r, k]]
        top = logits[0]
        for c in range(256):
            top = max(top, logits[c])
        for c in range(256):
            out[r, c] = np.uint32(table[min(np.int32(top - logits[c]) >> LOGIT_SHIFT, np.int32(TABLE - 1))] + 1)
