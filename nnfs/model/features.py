# mypy: disable-error-code="arg-type,assignment"
"""The features of a position: indices into the network's tables, from the chunk's own past.

A chunk of `size` bytes is `lanes` lanes of `length = ceil(size / lanes)` bytes, the last one shorter; column t is byte
t of every lane. All features of column t come from the columns before it, of all lanes: `predict` reads the state,
`learn` adds one column to it, lane 0 first. Encoder, decoder and trainer call the same two functions, so they agree by
construction.

The past of one chunk holds

- for each order of `ORDERS` a table of the byte last seen in this context, with a check byte and a run length;
- the position of the last occurrence of every context of `MATCH_MIN` bytes, and each lane's running match;
- each lane's last 8 bytes and word hash.

A model's dictionary (`nnfs.model.dictionary`), if it has one, lies before the chunk in `plain`, which then begins at
`begin`, and is in the tables already.

`orders` (orders, entries) uint32: check << 16 | byte << 8 | run, 0 for empty; as many entries as the chunk has bytes,
see `table_bits`. `starts` (entries,) int32: 1 + the position after the context, 0 for empty. `lane_state` (lanes, 5)
uint64: last 8 bytes, word hash, the previous word's, 1 + the position that the match points at, and its length.

Everything is integers and hashing is multiplication modulo 2^64: no machine can disagree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnfs.mixer.compiling import njit
from nnfs.model.architecture import (
    AGE_ROW,
    CANDIDATES,
    INPUTS,
    MATCH_BIAS,
    MATCH_BUCKETS,
    MATCH_ROW,
    NGRAMS,
    ORDER_ROW,
    ORDER_ROWS,
    ORDERS,
    RUN_BUCKETS,
    START,
)

if TYPE_CHECKING:
    from nnfs.model.dictionary import Dictionary

MAX_TABLE_BITS = 17  # log2 of the entries of each order's table, and of the match model's
MATCH_MIN = 7  # bytes that must agree before a match is believed
MATCH_VERIFY = 40  # bytes that are compared backwards when a match is found

_PHI = np.uint64(0x9E3779B97F4A7C15)
_ORDERS = np.array(ORDERS, np.int64)
_NONE = np.int64(-1)
_ORDER_COUNT = len(ORDERS)

# columns of `lane_state`
_LAST, _WORD, _PREVIOUS_WORD, _MATCH, _LENGTH = range(5)
_LANE_FIELDS = 5


@njit(cache=True, nogil=True, inline="always")
def _hash(value: np.uint64, salt: int, bits: int) -> np.int64:
    """Return `bits` well mixed bits of `value`."""
    mixed = (value + np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return np.int64(mixed >> np.uint64(64 - bits))


def table_bits(size: int) -> int:
    """Return log2 of the entries of each table for a chunk of `size` bytes."""
    return min(MAX_TABLE_BITS, max(8, (size - 1).bit_length()))


@njit(cache=True, nogil=True, inline="always")
def _low_bytes(last: np.uint64, count: int) -> np.uint64:
    return last & ((np.uint64(1) << np.uint64(8 * count)) - np.uint64(1))


@njit(cache=True, nogil=True, inline="always")
def _run_bucket(run: int) -> int:
    return 0 if run <= 1 else 1 if run == 2 else 2 if run <= 5 else 3


@njit(cache=True, nogil=True)
def match_bucket(length: int) -> int:
    """Return the bucket 0..15 of a match's length: exact up to 9, then about two to an octave, the last from 512."""
    if length < 10:
        return max(length - MATCH_MIN, 0)
    bucket = 3
    for bound in (12, 14, 16, 20, 24, 32, 48, 64, 96, 128, 256, 512):
        if length < bound:
            return bucket
        bucket += 1
    return bucket


@njit(cache=True, nogil=True, inline="always")
def _age(known: int) -> int:
    age = 0
    while known > 0 and age < 17:
        known >>= 1
        age += 1
    return age


