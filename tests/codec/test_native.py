"""Native code writes what numba's kernels write, and reads it, at every level; damage ends with an error."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from nnfs.codec import neural, rans
from nnfs.codec.cm import ContextMixing
from nnfs.codec.neural import Neural
from nnfs.codec.neuralnative import kernels_for
from nnfs.codec.storeddictionary import dictionary_of, stored_dictionary
from nnfs.errors import CodecError
from nnfs.kernels.library import LEVELS
from nnfs.mixer import native, samples, samplestate
from nnfs.mixer.native import DIGEST, FIELDS_DIGEST, LIGHT_DIGEST, Kernels, digest, fields_digest, light_digest
from nnfs.model import dictionary, selftest
from nnfs.model.cpu import CpuModel
from nnfs.model.native import NativeModel
from nnfs.model.weights import Weights
from tests.kernels.kit import EMULATED, library
from tests.model.golden import sample

NATIVE = [f"native {level}" for level in LEVELS] + [f"emulated {level}" for level in EMULATED]
Sizes = list[tuple[int, int]]  # of chunks: bytes and lanes
BATCHES: dict[str, Sizes] = {
    "one byte": [(1, 1)],
    "one lane": [(700, 1)],
    "eight lanes": [(2001, 8)],
    "as many lanes as bytes": [(32, 32), (7, 7)],
    "of all lengths": [(1900, 2), (1500, 32), (333, 5), (90, 1), (8, 3), (1, 1)],
    "half a window beyond the longest": [(100, 1), (1, 1), (2, 2)],
}


@cache
def weights(primed: bool) -> Weights:
    plain = selftest.weights()
    return dataclasses.replace(plain, dictionary=stored_dictionary(sample(3000, 3))) if primed else plain


def kernels_of(kind: str) -> Kernels:
    engine, level = kind.split()
    there = library("emulated-" if engine == "emulated" else "")
    if level not in there.levels:
        pytest.skip(f"this processor has no {level}")
    return Kernels(there, level)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bool], Neural]:
    """Return a codec of native code of some kind, or of numba's and numpy's alone; so are all codecs from then on."""

    def go(kind: str, primed: bool = False) -> Neural:
        kernels = kernels_of(kind) if kind else None
        monkeypatch.setattr(native, "kernels", lambda: kernels)
        model = (
            NativeModel(weights(primed), kind.split()[1], kernels.library)
            if kernels
            else CpuModel(weights(primed), "float")
        )
        monkeypatch.setattr(neural, "open_model", lambda *_: model)
        codec = Neural(weights(primed))
        assert bool(kernels_for(codec.model, [1])) == bool(kind)
        return codec

    return go


def chunks_of(name: str) -> list[bytes]:
    return [sample(size, 5 + i) for i, (size, _) in enumerate(BATCHES[name])]


def with_lanes(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    lanes = dict(BATCHES[name])
    monkeypatch.setattr(neural, "lanes_for", lambda size: lanes[size])


@pytest.fixture(scope="module")
def wanted() -> dict[tuple[str, bool], list[bytes]]:
    return {}


@pytest.mark.parametrize("primed", [False, True], ids=["", "dictionary"])
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("kind", NATIVE)
def test_payloads_are_those_of_numba(
    kind: str, name: str, primed: bool, use: Callable[[str, bool], Neural], monkeypatch: pytest.MonkeyPatch,
    wanted: dict[tuple[str, bool], list[bytes]],
) -> None:  # fmt: skip
    kernels_of(kind)  # or skip
    with_lanes(monkeypatch, name)
    plains = chunks_of(name)
    work = sorted(((p, False) for p in plains), key=lambda one: -len(one[0]) // dict(BATCHES[name])[len(one[0])])
    if (name, primed) not in wanted:
        wanted[name, primed] = use("", primed)._encode(work, lambda: None)
    codec = use(kind, primed)
    payloads = codec._encode(work, lambda: None)
    assert payloads == wanted[name, primed]
    stored = [(payload, len(plain)) for payload, (plain, _) in zip(payloads, work, strict=True)]
    assert codec._decode(stored, lambda: None) == [plain for plain, _ in work]


@pytest.mark.parametrize("kind", NATIVE)
def test_the_mixer_passes_its_self_test(kind: str) -> None:
    assert digest(kernels_of(kind)) == DIGEST
    assert light_digest(kernels_of(kind)) == LIGHT_DIGEST
    assert fields_digest(kernels_of(kind)) == FIELDS_DIGEST


def test_the_digest_of_the_self_test_is_numbas() -> None:
    assert digest(None) == DIGEST
    assert light_digest(None) == LIGHT_DIGEST
    assert fields_digest(None) == FIELDS_DIGEST


@pytest.mark.parametrize("kind", NATIVE)
def test_a_dictionary_leaves_what_numba_leaves(kind: str, use: Callable[[str, bool], Neural]) -> None:
    kernels_of(kind)  # or skip
    numba = use("", True).dictionary
    own = use(kind, True).dictionary
    assert numba is not None
    assert own is not None
    for field in ("table", "find", "orders", "starts"):
        assert np.array_equal(getattr(own, field), getattr(numba, field)), field
    assert dictionary_of(weights(False)) is None
    assert dictionary.Dictionary(b"x").size == 1


@pytest.mark.parametrize("kind", NATIVE)
@pytest.mark.parametrize(
    "plain", [sample(5000, 1), bytes(range(40)) * 90, b"%d,%d\n" * 300], ids=["text", "records", "lines"]
)
def test_cm_writes_what_numba_writes(kind: str, plain: bytes, use: Callable[[str, bool], Neural]) -> None:
    kernels_of(kind)  # or skip
    use("", False)
    wanted = ContextMixing().encode(plain)
    use(kind, False)
    payload = ContextMixing().encode(plain)
    assert payload == wanted
    assert payload is not None
    assert ContextMixing().decode(payload, len(plain)) == plain


@pytest.mark.parametrize("kind", NATIVE)
@pytest.mark.parametrize("seed", range(3))
def test_samples_are_predicted_as_by_numba(kind: str, seed: int) -> None:
    """Sound and pixels of random layouts: the same probabilities, and decoded again."""
    kernels, rng = kernels_of(kind), np.random.default_rng(seed)
    for _ in range(3):
        count, size, channels = int(rng.integers(1, 300)), int(rng.integers(1, 3)), int(rng.integers(1, 5))
        stride, signed = int(rng.choice([0, channels + 1, 40])), bool(rng.integers(2))
        phase = int(rng.integers(channels))
        least = -(1 << 8 * size - 1) if signed else 0
        v = ((np.cumsum(rng.integers(-9, 10, count)) - least) % (1 << 8 * size) + least).astype(np.int32)
        v[::50] = least  # jumps
        layout = (count, size, channels, stride, phase, signed)
        wanted, found = np.zeros((2, count, 8 * size), np.uint16)
        samples.encode_path(samplestate.start(*layout, v), wanted)
        kernels.samples(samplestate.start(*layout, v), found)
        assert np.array_equal(found, wanted), layout
        bits = (v.astype(np.int64)[:, None] - least >> np.arange(8 * size - 1, -1, -1) & 1).astype(np.uint8)
        stream = rans.encode_row(bits.reshape(-1), wanted.reshape(-1))
        s, (states, words, cursor) = samplestate.start(*layout), rans.start(stream)
        kernels.decode_samples(s, states, words, cursor)
        rans.finish(states, words, cursor)
        assert np.array_equal(s.value, v), layout


@pytest.mark.parametrize("kind", NATIVE)
def test_damage_ends_with_an_error_or_other_bytes(kind: str, use: Callable[[str, bool], Neural]) -> None:
    codec, rng = use(kind, True), random.Random(7)
    plain = sample(500, 9)
    both: tuple[Neural | ContextMixing, ...] = (codec, ContextMixing())
    good = [(one, one.encode(plain)) for one in both]
    for one, payload in good:
        assert payload is not None
        for _ in range(12):
            bad = bytearray(payload)
            for _ in range(rng.randrange(1, 4)):
                bad[rng.randrange(len(bad))] = rng.randrange(256)
            cut = bytes(bad[: rng.randrange(len(bad) + 1)]) if rng.random() < 0.5 else bytes(bad)
            size = rng.choice([1, 31, 499, 500, 501, 900])
            try:
                found = one.decode(cut, size)
            except CodecError:
                continue
            assert len(found) == size


def test_a_chunk_that_is_damaged_does_not_harm_its_batch(use: Callable[[str, bool], Neural]) -> None:
    codec = use("native portable", False)
    plains = [sample(size, 2) for size in (900, 800, 700)]
    payloads = codec.encode_many(plains)
    assert all(payloads)
    stored = [(payload or b"", len(plain)) for payload, plain in zip(payloads, plains, strict=True)]
    stored[1] = (bytes([192 | 31]) + bytes(9), 800)  # 64 states of 32 lanes: the head is cut off
    stored.insert(0, (bytes([0b01000011]) + b"\xff", 4))
    found = codec.decode_many(stored)
    assert [isinstance(one, CodecError) for one in found] == [True, False, True, False]
    assert found[1] == plains[0]
    assert found[3] == plains[2]
