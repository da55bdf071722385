"""A model's weights on a GPU, as the kernels of `nnfs.kernels` (`cuda/network.h`) want them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnfs.errors import ModelMissing
from nnfs.kernels import library as native
from nnfs.kernels.driver import Device
from nnfs.model.architecture import BIASES, HEAD, INPUT_ROWS, MOST_INPUTS, WINDOW
from nnfs.model.fixedpoint import norm_numerator
from nnfs.model.native import ring
from nnfs.model.weights import Product, Weights

GROUP = 4  # heads that share a key
OUTPUTS, INPUTS = 16, 32  # of a tile of weights
ALIGNED = 64  # what everything on the device begins at a multiple of


def rounded(size: int) -> int:
    """Return the room that `size` bytes take."""
    return -(-size // ALIGNED) * ALIGNED


def tiled(weight: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return (outputs, inputs) weights in the order in which a warp takes them into the tensor cores.

    For 16 outputs and 32 inputs each of the 32 threads has 16 bytes side by side: of outputs g and g + 8, g its place
    in the warp / 4, the inputs 4 c to 4 c + 3 and from 16 on, c its place mod 4.
    """
    outputs, inputs = weight.shape
    blocks = weight.reshape(outputs // OUTPUTS, 2, OUTPUTS // 2, inputs // INPUTS, 2, INPUTS // 8, 4)
    return np.ascontiguousarray(blocks.transpose(0, 3, 2, 5, 4, 1, 6)).reshape(-1)


class DeviceModel:
    """A model's weights in a GPU's memory, which `network` describes."""

    def __init__(self, device: Device, weights: Weights) -> None:
        """Raises `ModelMissing` for sizes without a kernel, `MemoryError`."""
        a = weights.architecture
        if (a.head, a.window, a.heads) != (HEAD, WINDOW, GROUP * a.kv_heads) or a.width % 64 or a.hidden % 64:
            raise ModelMissing("the GPU has no kernel for a network of these sizes")
        if max(a.width, a.hidden, a.heads * HEAD) > MOST_INPUTS or a.heads * HEAD % 64:
            raise ModelMissing("the GPU has no kernel for products of these sizes")
        self.weights = weights
        self._arrays: list[tuple[int, NDArray[Any]]] = []
        self._size = 0
        products = [p for layer in weights.layers for p in (layer.qkv, layer.out, layer.up, layer.down)]
        placed = [self._product(p) for p in [*products, weights.head]]
        tables: tuple[NDArray[Any], ...] = (
            weights.inputs, *weights.ngrams, weights.biases, weights.attention_table, weights.frequency_table,
            np.stack([ring(layer) for layer in weights.layers]),
        )  # fmt: skip
        offsets = [self._place(table) for table in tables]
        records = self._reserve(len(placed) * ctypes.sizeof(native.Product))
        network = self._reserve(ctypes.sizeof(native.Network))
        self._memory = device.memory(self._size)
        base = self._memory.address
        for offset, array in self._arrays:
            device.put(base + offset, array)
        own = (native.Product * len(placed))(
            *(native.Product(base + w, None, base + m, *p.weight.shape, p.pre, p.shift) for p, w, m in placed)
        )
        device.put(base + records, own)
        inputs, *ngrams, biases, attention, frequency, rings = (base + offset for offset in offsets)
        described = native.Network(
            a.width, a.layers, a.heads, a.kv_heads, a.hidden, INPUT_ROWS, a.ngram_bits, BIASES,
            norm_numerator(a.width), inputs, (ctypes.c_void_p * native.NGRAM_TABLES)(*ngrams),
            (ctypes.c_int32 * (native.NGRAM_TABLES + 1))(*a.ngram_widths), biases, attention, frequency, rings,
            base + records,
        )  # fmt: skip
        device.put(base + network, described)
        self.network = base + network
        self._arrays.clear()

    def free(self) -> None:
        self._memory.free()

    def _reserve(self, size: int) -> int:
        at = self._size
        self._size += rounded(size)
        return at

    def _place(self, array: NDArray[Any]) -> int:
        kept = np.ascontiguousarray(array)
        at = self._reserve(kept.nbytes)
        self._arrays.append((at, kept))
        return at

    def _product(self, p: Product) -> tuple[Product, int, int]:
        """Return a product and where its weights and multipliers will be."""
        if p.weight.shape[0] % OUTPUTS or p.weight.shape[1] % INPUTS:
            raise ModelMissing("the GPU has no kernel for products of these sizes")
        return p, self._place(tiled(p.weight)), self._place(p.multiplier)
