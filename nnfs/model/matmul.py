"""Matrix products of torch on int8 or float32 units: the choice of the fastest that is exact on this machine.

Both give the same integers where they are exact, so the choice is one of speed. It has to be tested: int8 products for
processors without dot product instructions saturate sums of two int16, and float32 products may be told to round their
operands.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnfs.constants import PRODUCT_VARIABLE
from nnfs.errors import CodecError
from nnfs.model import operands
from nnfs.model.architecture import HEAD, WINDOW
from nnfs.model.fixedpoint import ATTENTION_TOP
from nnfs.model.operands import Operands


class Int8Weight:
    """A weight for int8 units."""

    def __init__(self, weight: NDArray[np.int8], device: str) -> None:
        self._weight = torch.from_numpy(weight).to(device).t()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the sums (rows, outputs) int32 of (rows, inputs) int8. A stride of 0 is avoided: torch misreads it."""
        return torch._int_mm(x, self._weight)


class FloatWeight:
    """A weight for float32 units, which hold every such sum exactly while inputs <= 1040."""

    def __init__(self, weight: NDArray[np.int8], device: str) -> None:
        self._weight = torch.from_numpy(weight).to(device).float().t()

    def __call__(self, x: Tensor) -> Tensor:
        """Return the sums (rows, outputs) int32 of (rows, inputs) int8."""
        return (x.float() @ self._weight).int()


Weight = Int8Weight | FloatWeight
Kind = type[Int8Weight] | type[FloatWeight]
PRODUCTS: dict[str, Kind] = {"int8": Int8Weight, "float": FloatWeight}


def plain_float32() -> None:
    """Have float32 products take their operands as they are: no TF32, no bfloat16. Raises `CodecError`."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    if torch.get_float32_matmul_precision() != "highest" or torch.backends.cuda.matmul.allow_tf32:
        raise CodecError("float32 products are not exact here: their precision cannot be set")


def choose(device: str, forced: str | None = None) -> Kind:
    """Return the fastest exact product of a device ("cpu", "cuda:0"), or a named one.

    The tests run once per process. Raises `CodecError` when none is exact, or the forced one is not.
    """
    return PRODUCTS[_chosen(device, forced or os.environ.get(PRODUCT_VARIABLE) or None)]


@cache
def _chosen(device: str, forced: str | None) -> str:
    if forced is not None and forced not in PRODUCTS:
        raise CodecError(f"{PRODUCT_VARIABLE}: no product {forced}; there are: {', '.join(PRODUCTS)}")
    plain_float32()
    tried = list(operands.operands(cuda=device != "cpu"))
    exact = [name for name in ([forced] if forced else PRODUCTS) if is_exact(PRODUCTS[name], device, tried)]
    if not exact:
        raise CodecError(f"no exact {forced or 'int8 or float'} product on {device}: the neural codec cannot run on it")
    if len(exact) == 1:
        return exact[0]
    times = {name: _seconds(PRODUCTS[name], device) for name in exact}
    return "float" if 1.5 * times["float"] < times["int8"] else "int8"


def is_exact(kind: Kind, device: str, tried: Iterable[Operands]) -> bool:
    """Return whether a product gives exactly the right sums."""
    try:
        for x, weight, expected in tried:
            sums = kind(weight, device)(torch.from_numpy(x).to(device)).cpu().numpy()
            if sums.dtype != np.int32 or not np.array_equal(sums, expected):
                return False
    except (RuntimeError, NotImplementedError):  # no such product on this device or in this build of torch
        return False
    return True


def batched_is_exact(device: str) -> bool:
    """Return whether batched float32 products of attention's sizes are exact: 11 bits by 8, sums just below 2^24."""
    random = np.random.default_rng(2)
    weights = random.integers(0, ATTENTION_TOP + 1, (6, 4, WINDOW))
    values = random.integers(-127, 128, (6, WINDOW, HEAD))
    weights[:2], values[:1], values[1:3] = ATTENTION_TOP, 127, -127
    values[2, ::2] = 127
    left, right = (torch.from_numpy(part).float().to(device) for part in (weights, values))
    return np.array_equal(torch.bmm(left, right).cpu().numpy(), weights @ values)


def _seconds(kind: Kind, device: str) -> float:
    """Return the seconds of one product of medium size, the best of some tries."""
    inputs, outputs = operands.SHAPES[1]
    weight, x = (
        kind(np.ones((outputs, inputs), np.int8), device),
        torch.ones(128, inputs, dtype=torch.int8, device=device),
    )
    best = 1e9
    for _ in range(5):
        start = time.perf_counter()
        weight(x)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return best
