"""Every engine gives the integers of the reference: on any product, in any number of columns, lanes and threads."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from nnfs.errors import CodecError, ModelMissing
from nnfs.kernels.library import LEVELS
from nnfs.model import matmul, selftest, vnni
from nnfs.model.cpu import CpuModel
from nnfs.model.cuda import CudaModel
from nnfs.model.engines import Model, open_model
from nnfs.model.features import Features
from nnfs.model.native import NativeModel
from nnfs.model.weights import Weights
from tests.kernels.kit import EMULATED, library
from tests.model.kit import ONE_LAYER, TINY, expected, extreme_weights, fields, random_weights, trained_weights

COLUMNS, LANES = 68, 3  # more than a window
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU and torch for CUDA")

WEIGHTS: dict[str, Callable[[], Weights]] = {
    "random": random_weights,
    "two kv heads": lambda: random_weights(1, ONE_LAYER),
    "as stored by training": trained_weights,
    "all the greatest": lambda: extreme_weights("same", 1),
    "greatest, alternating": lambda: extreme_weights("alternating", 16),
    "greatest, in halves": lambda: extreme_weights("halves", 8),
    "greatest, much shifted": lambda: extreme_weights("halves", 24),
}


def exact_here(product: str) -> bool:
    try:
        matmul.choose("cpu", product)
    except CodecError:
        return False
    return True


NATIVE = [f"native {level}" for level in LEVELS] + [f"emulated {level}" for level in EMULATED]


def model_of(kind: str, weights: Weights) -> Model:
    engine, product = kind.split()
    if engine in ("native", "emulated"):
        there = library("emulated-" if engine == "emulated" else "")
        if product not in there.levels:
            pytest.skip(f"this processor has no {product}")
        return NativeModel(weights, product, there)
    if product == "jax" and importlib.util.find_spec("jax") is None:
        pytest.skip("JAX is not installed: pip install 'nnfs[jax]'")
    if product == "vnni" and not vnni.available():
        pytest.skip("this processor has no AVX-512 VNNI")
    if engine == "cuda" and product == "int8" and not exact_here(product):
        pytest.skip("int8 products are not exact on this processor")
    return open_model(weights, "cpu", product) if engine == "cpu" else CudaModel(weights, "cpu", product)


@pytest.fixture(params=["cpu vnni", "cpu float", "cpu jax", "cuda int8", "cuda float", *NATIVE])
def kind(request: pytest.FixtureRequest) -> str:
    """The engine and its product; the CUDA engine runs on the CPU here."""
    return str(request.param)


def lanes_of(f: Features, begin: int, end: int) -> Features:
    rows, ngrams, candidates, buckets = (np.ascontiguousarray(field[:, begin:end]) for field in fields(f))
    return Features(rows, ngrams, candidates, buckets)


@pytest.mark.parametrize("name", WEIGHTS)
def test_engines_give_what_the_reference_gives(name: str, kind: str) -> None:
    weights, f = WEIGHTS[name](), selftest.features(COLUMNS, LANES)
    wanted = expected(weights, f)
    found = selftest.frequencies(model_of(kind, weights).engine(LANES, COLUMNS), f, [COLUMNS])
    assert np.array_equal(found, wanted)
    assert found.min() >= 1


def test_the_reference_itself_does_not_depend_on_the_product() -> None:
    if not exact_here("int8"):
        pytest.skip("int8 products are not exact on this processor")
    from nnfs.model.forward import int8_product

    weights, f = extreme_weights("halves", 8), selftest.features(4, LANES)
    assert np.array_equal(expected(weights, f), expected(weights, f, int8_product))


@pytest.mark.parametrize("calls", [[1] * COLUMNS, [32, 32, 4], [1, 5, 30, 1, 1, 30]], ids=["single", "32", "mixed"])
def test_columns_may_come_in_any_portions(calls: list[int], kind: str) -> None:
    weights, f = random_weights(), selftest.features(COLUMNS, LANES)
    engine = model_of(kind, weights).engine(LANES, max(calls))
    assert np.array_equal(selftest.frequencies(engine, f, calls), expected(weights, f))


def test_lanes_do_not_know_of_each_other(kind: str) -> None:
    weights, lanes = random_weights(), 37
    f = selftest.features(3, lanes)
    model = model_of(kind, weights)
    together = selftest.frequencies(model.engine(lanes, 3), f, [2, 1]).reshape(3, lanes, 256)
    for begin, end in ((0, 1), (1, 18), (36, 37)):
        alone = selftest.frequencies(model.engine(end - begin, 3), lanes_of(f, begin, end), [3])
        assert np.array_equal(alone.reshape(3, end - begin, 256), together[:, begin:end])


def test_lanes_that_have_ended_are_left_out(kind: str) -> None:
    weights, f = random_weights(), selftest.features(6, 37)
    model = model_of(kind, weights)
    together = selftest.frequencies(model.engine(37, 3), f, [3, 3]).reshape(6, 37, 256)
    engine = model.engine(37, 3)
    for begin, end, lanes in ((0, 1, 37), (1, 3, 20), (3, 6, 1)):
        found = engine.forward(f.columns(begin, end, lanes)).reshape(end - begin, lanes, 256)
        assert np.array_equal(found, together[begin:end, :lanes])


@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_threads(threads: int, kind: str) -> None:
    weights, f = random_weights(), selftest.features(8, 40)
    wanted, model = expected(weights, f), model_of(kind, weights)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with ThreadPoolExecutor(threads) as pool:
            jobs = [pool.submit(selftest.frequencies, model.engine(40, 7), f, [7, 1]) for _ in range(threads)]
            assert all(np.array_equal(job.result(), wanted) for job in jobs)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", NATIVE)
def test_networks_of_any_size_and_calls_of_any_shape(seed: int, kind: str) -> None:
    """Random sizes of the network, lanes, calls and lanes that have ended, against numpy's products."""
    random = np.random.default_rng(seed)
    width, kv_heads = 64 * int(random.integers(1, 6)), int(random.integers(1, 4))
    cut = np.sort(random.choice(np.arange(1, width), 4, replace=False))
    widths = tuple(int(n) for n in np.diff([0, *cut, width]))
    a = dataclasses.replace(
        TINY, width=width, layers=int(random.integers(1, 4)), kv_heads=kv_heads, heads=4 * kv_heads,
        hidden=64 * int(random.integers(1, 9)), ngram_bits=int(random.integers(1, 11)), ngram_widths=widths,
    )  # fmt: skip
    weights, lanes = random_weights(seed, a), int(random.integers(1, 50))
    calls = [int(n) for n in random.integers(1, 9, 5)]
    live = sorted((int(n) for n in random.integers(1, lanes + 1, 5)), reverse=True)
    f = selftest.features(sum(calls), lanes, a.ngram_bits)
    engine, other = model_of(kind, weights).engine(lanes, max(calls)), CpuModel(weights, "float").engine(lanes, 8)
    at = 0
    for count, left in zip(calls, live, strict=True):
        own = f.columns(at, at + count, left)
        assert np.array_equal(engine.forward(own), other.forward(Features(*map(np.ascontiguousarray, own))))
        at += count


