"""Which products a machine may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nnfs.constants import PRODUCT_VARIABLE
from nnfs.errors import CodecError
from nnfs.model import cpu, matmul, selftest
from nnfs.model.operands import operands


class Saturating:
    """Products as processors without dot product instructions make them.

    They multiply unsigned by signed bytes, sum pairs in int16, and take the offset away at the end.
    """

    def __init__(self, weight: NDArray[np.int8], device: str) -> None:
        self._weight = weight.astype(np.int32)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        sums = np.empty((len(x), len(self._weight)), np.int32)
        for row, unsigned in zip(sums, x.numpy().astype(np.int32) + 128, strict=True):
            pairs = (unsigned * self._weight).reshape(len(self._weight), -1, 2).sum(-1)
            row[:] = pairs.clip(-32768, 32767).sum(-1) - 128 * self._weight.sum(-1)
        return torch.from_numpy(sums)


class Rounding(matmul.FloatWeight):
    """Products that keep their sums in too few bits."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x).to(torch.bfloat16).int()


class Missing(matmul.Int8Weight):
    """Raise as a device without such products does."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not implemented for 'Char'")


@pytest.fixture
def fresh() -> Iterator[None]:
    matmul._chosen.cache_clear()
    yield
    matmul._chosen.cache_clear()


@pytest.mark.parametrize("bad", [Saturating, Rounding, Missing])
def test_what_is_not_exact_is_found_out(bad: type[matmul.Int8Weight]) -> None:
    assert not matmul.is_exact(bad, "cpu", list(operands()))


@pytest.mark.usefixtures("fresh")
def test_float_takes_the_place_of_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matmul.PRODUCTS, "int8", Saturating)
    assert matmul.choose("cpu") is matmul.FloatWeight
    with pytest.raises(CodecError, match="no exact int8 product on cpu"):
        matmul.choose("cpu", "int8")


@pytest.mark.usefixtures("fresh")
def test_nothing_exact_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matmul.PRODUCTS, "int8", Missing)
    monkeypatch.setitem(matmul.PRODUCTS, "float", Rounding)
    with pytest.raises(CodecError, match="the neural codec cannot run"):
        matmul.choose("cpu")


@pytest.mark.usefixtures("fresh")
def test_the_environment_may_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRODUCT_VARIABLE, "float")
    assert matmul.choose("cpu") is matmul.FloatWeight
    monkeypatch.setenv(PRODUCT_VARIABLE, "fixed")
    with pytest.raises(CodecError, match="no product fixed; there are: int8, float"):
        matmul.choose("cpu")


def test_products_of_numpy_are_exact_here() -> None:
    cpu.check_exact()


@pytest.mark.parametrize("round_", [lambda sums: sums // 4 * 4, lambda sums: np.where(abs(sums) > 1 << 20, 0, sums)])
def test_inexact_products_of_numpy_are_found_out(
    round_: Callable[[NDArray[np.int32]], NDArray[np.int32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = cpu.FloatWeight.__call__
    monkeypatch.setattr(cpu.FloatWeight, "__call__", lambda self, x: round_(exact(self, x)))
    cpu.check_exact.cache_clear()
    with pytest.raises(CodecError, match="numpy's float32 products are not exact here"):
        cpu.CpuModel(selftest.weights())
    cpu.check_exact.cache_clear()


def test_a_product_that_no_processor_has() -> None:
    with pytest.raises(CodecError, match="no product int8 on a processor; there are: native, vnni, float"):
        cpu.CpuModel(selftest.weights(), "int8")


def test_float32_is_set_back_to_all_its_bits() -> None:
    torch.set_float32_matmul_precision("medium")
    matmul.plain_float32()
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32


def test_batched_products_are_exact_here() -> None:
    assert matmul.batched_is_exact("cpu")


def test_the_self_test_passes_and_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    selftest.run("cpu", "float")
    assert selftest.usable("cpu") == "cpu"
    selftest.run.cache_clear()
    monkeypatch.setattr(selftest, "DIGEST", "0" * 32)
    with pytest.raises(CodecError, match="does not compute what it should"):
        selftest.usable("cpu")
    selftest.run.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_an_error_of_the_codec() -> None:
    with pytest.raises(CodecError, match="cuda cannot be used"):
        selftest.usable("cuda")
    assert selftest.usable("auto") == "cpu"