@njit(cache=True, nogil=True)
def predict(
    plain: NDArray[np.uint8],
    lanes: int,
    orders: NDArray[np.uint32],
    lane_state: NDArray[np.uint64],
    column: int,
    begin: int,
    rows: NDArray[np.int32],
    ngrams: NDArray[np.int32],
    candidates: NDArray[np.uint8],
    buckets: NDArray[np.int32],
    ngram_bits: int,
    bits: int,
) -> None:
    """Write the features of one column of one chunk, for all its lanes.

    `rows` (lanes, INPUTS): rows of the input table. `ngrams` (lanes, 5): row in each n-gram table. `candidates`
    (lanes, CANDIDATES): proposed bytes, and `buckets` the row of each in the vector of output biases (0: none).
    """
    age = _age(begin + column * lanes)  # of bytes known
    for i in range(lanes):
        last = lane_state[i, _LAST]
        rows[i, 0] = np.int32(last & np.uint64(255)) if column else START
        rows[i, 1] = AGE_ROW + age
        for k in range(_ORDER_COUNT):
            order = _ORDERS[k]
            rows[i, 2 + k] = ORDER_ROW + k * ORDER_ROWS
            candidates[i, k] = 0
            buckets[i, k] = 0
            if column >= order:
                context = _low_bytes(last, order)
                at = _hash(context, order, bits + 8)
                entry = orders[k, at >> 8]
                if entry and np.int64(entry >> np.uint32(16)) == (at & 255):
                    byte = np.int32((entry >> np.uint32(8)) & np.uint32(255))
                    bucket = _run_bucket(np.int64(entry & np.uint32(255)))
                    rows[i, 2 + k] += 1 + byte * RUN_BUCKETS + bucket
                    candidates[i, k] = byte
                    buckets[i, k] = 1 + k * RUN_BUCKETS + bucket
        rows[i, INPUTS - 1] = MATCH_ROW
        candidates[i, CANDIDATES - 1] = 0
        buckets[i, CANDIDATES - 1] = 0
        match = np.int64(lane_state[i, _MATCH]) - 1
        if match >= 0:
            byte = np.int32(plain[match])
            bucket = match_bucket(np.int64(lane_state[i, _LENGTH]))
            rows[i, INPUTS - 1] += 1 + byte * MATCH_BUCKETS + bucket
            candidates[i, CANDIDATES - 1] = byte
            buckets[i, CANDIDATES - 1] = MATCH_BIAS + bucket
        for k in range(4):
            order = (2, 3, 4, 6)[k]
            ngrams[i, k] = _hash(_low_bytes(last, min(order, column)), order, ngram_bits)
        word = lane_state[i, _WORD]
        if word == np.uint64(0):
            word = lane_state[i, _PREVIOUS_WORD] ^ (last & np.uint64(255))
        ngrams[i, 4] = _hash(word, 7, ngram_bits)


@njit(cache=True, nogil=True)
def learn(
    plain: NDArray[np.uint8],
    lanes: int,
    length: int,
    orders: NDArray[np.uint32],
    starts: NDArray[np.int32],
    lane_state: NDArray[np.uint64],
    column: int,
    begin: int,
    bits: int,
) -> None:
    """Add column `column` of `plain` to the past."""
    size = len(plain) - begin
    # 1. Contexts that ended before this column are now followed by known bytes: only now can a match start there.
    if column >= MATCH_MIN:
        for i in range(lanes):
            position = i * length + column
            if position < size:
                at = _hash(_low_bytes(lane_state[i, _LAST], MATCH_MIN), 11, bits)
                starts[at] = begin + position + 1
    for i in range(lanes):
        position = i * length + column
        if position >= size:
            lane_state[i, _MATCH] = 0
            continue
        byte = np.int64(plain[begin + position])
        last = lane_state[i, _LAST]
        for k in range(_ORDER_COUNT):
            order = _ORDERS[k]
            if column >= order:
                at = _hash(_low_bytes(last, order), order, bits + 8)
                entry = orders[k, at >> 8]
                run = 1
                if entry and np.int64(entry >> np.uint32(8)) == ((at & 255) << 8 | byte):
                    run = min(np.int64(entry & np.uint32(255)) + 1, 255)
                orders[k, at >> 8] = np.uint32((at & 255) << 16 | byte << 8 | run)
        last = last << np.uint64(8) | np.uint64(byte)
        lane_state[i, _LAST] = last
        _learn_word(lane_state, i, byte)
        # 2. The running match goes on while it was right, into the next lane's start if need be.
        match = np.int64(lane_state[i, _MATCH]) - 1
        matched = np.int64(lane_state[i, _LENGTH])
        if match >= 0 and np.int64(plain[match]) == byte:
            match += 1
            matched += 1
            if match >= begin + size or (match >= begin and (match - begin) % length > column):
                match = _NONE
        else:
            match = _NONE
        lane_state[i, _MATCH] = match + 1
        lane_state[i, _LENGTH] = matched
    # 3. Lanes without a match look for one; every lane's column is known by now.
    if column + 1 >= MATCH_MIN:
        for i in range(lanes):
            if lane_state[i, _MATCH] == np.uint64(0) and i * length + column + 1 < size:
                found = np.int64(starts[_hash(_low_bytes(lane_state[i, _LAST], MATCH_MIN), 11, bits)]) - 1
                if found >= 0:
                    matched = _verify(plain, length, begin, begin + i * length + column + 1, found)
                    if matched >= MATCH_MIN:
                        lane_state[i, _MATCH] = found + 1
                        lane_state[i, _LENGTH] = matched