@pytest.mark.parametrize("kind", NATIVE)
def test_native_code_refuses_features_that_are_out_of_range(kind: str) -> None:
    model = model_of(kind, random_weights())
    for field, value in (("rows", 1 << 20), ("rows", -1), ("ngrams", 256), ("ngrams", -5), ("buckets", 1000)):
        f = selftest.features(1, 2)
        getattr(f, field)[0, 1, -1] = value
        with pytest.raises(CodecError, match="out of range"):
            model.engine(2).forward(f)
    with pytest.raises(CodecError, match="out of range"):
        model.engine(2).forward(selftest.features(2, 2))
    with pytest.raises(CodecError, match="no room"):
        model.engine(1 << 20)


def test_jax_passes_the_self_test_and_names_itself_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "jax", None)
        without.delitem(sys.modules, "nnfs.model.jax", raising=False)
        with pytest.raises(ModuleNotFoundError, match=r"no jax: pip install 'nnfs\[jax\]'"):
            open_model(random_weights(), "cuda", "jax")
    model_of("cpu jax", random_weights())
    selftest.run("cpu", "jax")


def test_roots_in_jax_are_floors_even_where_float64_is_not() -> None:
    """A device may emulate float64: its root is off by one, and is corrected."""
    jax = pytest.importorskip("jax", reason="JAX is not installed: pip install 'nnfs[jax]'")
    from nnfs.model.jax import isqrt

    random = np.random.default_rng(1)
    roots = np.concatenate(([1, 2, 3, (1 << 28) - 2], random.integers(1, 1 << 28, 500)))
    for off in (-1, 0, 1):
        assert np.array_equal(np.asarray(isqrt(jax.numpy.asarray(roots**2 + off))), roots - (off < 0))
    wrong = jax.numpy.sqrt
    with pytest.MonkeyPatch.context() as patched:
        for by in (-1.0, 1.0):
            patched.setattr(jax.numpy, "sqrt", lambda n, by=by: wrong(n) + by)
            assert np.array_equal(np.asarray(isqrt(jax.numpy.asarray(roots**2 + 1))), roots)


@needs_gpu
def test_a_gpu_gives_what_the_reference_gives() -> None:
    selftest.run("cuda")
    for make in WEIGHTS.values():
        weights, f = make(), selftest.features(COLUMNS, LANES)
        wanted, model = expected(weights, f), CudaModel(weights, "cuda")
        for calls in ([COLUMNS], [1] * COLUMNS, [32, 1, 1, 1, 33]):
            assert np.array_equal(selftest.frequencies(model.engine(LANES, max(calls)), f, calls), wanted)


def test_sizes_that_no_kernel_is_made_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnfs.model.vnni.available", lambda: True)  # as on a machine that has the instructions
    narrow = dataclasses.replace(TINY, head=16)
    with pytest.raises(ModelMissing, match="no kernel"):
        CpuModel(random_weights(0, narrow))
    odd = dataclasses.replace(TINY, hidden=100)
    with pytest.raises(ModelMissing, match="multiples of 8"):
        CudaModel(random_weights(0, odd), "cpu")
    for other in (narrow, odd):
        with pytest.raises(ModelMissing, match="no kernel"):
            NativeModel(random_weights(0, other), library=library())
    assert not isinstance(open_model(random_weights(0, odd)), NativeModel)  # another engine has one
