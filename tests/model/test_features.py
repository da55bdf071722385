"""The features that the network gets: known answers, and encoder and decoder compute the same."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
from numpy.typing import NDArray

from nnfs.model import features
from nnfs.model.architecture import (
    AGE_ROW,
    INPUT_ROWS,
    MATCH_BIAS,
    MATCH_BUCKETS,
    MATCH_ROW,
    ORDER_ROW,
    ORDER_ROWS,
    ORDERS,
    RUN_BUCKETS,
    START,
)
from nnfs.model.features import Batch, Features, match_bucket, of_chunk, room
from nnfs.model.lanes import LANE, MAX_LANES, lanes_for
from tests.model.kit import fields

BITS = 10  # log2 of the rows of n-gram tables


def array(plain: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(plain, np.uint8).copy()


def words(size: int) -> bytes:
    rng = random.Random(size)
    few = [rng.randbytes(rng.randrange(1, 9)) for _ in range(30)]
    return b"".join(rng.choice(few) for _ in range(size))[:size]


def run_bucket(run: int) -> int:
    return 0 if run == 1 else 1 if run == 2 else 2 if run <= 5 else 3


# ------------------------------------------------------------------------------------------------------- known answers


def test_last_byte_and_age() -> None:
    f = of_chunk(array(b"hello, world" * 3), 1, BITS)
    assert f.rows[0, 0, 0] == START
    assert bytes(f.rows[1:, 0, 0].astype(np.uint8)) == (b"hello, world" * 3)[:-1]
    assert f.rows[:6, 0, 1].tolist() == [AGE_ROW + age for age in (0, 1, 2, 2, 3, 3)]
    assert of_chunk(array(bytes(1 << 17)), 32, BITS).rows[-1, 0, 1] == AGE_ROW + 17


@pytest.mark.parametrize("lanes", [1, 3])
def test_orders_propose_what_followed_last(lanes: int) -> None:
    """Against dictionaries, which never collide; nor do the tables with as little as this."""
    rng = random.Random(3)
    plain = b"".join(rng.choice((b"ab", b"abc", b"cab ")) for _ in range(1500))
    length = -(-len(plain) // lanes)
    f = of_chunk(array(plain), lanes, BITS)
    past: dict[tuple[int, bytes], tuple[int, int]] = {}
    for t in range(length):
        places = [(i, i * length + t) for i in range(lanes) if i * length + t < len(plain)]
        for i, at in places:
            for k, order in enumerate(ORDERS):
                known = past.get((order, plain[at - order : at])) if t >= order else None
                row, bucket = (0, 0) if known is None else (1 + known[0] * RUN_BUCKETS, run_bucket(known[1]))
                assert f.rows[t, i, 2 + k] == ORDER_ROW + k * ORDER_ROWS + row + bucket
                assert f.candidates[t, i, k] == (0 if known is None else known[0])
                assert f.buckets[t, i, k] == (0 if known is None else 1 + k * RUN_BUCKETS + bucket)
        for _, at in places:
            for order in ORDERS:
                if t >= order:
                    key = order, plain[at - order : at]
                    byte, run = past.get(key, (plain[at], 0))
                    past[key] = plain[at], min(run + 1, 255) if byte == plain[at] else 1


def test_a_match_is_found_kept_and_lost() -> None:
    plain = b"0123456789" * 2 + b"01234" + b"x" + b"y" * 4
    f = of_chunk(array(plain), 1, BITS)
    buckets = f.buckets[:, 0, -1].tolist()
    assert not any(buckets[:17])  # 7 bytes must have come again
    assert buckets[17:26] == [MATCH_BIAS + match_bucket(7 + n) for n in range(9)]
    assert bytes(f.candidates[17:26, 0, -1]) == b"789012345"
    assert f.rows[17, 0, -1] == MATCH_ROW + 1 + ord("7") * MATCH_BUCKETS
    assert not any(buckets[26:])
    assert f.rows[26, 0, -1] == MATCH_ROW


def test_a_match_may_lie_in_another_lane() -> None:
    """Lane 1 is lane 0, three columns later, and knows what is coming."""
    once = random.Random(4).randbytes(40)
    f = of_chunk(array(once + b"..." + once[:-3]), 2, BITS)
    assert not f.buckets[:, 0, -1].any()
    assert not f.buckets[:10, 1, -1].any()
    assert bytes(f.candidates[10:, 1, -1]) == once[7:-3]


def test_buckets_of_matches() -> None:
    buckets = [match_bucket(length) for length in range(7, 2000)]
    assert buckets == sorted(buckets)
    assert set(buckets) == set(range(MATCH_BUCKETS))
    assert [match_bucket(n) for n in (7, 8, 9, 10, 11, 12, 511, 512, 1 << 17)] == [0, 1, 2, 3, 3, 4, 14, 15, 15]


def test_words() -> None:
    """The last table is looked up by the letters since the last non-letter, whatever their case."""
    f = of_chunk(array(b"One one, two ONE\n ONe two"), 1, BITS)
    rows = f.ngrams[:, 0, 4]
    assert rows[3] == rows[7] == rows[16] == rows[21]  # behind One, one, ONE, ONe
    assert rows[11] == rows[24]  # behind tw
    assert rows[3] != rows[2] != rows[1]
    assert rows[4] != rows[8]  # "One " and "one,": the last byte counts where there is no word
    accents = of_chunk(array("naïve naïve".encode()), 1, BITS).ngrams[:, 0, 4]
    assert accents[4] == accents[11]


def test_ngrams_see_as_many_bytes_as_they_say() -> None:
    plain = b"abcdefgh.bcdefgh!cdefgh---fgh"
    rows = of_chunk(array(plain + b"?"), 1, BITS).ngrams[:, 0]
    behind = [rows[at + 3] for at in range(len(plain)) if plain[at:].startswith(b"fgh")]
    assert len(behind) == 4
    for k, alike in enumerate((4, 4, 3, 3)):  # 2, 3, 4 and 6 bytes
        assert len({int(row[k]) for row in behind[:alike]}) == 1
        assert alike == 4 or behind[0][k] != behind[3][k]


def test_number_of_lanes() -> None:
    sizes = (0, 1, LANE, LANE + 1, 3 * LANE, 1 << 17, 1 << 22)
    assert [lanes_for(size) for size in sizes] == [1, 1, 1, 2, 3, MAX_LANES, MAX_LANES]
    assert MAX_LANES * LANE == 1 << 17


# ------------------------------------------------------------------------------------------- encoder and decoder agree


def stepped(plain: bytes, lanes: int) -> Features:
    """The features as a decoder sees them: no byte is there before its column is learned."""
    known = np.zeros((1, len(plain)), np.uint8)
    batch = Batch(known, [len(plain)], [lanes], BITS)
    length = int(batch.lengths[0])
    f = room(length, lanes)
    for t in range(length):
        batch.predict(t, f, t)
        for at in range(t, len(plain), length):
            known[0, at] = plain[at]
        batch.learn(t)
    return f


@pytest.mark.parametrize(
    ("size", "lanes"),
    [(1, 1), (2, 1), (2, 2), (4095, 1), (4097, 2), (4097, 5), (1000, 7), (65, 64), (100, 64), (33, 32)],
)
def test_decoding_sees_what_encoding_saw(size: int, lanes: int) -> None:
    plain = words(size)
    ahead, behind = of_chunk(array(plain), lanes, BITS), stepped(plain, lanes)
    for name, one, other in zip(Features._fields, fields(ahead), fields(behind), strict=True):
        assert np.array_equal(one, other), name
    assert ahead.rows.min() >= 0
    assert ahead.rows.max() < INPUT_ROWS
    assert ahead.ngrams.max() < 1 << BITS


def test_chunks_of_a_batch_do_not_know_of_each_other() -> None:
    chunks, lanes = [words(700), words(701)[::-1], b"abc", words(90)], [3, 2, 1, 1]
    plain = np.zeros((len(chunks), 701), np.uint8)
    for row, chunk in zip(plain, chunks, strict=True):
        row[: len(chunk)] = array(chunk)
    batch = Batch(plain, [len(chunk) for chunk in chunks], lanes, BITS)
    together = room(int(batch.lengths.max()), sum(lanes))
    for t in range(0, 351, 32):
        part = room(32, sum(lanes))
        batch.follow(t, part, min(32, 351 - t))
        for mine, all_ in zip(fields(part), fields(together), strict=True):
            all_[t : t + 32] = mine[: min(32, 351 - t)]
    for k, chunk in enumerate(chunks):
        alone = of_chunk(array(chunk), lanes[k], BITS)
        for one, all_ in zip(fields(alone), fields(together), strict=True):
            assert np.array_equal(one, all_[: len(one), batch.first[k] : batch.first[k + 1]])


def test_random_bytes_match_nothing() -> None:
    f = of_chunk(array(random.Random(2).randbytes(20_000)), 5, BITS)
    assert (f.buckets[:, :, -1] > 0).mean() < 0.001


def test_features_are_the_same_for_ever() -> None:
    digest = hashlib.blake2b(digest_size=16)
    for size, lanes in ((3000, 1), (5001, 4)):
        for field in of_chunk(array(words(size)), lanes, BITS):
            digest.update(field.astype("<i4").tobytes())
    assert digest.hexdigest() == "6444b530ee4f4d14332fb7bc57938024"


def test_tables_fit_the_chunk() -> None:
    assert [features.table_bits(size) for size in (1, 256, 257, 4096, 1 << 17, 1 << 22)] == [8, 8, 9, 12, 17, 17]