@njit(cache=True, nogil=True)
def enter(plain: NDArray[np.uint8], orders: NDArray[np.uint32], starts: NDArray[np.int32], bits: int) -> None:
    """Add a dictionary to empty tables, as one lane."""
    lane_state = np.zeros((1, _LANE_FIELDS), np.uint64)
    for column in range(len(plain)):
        learn(plain, 1, len(plain), orders, starts, lane_state, column, 0, bits)


@njit(cache=True, nogil=True)
def _verify(plain: NDArray[np.uint8], length: int, begin: int, here: int, there: int) -> int:
    """Return how many bytes before `here` and `there` agree, within their lanes and at most MATCH_VERIFY."""
    known = (there - begin) % length if there >= begin else there
    bound = min((here - begin) % length, known, MATCH_VERIFY)
    count = 0
    while count < bound and plain[here - 1 - count] == plain[there - 1 - count]:
        count += 1
    return count


@njit(cache=True, nogil=True)
def _learn_word(lane_state: NDArray[np.uint64], i: int, byte: int) -> None:
    """Add a byte to the lane's word: letters of any case and all bytes from 128 belong to words."""
    folded = byte | 32 if 65 <= byte <= 90 else byte
    if 97 <= folded <= 122 or folded >= 128:
        lane_state[i, _WORD] = (lane_state[i, _WORD] + np.uint64(folded + 1)) * np.uint64(0x9E3779B97F4A7C15)
    elif lane_state[i, _WORD] != np.uint64(0):
        lane_state[i, _PREVIOUS_WORD] = lane_state[i, _WORD]
        lane_state[i, _WORD] = 0


class Features(NamedTuple):
    """Features of some columns of some lanes, in (column, lane) order."""

    rows: NDArray[np.int32]  # (columns, lanes, INPUTS)
    ngrams: NDArray[np.int32]  # (columns, lanes, 5)
    candidates: NDArray[np.uint8]  # (columns, lanes, CANDIDATES)
    buckets: NDArray[np.int32]  # (columns, lanes, CANDIDATES)

    def columns(self, begin: int, end: int, lanes: int | None = None) -> Features:
        """Return some of the columns, of all lanes or of the first `lanes` ones."""
        own = slice(begin, end), slice(lanes)
        return Features(self.rows[own], self.ngrams[own], self.candidates[own], self.buckets[own])


def room(columns: int, lanes: int) -> Features:
    """Return memory for the features of `columns` columns of `lanes` lanes."""
    return Features(
        np.zeros((columns, lanes, INPUTS), np.int32),
        np.zeros((columns, lanes, len(NGRAMS)), np.int32),
        np.zeros((columns, lanes, CANDIDATES), np.uint8),
        np.zeros((columns, lanes, CANDIDATES), np.int32),
    )


