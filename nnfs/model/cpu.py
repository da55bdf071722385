"""The CPU engine of numpy and numba, for any processor: products of float32, and numba's kernels between them."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from nnfs.constants import PRODUCT_VARIABLE
from nnfs.errors import CodecError, ModelMissing
from nnfs.model import numbakernels as kernels
from nnfs.model.architecture import HEAD, WINDOW
from nnfs.model.features import Features
from nnfs.model.fixedpoint import norm_numerator
from nnfs.model.operands import Operands, operands
from nnfs.model.weights import Product, Weights


class _Buffers:
    """Work space of an engine for `rows` rows."""

    def __init__(self, weights: Weights, rows: int) -> None:
        a = weights.architecture
        self.x = np.empty((rows, a.width), np.int32)
        self.u, self.attended = np.empty((rows, a.width), np.int8), np.empty((rows, a.heads * a.head), np.int8)
        self.hidden = np.empty((rows, a.hidden), np.int8)
        self.frequencies = np.empty((rows, 256), np.uint32)


class FloatWeight:
    """A weight for float32 units, which hold every sum exactly while inputs <= 1040, in any order of adding."""

    def __init__(self, weight: NDArray[np.int8]) -> None:
        self._weight = weight.T.astype(np.float32)

    def __call__(self, x: NDArray[np.int8]) -> NDArray[np.int32]:
        """Return the sums (rows, outputs) of (rows, inputs)."""
        sums: NDArray[np.int32] = (x.astype(np.float32) @ self._weight).astype(np.int32)
        return sums


class _CpuProduct:
    """One product of the network, ready to run."""

    def __init__(self, product: Product) -> None:
        self.weight = FloatWeight(product.weight)
        self.scale = (product.multiplier, product.pre, product.shift)

    def __call__(self, x: NDArray[np.int8]) -> NDArray[np.int32]:
        return self.weight(x)


def _is_exact(tried: Operands) -> bool:
    x, weight, expected = tried
    return np.array_equal(FloatWeight(weight)(x), expected)


@cache
def check_exact() -> None:
    """Test numpy's products, once per process. Raises `CodecError` where they are not exact."""
    if not all(map(_is_exact, operands())):
        raise CodecError("numpy's float32 products are not exact here: the neural codec cannot run on it")


class CpuModel:
    """A model's weights, ready for the CPU; engines of any number of lanes share it."""

    def __init__(self, weights: Weights, product: str | None = None) -> None:
        """Raises `CodecError` for another product than "float", and where this machine has no exact one."""
        if product not in (None, "float"):
            known = "native, vnni, float"
            raise CodecError(f"{PRODUCT_VARIABLE}: no product {product} on a processor; there are: {known}")
        check_exact()
        a = weights.architecture
        if (a.head, a.window, a.heads // a.kv_heads) != (HEAD, WINDOW, kernels.GROUP):
            raise ModelMissing(f"the CPU engine has no kernel for heads of {a.head} and a window of {a.window}")
        self.weights = weights
        self.ngrams = kernels.flat_ngrams(weights.ngrams)
        self.products = [
            [_CpuProduct(p) for p in (layer.qkv, layer.out, layer.up, layer.down)] for layer in weights.layers
        ]
        self.head = _CpuProduct(weights.head)
        self.distances = [layer.distance for layer in weights.layers]

    def engine(self, lanes: int, columns: int = 1) -> CpuEngine:
        return CpuEngine(self, lanes, columns)


class CpuEngine:
    """The network for `lanes` lanes side by side, from their first column on, at most `columns` columns in one call."""

    def __init__(self, model: CpuModel, lanes: int, columns: int = 1) -> None:
        a = self.a = model.weights.architecture
        self.model, self.lanes = model, lanes
        self.numerator = norm_numerator(a.width)
        shape, layers = (lanes, a.kv_heads), range(a.layers)
        self.keys = [np.zeros((*shape, a.head, a.window), np.int8) for _ in layers]
        self.values = [np.zeros((*shape, a.window, a.head), np.int8) for _ in layers]
        self.known = 0
        self.buffers = _Buffers(model.weights, lanes * columns)

    def forward(self, f: Features) -> NDArray[np.uint32]:
        """Return the frequencies (columns lanes, 256) for the features of some columns, (columns, lanes, ...).

        Fewer lanes than the engine has are its first ones: the others have ended. The result is valid until the next
        call.
        """
        model, b = self.model, self.buffers
        columns, lanes = f.rows.shape[:2]
        w = model.weights
        rows, numerator = columns * lanes, self.numerator
        x, u, attended, hidden = b.x[:rows], b.u[:rows], b.attended[:rows], b.hidden[:rows]
        kernels.embed(w.inputs, *model.ngrams, f.rows.reshape(rows, -1), f.ngrams.reshape(rows, -1), numerator, x, u)
        for k, (qkv, out, up, down) in enumerate(model.products):
            kernels.attend(
                qkv(u), *qkv.scale, self.keys[k][:lanes], self.values[k][:lanes], self.known, columns,
                model.distances[k], w.attention_table, attended,
            )  # fmt: skip
            kernels.add_norm(out(attended), *out.scale, numerator, x, u)
            kernels.square(up(u), *up.scale, hidden)
            kernels.add_norm(down(hidden), *down.scale, numerator, x, u)
        kernels.frequencies(
            model.head(u), *model.head.scale, f.candidates.reshape(rows, -1), f.buckets.reshape(rows, -1),
            w.biases, w.frequency_table, b.frequencies[:rows],
        )  # fmt: skip
        self.known += columns
        return b.frequencies[:rows]
