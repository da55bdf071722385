"""The CPU engine in native code (`nnfs.kernels`): one call for a whole step, at whichever level the processor has.

It gives the integers of `nnfs.model.forward`, as the other engines do: `nnfs.model.selftest` and the tests compare
them.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnfs.errors import CodecError, ModelMissing
from nnfs.kernels import library as native
from nnfs.kernels.library import Library, address
from nnfs.model.architecture import BIASES, HEAD, INPUT_ROWS, WINDOW
from nnfs.model.features import Features
from nnfs.model.fixedpoint import norm_numerator
from nnfs.model.weights import Layer, Product, Weights

PACKED, QUAD, BLOCK = 16, 4, 64  # of packed weights, see nnfs.h; outputs and inputs come in blocks

Arrays = list[NDArray[Any]]


def packed(weight: NDArray[np.int8], offset: int) -> NDArray[np.uint8]:
    """Return (outputs, inputs) weights in the order [output / 16][input / 4][16][4], as the level wants them."""
    outputs, inputs = weight.shape
    if outputs % (2 * PACKED) or inputs % BLOCK:
        raise ModelMissing(f"the native engine has no kernel for products of {inputs} by {outputs}")
    blocks = weight.view(np.uint8).reshape(outputs // PACKED, PACKED, inputs // QUAD, QUAD)
    room = native.room(weight.size)
    room[:] = (blocks.transpose(0, 2, 1, 3) ^ np.uint8(offset)).reshape(-1)
    return room


def ring(layer: Layer) -> NDArray[np.int32]:
    """Return (heads, 2 WINDOW): distances backwards, twice. From WINDOW - p on they fit a ring written at place p."""
    places = -np.arange(2 * WINDOW) % WINDOW
    return np.ascontiguousarray(layer.distance[:, places])


class NativeModel:
    """A model's weights, packed for one level. Threads may share it."""

    def __init__(self, weights: Weights, level: str | None = None, library: Library | None = None) -> None:
        """Raise `CodecError` where there is no native code, `ModelMissing` for sizes without a kernel."""
        chosen = native.level(level) if library is None else native.LEVELS.index(level or library.levels[0])
        there = library or native.library()
        if there is None or chosen is None:
            raise CodecError("there are no native kernels here")
        self.library, self.level, self.weights = there, chosen, weights
        a = weights.architecture
        if (a.head, a.window) != (HEAD, WINDOW):
            raise ModelMissing(f"the native engine has no kernel for heads of {a.head} and a window of {a.window}")
        self._kept: Arrays = []
        offset = there.calls.nnfs_offset(chosen)
        products = [p for layer in weights.layers for p in (layer.qkv, layer.out, layer.up, layer.down)]
        downs = {id(layer.down) for layer in weights.layers}  # most of their inputs are 0
        self._products = (native.Product * (len(products) + 1))(
            *(self._product(p, offset, id(p) in downs) for p in [*products, weights.head])
        )
        widths = (ctypes.c_int32 * (native.NGRAM_TABLES + 1))(*a.ngram_widths)
        tables = (ctypes.c_void_p * native.NGRAM_TABLES)(*map(self._keep, weights.ngrams))
        rings = np.stack([ring(layer) for layer in weights.layers])
        self.network = native.Network(
            a.width, a.layers, a.heads, a.kv_heads, a.hidden, INPUT_ROWS, a.ngram_bits, BIASES,
            norm_numerator(a.width), self._keep(weights.inputs), tables, widths, self._keep(weights.biases),
            self._keep(weights.attention_table), self._keep(weights.frequency_table), self._keep(rings),
            ctypes.addressof(self._products),
        )  # fmt: skip
        if not there.calls.nnfs_network_fits(self.network):
            raise ModelMissing("the native engine has no kernel for a network of these sizes")

    def _keep(self, array: NDArray[Any]) -> int:
        """Keep an array as long as this model exists, and return its address."""
        kept = np.ascontiguousarray(array)
        self._kept.append(kept)
        return address(kept)

    def _product(self, p: Product, offset: int, sparse: bool) -> native.Product:
        """`sparse`: for inputs that are mostly 0."""
        weight, rows = packed(p.weight, offset), None
        if sparse:
            rows = native.room(p.weight.size).view(np.int8)
            rows[:] = p.weight.T.reshape(-1)
        return native.Product(
            self._keep(weight), None if rows is None else self._keep(rows), self._keep(p.multiplier),
            *p.weight.shape, p.pre, p.shift,
        )  # fmt: skip

    def engine(self, lanes: int, columns: int = 1) -> NativeEngine:
        return NativeEngine(self, lanes, columns)


class NativeEngine:
    """The network for `lanes` lanes side by side, from their first column on, at most `columns` columns in one call."""

    def __init__(self, model: NativeModel, lanes: int, columns: int = 1) -> None:
        self.model, self.lanes = model, lanes
        self.state = native.State()
        start, chosen = model.library.calls.nnfs_state_start, (model.level, model.network, self.state)
        size = start(*chosen, None, lanes, columns)
        if size < 0:
            raise CodecError(f"no room for {columns} columns of {lanes} lanes")
        self._room = native.room(size)
        start(*chosen, address(self._room), lanes, columns)
        begin = self.state.out - address(self._room)
        self.out = self._room[begin : begin + 1024 * lanes * columns].view(np.uint32).reshape(lanes * columns, 256)

    def forward(self, f: Features) -> NDArray[np.uint32]:
        """Return the frequencies (columns lanes, 256) for the features of some columns, (columns, lanes, ...).

        Fewer lanes than the engine has are its first ones: the others have ended. The result is valid until the next
        call. Raises `CodecError` for features that are out of range.
        """
        columns, lanes = f.rows.shape[:2]
        kept = tuple(map(np.ascontiguousarray, f))
        given = native.Features(*map(address, kept))
        model = self.model
        if model.library.calls.nnfs_forward(model.level, model.network, self.state, given, lanes, columns):
            raise CodecError("features that are out of range")
        return self.out[: columns * lanes]
