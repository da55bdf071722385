# mypy: disable-error-code="no-untyped-call"
"""The forward and backward pass of the network on one core with AMX, by native code (`src`).

`nnfs.train.network` is the definition; this computes the same loss and the same gradients without autograd, up to the
rounding of bf16: products are finished while their sums are in the cache, attention never leaves it, and what the
backward pass wants is kept as the integers that it was rounded to.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import platform
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from nnfs.errors import BuildFailed
from nnfs.kernels import build
from nnfs.model.architecture import BYTES, Architecture
from nnfs.model.fixedpoint import ACT_UNIT, HIDDEN_UNIT, SCORE_UNIT, SQUARE_UNIT
from nnfs.train.network import Layer, Network, Product

SOURCES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "src")
FLAGS = (
    "-std=gnu11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=fast", "-Wall",
    "-Wextra", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mfma", "-mbmi2", "-mamx-tile",
    "-mamx-bf16",
)  # fmt: skip
NEEDED = {"amx_bf16", "amx_tile", "avx512_bf16", "avx512bw", "avx512dq", "avx512vl"}
PREFIX = "train-"  # of the library's name
KEPT_HEAD, KEPT_GROUP, MOST_HEADS, MOST_WIDTH = 32, 4, 16, 1024  # the sizes that `src` is written for
BLOCK = 64  # positions that are computed side by side
_L, _F, _P = ctypes.c_long, ctypes.c_float, ctypes.c_void_p


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, _L) for name in ("rows", "time", "width", "heads", "kv_heads", "hidden")),
        *((name, _F) for name in ("act", "hidden_unit", "square_unit", "score_unit")),
        ("room", _P),
    )


class _Product(ctypes.Structure):
    _fields_ = (
        *((name, _L) for name in ("outputs", "inputs")),
        *((name, _P) for name in ("forward", "back", "scale", "sums")),
        ("wide_outputs", _L),
    )


class _Layer(ctypes.Structure):
    _fields_ = tuple((name, _P) for name in ("qkv", "out", "up", "down", "distance", "distance_gradient"))


class _Kept(ctypes.Structure):
    _fields_ = tuple(
        (name, _P) for name in ("x", "middle", "u", "u2", "qkv", "y", "squares", "hidden", "r", "r2", "sums")
    )


class _Gradients(ctypes.Structure):
    _fields_ = tuple((name, _P) for name in ("dx", "low", "middle", "dqkv", "dy", "wide"))


_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "quantise": (_P, _P, _L, _L, _F, _F),
    "take": (_P, _P, _L, _L, _F),
    "embed_span": (_P, _P, _P, _P, _L, _P, _P, _P, _L),
    "embed_back": (_P, _P, _P, _L, _P, _P, _P, _L, _L, _L),
    "forward": (_P, _P, _P, _P, _P, _P, _P),
    "backward": (_P, _P, _P, _P, _P),
    "head": (_P, _P, _P, _P, _P, _P, _P, _P, _L, _P, _P, _P, _F),
    "adam": (_P, _P, _P, _P, _L, _L, _F, _F, _F, _F, _F, _F, _F),
    "room_of": (_P,),
    "allow_tiles": (),
}


def is_available(a: Architecture) -> bool:
    """Return whether this processor has what `src` needs, and the network the sizes that it is for."""
    if platform.machine() != "x86_64" or a.head != KEPT_HEAD or a.window != 64 or a.heads != a.kv_heads * KEPT_GROUP:
        return False
    if a.heads > MOST_HEADS or max(a.width, a.hidden, a.heads * a.head) > MOST_WIDTH:
        return False
    if a.width % 32 or a.hidden % 32 or any(width % 16 for width in a.ngram_widths):
        return False
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return set(flags.split()) >= NEEDED


@cache
def library() -> Any:
    """Return the compiled passes, compiled first if need be. Raises `BuildFailed`."""
    digest = hashlib.blake2b(repr(FLAGS).encode(), digest_size=build.DIGITS // 2)
    for name in sorted(os.listdir(SOURCES)):
        with open(os.path.join(SOURCES, name), "rb") as file:
            digest.update(hashlib.blake2b(file.read()).digest())
    command, source = build.compiler(), os.path.join(SOURCES, "passes.c")
    path = build.built(
        PREFIX + digest.hexdigest(), command, lambda made: build.run([*command, *FLAGS, source, "-lm", "-o", made])
    )
    found = ctypes.CDLL(path)
    for name, arguments in _FUNCTIONS.items():
        getattr(found, name).argtypes = arguments
        getattr(found, name).restype = None
    found.head.restype, found.room_of.restype = ctypes.c_double, _L
    found.allow_tiles.restype = ctypes.c_int
    if found.allow_tiles():
        raise BuildFailed("the kernel does not allow the tiles of AMX")
    return found


def gradient(parameter: Tensor) -> Tensor:
    """Return the gradient of a parameter that has one."""
    return cast(Tensor, parameter.grad)


def at(tensor: Tensor) -> int:
    """Return the address of a contiguous tensor."""
    return tensor.data_ptr()


class _Weights:
    """The weights of products that have their inputs in common: rounded and packed once a step, learnt by spans."""

    def __init__(self, products: list[Product], unit: float, worth: float, wide_outputs: bool) -> None:
        """Take weights of inputs in `unit`; the sums are to become integers in units of `worth`."""
        self.weights = [product.weight for product in products]
        self.unit, self.worth = unit, worth
        outputs, inputs = sum(len(w) for w in self.weights), self.weights[0].shape[1]
        self._arrays = [torch.empty(outputs, inputs, dtype=torch.bfloat16) for _ in range(2)]
        self._arrays += [torch.empty(outputs), torch.zeros(outputs, inputs)]
        self.native = _Product(outputs, inputs, *map(at, self._arrays), wide_outputs)

    def round(self) -> None:
        """Round the weights as inference does."""
        begin = 0
        for w in self.weights:
            library().quantise(ctypes.byref(self.native), at(w), begin, len(w), self.unit, self.worth)
            begin += len(w)

    def take(self) -> None:
        """Add what was learnt to the gradients of the weights."""
        begin = 0
        for w in self.weights:
            library().take(ctypes.byref(self.native), at(gradient(w)), begin, len(w), 1 / self.unit)
            begin += len(w)


class Fused:
    """The passes over rows of `time` positions (a multiple of 64), one after the other, by one thread.

    Parameters stay those of `network`; gradients are added to their `grad`.
    """

    def __init__(self, network: Network, time: int, rows: int = 1) -> None:
        """`rows`: how many are computed side by side, as many as fit the caches."""
        a = network.a
        if time % BLOCK:
            raise ValueError(f"rows of {time} positions: a multiple of {BLOCK} is needed")
        self.network, self.rows, self.time = network, rows, time
        self._alive: list[Tensor] = []
        self.layers = [self._layer(layer) for layer in cast("list[Layer]", list(network.layers))]
        self.head = _Weights([network.head], ACT_UNIT, 1.0, wide_outputs=False)
        self.products = [*(weights for layer in self.layers for weights in layer[1]), self.head]
        self.kept = [self._kept(a) for _ in self.layers]
        n, width, inner, qkv = rows * time, a.width, a.heads * a.head, (a.heads + 2 * a.kv_heads) * a.head
        self.last = self._array(n, width), self._low(n, width), self._array(n)
        self.gradients = _Gradients(
            self._array(n, width), self._low(n, width), self._low(n, width), self._low(n, qkv), self._low(n, inner),
            self._low(n, max(a.hidden, BYTES)),
        )  # fmt: skip
        units = float(ACT_UNIT), float(HIDDEN_UNIT), float(SQUARE_UNIT), float(SCORE_UNIT)
        self.shape = _Shape(rows, time, width, a.heads, a.kv_heads, a.hidden, *units, None)
        self.shape.room = self._array(library().room_of(ctypes.byref(self.shape)), dtype=torch.uint8)
        self.tables = (_P * len(a.ngram_widths))(*map(at, network.ngrams))
        self.table_gradients = (_P * len(a.ngram_widths))(*(at(gradient(p)) for p in network.ngrams))
        self.widths = (_L * len(a.ngram_widths))(*a.ngram_widths)

    def _array(self, *shape: int, dtype: torch.dtype = torch.float32) -> int:
        """Return the address of a new array, at a multiple of 64 bytes."""
        size = math.prod(shape) * dtype.itemsize
        room = torch.empty(size + 64, dtype=torch.uint8)
        self._alive.append(room)
        return at(room) + -at(room) % 64

    def _low(self, *shape: int) -> int:
        return self._array(*shape, dtype=torch.bfloat16)

    def _layer(self, layer: Layer) -> tuple[Any, tuple[_Weights, ...]]:
        # 1.0 of queries, keys and values is ACT_UNIT of their integers, as of the norm's: the units cancel out.
        weights = (
            _Weights([layer.query, layer.key_value], 1.0, 1.0, wide_outputs=True),
            _Weights([layer.out], ACT_UNIT, 1.0, wide_outputs=False),
            _Weights([layer.up], ACT_UNIT, HIDDEN_UNIT, wide_outputs=True),
            _Weights([layer.down], SQUARE_UNIT, 1.0, wide_outputs=False),
        )
        products = (ctypes.addressof(w.native) for w in weights)
        return _Layer(*products, at(layer.distance), at(gradient(layer.distance))), weights

    def _kept(self, a: Architecture) -> Any:
        n, inner = self.rows * self.time, a.heads * a.head
        return _Kept(
            self._array(n, a.width), self._array(n, a.width), self._low(n, a.width), self._low(n, a.width),
            self._low(n, inner + 2 * a.kv_heads * a.head), self._low(n, inner), self._low(n, a.hidden),
            self._array(n, a.hidden, dtype=torch.uint8), self._array(n), self._array(n), self._array(n, a.heads),
        )  # fmt: skip

    @torch.no_grad()
    def learn(self, batch: list[Tensor], share: float) -> float:
        """Add `share` times the gradients of the batch's mean loss; return that loss in nats per position.

        batch: the fields of `nnfs.train.examples.Rows`, a multiple of `rows` rows of `time` positions. Weights are
        those of the last `round`; gradients of products are complete after `take`.
        """
        count = max(1, int((batch[-1] >= 0).sum()))
        loss = 0.0
        for row in range(0, len(batch[0]), self.rows):
            loss += self._span([field[row : row + self.rows] for field in batch], share / count)
        return loss / count

    def round(self) -> None:
        """Round all weights as inference does: after each change of the parameters."""
        for weights in self.products:
            weights.round()

    def take(self) -> None:
        """Add to the parameters' gradients what products have learnt since the last call."""
        for weights in self.products:
            weights.take()

    def _span(self, batch: list[Tensor], factor: float) -> float:
        rows, ngrams, candidates, buckets, start, target = batch
        c, shape, network, g = library(), ctypes.byref(self.shape), self.network, ctypes.byref(self.gradients)
        c.embed_span(
            shape, ctypes.byref(self.kept[0]), at(network.inputs), at(rows), rows.shape[-1], self.tables, at(ngrams),
            self.widths, len(self.widths),
        )  # fmt: skip
        for number, (layer, kept) in enumerate(zip(self.layers, self.kept, strict=True)):
            behind = self.kept[number + 1] if number + 1 < len(self.kept) else None
            to = (behind.x, behind.u, behind.r) if behind else self.last
            c.forward(shape, ctypes.byref(layer[0]), ctypes.byref(kept), at(start), *to)
        loss: float = c.head(
            shape, ctypes.byref(self.head.native), *self.last, g, at(candidates), at(buckets), candidates.shape[-1],
            at(network.biases), at(gradient(network.biases)), at(target), factor,
        )  # fmt: skip
        for layer, kept in reversed(list(zip(self.layers, self.kept, strict=True))):
            c.backward(shape, ctypes.byref(layer[0]), ctypes.byref(kept), g, at(start))
        c.embed_back(
            self.gradients.dx, at(gradient(network.inputs)), at(rows), rows.shape[-1], self.table_gradients, at(ngrams),
            self.widths, len(self.widths), self.rows * self.time, network.a.width,
        )  # fmt: skip
        return loss
