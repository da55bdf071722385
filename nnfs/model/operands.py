"""Operands of the test of a matrix product: those with which inexact products err most easily."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# (inputs, outputs) and rows of the products that are tried. Kernels differ by rows: vector, small, odd, whole tiles.
SHAPES = ((256, 384), (256, 1024), (1024, 256))
ROWS = (1, 17, 32, 33)
MANY_ROWS = 1000
CUDA_ROWS = 32  # int8 units want more than 16, and multiples of 8: `CudaEngine` asks for no others

Operands = tuple[NDArray[np.int8], NDArray[np.int8], NDArray[np.float64]]  # (rows, inputs), (outputs, inputs), sums


def operands(*, cuda: bool = False) -> Iterator[Operands]:
    """Yield operands that err most easily, with their sums: greatest sums of both signs, alternating signs, random."""
    random = np.random.default_rng(1)
    for inputs, outputs in SHAPES:
        weight = _patterns(random, outputs, inputs)
        for rows in ROWS:
            if rows == CUDA_ROWS if cuda else rows > 1:
                yield _with_sums(_patterns(random, rows, inputs), weight)
        if not cuda:
            yield from (_with_sums(row[None].copy(), weight) for row in _patterns(random, 5, inputs))
    inputs = SHAPES[0][0]
    yield _with_sums(_patterns(random, MANY_ROWS, inputs), _patterns(random, 64, inputs))


def _patterns(random: np.random.Generator, count: int, inputs: int) -> NDArray[np.int8]:
    """Return (rows, inputs) int8: all 127, all -127, alternating signs, pairs of one sign (saturate first), random."""
    rows = random.integers(-127, 128, (count, inputs)).astype(np.int8)
    rows[0::5], rows[1::5], rows[2::5], rows[3::5] = 127, -127, -127, 127
    rows[2::5, ::2] = 127
    rows[3::5, 2::4] = rows[3::5, 3::4] = -127
    return rows


def _with_sums(x: NDArray[np.int8], weight: NDArray[np.int8]) -> Operands:
    """Return operands with their sums: float64 holds every partial sum, so numpy's product is exact in any order."""
    return x, weight, x.astype(np.float64) @ weight.T.astype(np.float64)
