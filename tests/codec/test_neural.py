"""The neural codec: gives back what it took, and refuses everything else."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nnfs.codec import neural
from nnfs.codec.neural import MAX_PLAIN, Neural
from nnfs.errors import CodecError
from nnfs.model import selftest
from nnfs.model.cuda import CudaModel
from nnfs.model.lanes import LANE, lanes_for

WORDS = b"the quick brown fox jumps over a lazy dog and then it sleeps \n".split(b" ")


def text(size: int, seed: int = 1) -> bytes:
    rng = random.Random(seed)
    return b" ".join(rng.choice(WORDS) for _ in range(size // 3 + 1))[:size]


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@cache
def codec(seed: int = 0, threads: int = 1) -> Neural:
    return Neural(selftest.weights(seed=b"codec %d" % seed), threads)


@cache
def payload_of(size: int) -> bytes:
    payload = codec().encode(text(size))
    assert payload is not None
    return payload


def refused(payload: bytes, size: int, by: Neural | None = None) -> bool:
    """Decode what holds nothing, or what nobody wrote.

    The coder's own check misses little, but not nothing: an empty stream holds bytes of 255, as many as one asks for.
    The store knows by its hash that they are not it.
    """
    try:
        plain = (by or codec()).decode(payload, size)
    except CodecError:
        return True
    assert len(plain) == size
    assert plain != text(size)
    return False


# ---------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("size", [300, 4096, 4097, 9001])
def test_gives_back(size: int) -> None:
    payload = payload_of(size)
    assert len(payload) < size
    assert codec().decode(payload, size) == text(size)


def test_gives_back_zeros() -> None:
    payload = codec().encode(bytes(1 << 17))
    assert payload is not None
    assert len(payload) < 2500
    assert codec().decode(payload, 1 << 17) == bytes(1 << 17)


@pytest.mark.parametrize("plain", [b"", b"x", noise(40), noise(5000)])
def test_what_does_not_get_smaller_has_no_payload(plain: bytes) -> None:
    assert codec().encode(plain) is None


def test_a_chunk_that_could_not_be_decoded_is_not_encoded() -> None:
    assert codec().encode(bytes(MAX_PLAIN + 1)) is None


@pytest.mark.parametrize("size", [1, 2, 3, 5, 31])
def test_tiny_chunks(size: int) -> None:
    """They are never kept, since they do not get smaller; the coder gives them back all the same."""
    for plain in (text(size), noise(size)):
        (payload,) = codec()._encode([neural.prepared(plain)], lambda: None)
        assert codec().decode(payload, size) == plain


@pytest.mark.parametrize(("size", "lanes"), [(33, 32), (100, 32), (63, 32), (700, 7), (32, 32), (90, 16)])
@pytest.mark.parametrize("states", [1, 4])
def test_lanes_that_end_early_or_are_empty(size: int, lanes: int, states: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neural, "lanes_for", lambda _: lanes)
    monkeypatch.setattr(neural, "STATES", states)
    (payload,) = codec()._encode([neural.prepared(text(size))], lambda: None)
    assert payload[0] == (lanes - 1 | (64 if states == 4 else 0))
    assert codec().decode(payload, size) == text(size)


def test_code_is_given_back() -> None:
    """Calls of one function, whose addresses are made absolute."""
    calls = (b"\x55\x48\x89\xe5\xe8" + (60_000 - 11 * n).to_bytes(4, "little") + b"\x5d\xc3" for n in range(300))
    code = b"".join(calls)
    payload = codec().encode(code)
    assert payload is not None
    assert payload[0] & neural.X86
    assert codec().decode(payload, len(code)) == code
    refused(bytes([payload[0] ^ neural.X86]) + payload[1:], len(code))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(st.binary(max_size=40), max_size=4), st.integers(1, 30))
@example([b"\xff\x00"], 30)
def test_gives_back_anything(parts: list[bytes], repeat: int) -> None:
    plain = b"".join(part * repeat for part in parts)
    if plain:
        (payload,) = codec()._encode([neural.prepared(plain)], lambda: None)
        assert codec().decode(payload, len(plain)) == plain


# -------------------------------------------------------------------------------------------------------------- company


@pytest.fixture(scope="module")
def company() -> list[bytes]:
    return [text(300, 7), bytes(5000), text(9001, 8), text(310, 9), b"ab" * 2000]


def test_company_changes_nothing(company: list[bytes]) -> None:
    alone = [codec().encode(plain) for plain in company]
    assert codec().encode_many(company) == alone
    assert codec().encode_many(company[::-1]) == alone[::-1]
    assert codec(threads=2).encode_many(company) == alone
    stored = [(payload or b"", len(plain)) for payload, plain in zip(alone, company, strict=True)]
    assert codec().decode_many(stored) == company
    assert codec(threads=2).decode_many(stored) == company


def test_the_cuda_engine_writes_the_same(company: list[bytes]) -> None:
    other = Neural(codec().model.weights)
    other.model = CudaModel(codec().model.weights, "cpu")
    payloads = other.encode_many(company[:2])
    assert payloads == codec().encode_many(company[:2])
    assert other.decode(payloads[0] or b"", 300) == company[0]


def test_products_of_all_kinds_write_the_same(company: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NNFS_PRODUCT", "float")
    floats = Neural(codec().model.weights)
    assert floats.encode_many(company[:2]) == codec().encode_many(company[:2])


def test_jax_writes_and_reads_the_same(company: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jax", reason="JAX is not installed: pip install 'nnfs[jax]'")
    monkeypatch.setenv("NNFS_PRODUCT", "jax")
    other = Neural(codec().model.weights)
    assert type(other.model).__name__ == "JaxModel"
    plains = [company[0], company[3]]
    payloads = other.encode_many(plains)
    assert payloads == codec().encode_many(plains)
    stored = [(payload or b"", len(plain)) for payload, plain in zip(payloads, plains, strict=True)]
    assert other.decode_many(stored) == plains


def test_bad_jobs_do_not_spoil_good_ones(company: list[bytes]) -> None:
    good = [(payload or b"", len(plain)) for payload, plain in zip(codec().encode_many(company), company, strict=True)]
    damaged = bytearray(good[2][0])
    damaged[100] ^= 4
    bad = [
        (b"", 10),
        (good[0][0], 0),
        (bytes(damaged), 9001),
        (b"\xff", 3),
        (b"\x5f" + bytes(90), 200),  # four states, none possible
        (good[0][0][:-1], 300),
    ]
    mixed = [one for pair in zip(bad, good + good[:1], strict=True) for one in pair]
    results = codec().decode_many(mixed)
    assert results[1::2] == company + company[:1]
    assert all(isinstance(result, CodecError) for result in (results[0], results[2], results[6], results[8]))
    assert results[4] != company[2]
    assert results[10] != company[0]


def test_nothing_to_do() -> None:
    assert codec().encode_many([]) == []
    assert codec().decode_many([]) == []


# -------------------------------------------------------------------------------------------------------------- between


class Enough(Exception):
    """The exception by which `between` ends a batch."""


@pytest.mark.parametrize("threads", [1, 2])
def test_between_may_end_a_batch(threads: int, company: list[bytes]) -> None:
    def enough() -> None:
        raise Enough

    with pytest.raises(Enough):
        codec(threads=threads).encode_many([bytes(1 << 17)] * 3, enough)
    assert threading.active_count() < 10


def test_between_may_use_the_codec() -> None:
    inner: list[bytes | None] = []

    def between() -> None:
        if not inner:
            inner.append(None)
            inner[0] = codec().encode(text(300))

    assert codec().encode_many([text(4097)], between) == [payload_of(4097)]
    assert inner == [payload_of(300)]


# --------------------------------------------------------------------------------------------------------------- damage


def test_truncations_are_noticed() -> None:
    payload = payload_of(300)
    assert refused(b"", 300)
    noticed = [refused(payload[:end], 300) for end in range(1, len(payload))]
    assert sum(noticed) > 0.8 * len(noticed)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(0, 7))
@example(0, 0)
@example(0, 7)
@example(1, 0)
def test_flipped_bits_do_no_harm(at: int, bit: int) -> None:
    payload = bytearray(payload_of(300))
    payload[at % len(payload)] ^= 1 << bit
    refused(bytes(payload), 300)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.integers(-1, 400))
@example(b"\x43" + bytes(9), 4)
@example(b"\xff" + bytes(300), 64)
@example(b"\x20" + bytes(9), 4)
def test_random_payloads_do_no_harm(payload: bytes, size: int) -> None:
    refused(payload, size)


@pytest.mark.parametrize("size", [0, -1, MAX_PLAIN + 1, 1 << 62])
def test_impossible_lengths_are_refused(size: int) -> None:
    assert refused(payload_of(300), size)


@pytest.mark.parametrize("size", [1, 299, 4096])
def test_wrong_lengths_do_no_harm(size: int) -> None:
    refused(payload_of(300), size)


def test_more_behind_the_end_is_noticed() -> None:
    refused(payload_of(300) + b"\0\0", 300)
    assert refused(payload_of(300) + bytes(100), 300)


def test_another_model_does_not_give_it_back() -> None:
    refused(payload_of(300), 300, codec(1))


def test_any_first_byte() -> None:
    assert lanes_for(MAX_PLAIN) <= 32
    for first in range(256):
        refused(bytes([first]) + noise(20), 40)


def test_batches_are_bounded() -> None:
    work = [(i, size, lanes_for(size)) for i, size in enumerate(np.random.default_rng(3).integers(1, 1 << 17, 300))]
    work.sort(key=lambda item: (-(-item[1] // item[2]), item[1]), reverse=True)
    batches = list(neural._batches(work, neural.CHUNKS))
    assert [item for batch in batches for item in batch] == work
    for batch in batches:
        assert sum(lanes for _, _, lanes in batch) <= neural.LANES
        assert len(batch) <= neural.CHUNKS
        assert len(batch) * max(size for _, size, _ in batch) <= neural.LANES * LANE


# --------------------------------------------------------------------------------------------------------------- device


def test_threads_may_share_a_codec() -> None:
    with ThreadPoolExecutor(2) as pool:
        payloads = list(pool.map(codec().encode, [text(300), text(4097)] * 3))
    assert payloads == [payload_of(300), payload_of(4097)] * 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_devices() -> None:
    weights = codec().model.weights
    assert Neural(weights, device="auto").device == "cpu"
    with pytest.raises(CodecError, match="cuda cannot be used"):
        Neural(weights, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU and torch for CUDA")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_gpu_writes_the_same(threads: int, company: list[bytes]) -> None:
    gpu = Neural(codec().model.weights, threads, "cuda")
    payloads = gpu.encode_many(company)
    assert payloads == codec().encode_many(company)
    assert gpu.decode_many([(p or b"", len(plain)) for p, plain in zip(payloads, company, strict=True)]) == company