class Batch:
    """The pasts of some chunks whose lanes are stepped side by side, the longest lanes first.

    Chunk k has the lanes from `first[k]` to `first[k + 1]`.
    """

    def __init__(
        self,
        plain: NDArray[np.uint8],
        sizes: list[int],
        lanes: list[int],
        ngram_bits: int,
        dictionary: Dictionary | None = None,
    ) -> None:
        """`plain` (chunks, at least the largest size): row k holds chunk k, or will hold it as it becomes known.

        With a dictionary, each row begins with that.
        """
        count = len(sizes)
        self.begin = dictionary.size if dictionary else 0
        self.plain, self.ngram_bits = plain, ngram_bits
        self.sizes, self.lanes = np.array(sizes, np.int64), np.array(lanes, np.int64)
        self.lengths = -(-self.sizes // self.lanes)
        self.first = np.concatenate(([0], np.cumsum(self.lanes)))
        self.bits = np.array([dictionary.bits if dictionary else table_bits(size) for size in sizes], np.int64)
        entries = 1 << int(self.bits.max())
        self.orders = np.zeros((count, _ORDER_COUNT, entries), np.uint32)
        self.starts = np.zeros((count, entries), np.int32)
        if dictionary:
            self.orders[:] = dictionary.orders
            self.starts[:] = dictionary.starts
        self.lane = np.zeros((int(self.first[-1]), _LANE_FIELDS), np.uint64)

    def live(self, column: int) -> int:
        """Return how many lanes, from the first on, belong to chunks that have not ended before `column`."""
        return int(self.first[np.count_nonzero(self.lengths > column)])

    def predict(self, column: int, out: Features, at: int = 0) -> None:
        """Write the features of `column` into column `at` of `out`; lanes that have ended keep what stands there."""
        predict_batch(
            self.plain, self.sizes, self.lanes, self.first, self.bits, self.orders, self.lane, column, self.begin,
            out.rows[at], out.ngrams[at], out.candidates[at], out.buckets[at], self.ngram_bits,
        )  # fmt: skip

    def learn(self, column: int) -> None:
        """Add `column`, which is in `plain` now, to the pasts."""
        learn_batch(
            self.plain, self.sizes, self.lanes, self.first, self.bits, self.orders, self.starts, self.lane, column,
            self.begin,
        )  # fmt: skip

    def follow(self, column: int, out: Features, columns: int) -> None:
        """Write the features of `columns` columns that are known already, and learn each."""
        follow_batch(
            self.plain, self.sizes, self.lanes, self.first, self.bits, self.orders, self.starts, self.lane, column,
            self.begin, columns, out.rows, out.ngrams, out.candidates, out.buckets, self.ngram_bits,
        )  # fmt: skip


@njit(cache=True, nogil=True)
def predict_batch(  # type: ignore[no-untyped-def]
    plain, sizes, lanes, first, bits, orders, lane_state, column, begin, rows, ngrams, candidates, buckets, ngram_bits
) -> None:
    """Do as `Batch.predict`, for kernels that call it with the batch's arrays."""
    for k in range(len(sizes)):
        length = (sizes[k] + lanes[k] - 1) // lanes[k]
        if column < length:
            own = slice(first[k], first[k + 1])
            predict(
                plain[k, : begin + sizes[k]], lanes[k], orders[k], lane_state[own], column, begin,
                rows[own], ngrams[own], candidates[own], buckets[own], ngram_bits, bits[k],
            )  # fmt: skip


@njit(cache=True, nogil=True)
def learn_batch(  # type: ignore[no-untyped-def]
    plain, sizes, lanes, first, bits, orders, starts, lane_state, column, begin
) -> None:
    """Do as `Batch.learn`, for kernels that call it with the batch's arrays."""
    for k in range(len(sizes)):
        length = (sizes[k] + lanes[k] - 1) // lanes[k]
        if column < length:
            own = slice(first[k], first[k + 1])
            whole = plain[k, : begin + sizes[k]]
            learn(whole, lanes[k], length, orders[k], starts[k], lane_state[own], column, begin, bits[k])


@njit(cache=True, nogil=True)
def follow_batch(  # type: ignore[no-untyped-def]
    plain, sizes, lanes, first, bits, orders, starts, lane_state, column, begin, columns, rows, ngrams, candidates,
    buckets, ngram_bits
) -> None:  # fmt: skip
    """Do as `Batch.follow`: a call for each column takes longer than its features do."""
    for t in range(columns):
        predict_batch(
            plain, sizes, lanes, first, bits, orders, lane_state, column + t, begin, rows[t], ngrams[t], candidates[t],
            buckets[t], ngram_bits,
        )  # fmt: skip
        learn_batch(plain, sizes, lanes, first, bits, orders, starts, lane_state, column + t, begin)


def of_chunk(plain: NDArray[np.uint8], lanes: int, ngram_bits: int, dictionary: Dictionary | None = None) -> Features:
    """Return the features of every position of a chunk that is known as a whole."""
    whole = np.concatenate((dictionary.plain, plain)) if dictionary else plain
    batch = Batch(whole[None], [len(plain)], [lanes], ngram_bits, dictionary)
    features = room(int(batch.lengths[0]), lanes)
    batch.follow(0, features, len(features.rows))
    return features
