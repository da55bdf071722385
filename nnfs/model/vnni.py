# mypy: disable-error-code="no-untyped-call,no-any-return,call-arg"
"""The CPU engine for processors with AVX-512 VNNI: one compiled call for a whole step, without torch.

`vpdpbusd` adds four products of an unsigned and a signed byte to an int32, without saturation. Weights are stored here
with 128 added, as the unsigned side, in the order in which they are read; the sums start at -128 times the sum of the
row's activations, which takes it off again. A tile of 8 rows by 32 outputs stays in registers. Against `torch._int_mm`
(oneDNN) this is 1.1 times as fast for 256 rows and 1.6-2.0 times for 32, where oneDNN packs the weights anew in each
call (tools/LOG.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numpy.typing import NDArray

from nnfs.errors import CodecError, ModelMissing
from nnfs.mixer.compiling import njit
from nnfs.model import numbakernels
from nnfs.model.architecture import HEAD, WINDOW
from nnfs.model.attentiontiles import array_at
from nnfs.model.features import Features
from nnfs.model.fixedpoint import norm_numerator
from nnfs.model.numbakernels import Int8, Int32, add_norm, attend, embed, frequencies, square
from nnfs.model.weights import Product, Weights

WIDE = 16  # int32 of a vector
TILES = 2  # vectors of outputs in a tile
ROWS = 8  # rows in a tile
BLOCK = 64  # rows that go through the feed-forward part together, so that its hidden units stay in the cache

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_I32, WIDE)
_INSTRUCTION = "llvm.x86.avx512.vpdpbusd.512"

UInt8 = NDArray[np.uint8]


def available() -> bool:
    """Return whether numba compiles for a processor with this instruction."""
    features: str = cpu_target.target_context.codegen().magic_tuple()[2]
    return all(f"+{name}" in features.split(",") for name in ("avx512f", "avx512bw", "avx512vnni"))


def _make_tile(rows: int) -> Any:
    """Return `tile(x, weight, first, out, quads, inputs, outputs, xo, wo, fo, oo)`.

    It makes the sums of `rows` rows for 16 TILES outputs. All arrays are flat, with the offsets where the tile's own
    part begins; quads = inputs / 4.
    """

    @intrinsic
    def tile(  # type: ignore[no-untyped-def]
        _typing, x, weight, first, out, _quads, _inputs, _outputs, _xo, _wo, _fo, _oo
    ) -> Any:  # fmt: skip
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            xp, wp, fp, op = (
                builder.gep(array_at(context, builder, signature.args[i], arguments[i]), [arguments[7 + i]])
                for i in range(4)
            )
            count, x_stride, out_stride = arguments[4:7]
            dot = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), _INSTRUCTION)

            def splat(value: Any) -> Any:
                vector = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, _I32(0))
                zeros = ir.Constant(_VECTOR, [0] * WIDE)
                return builder.shuffle_vector(vector, ir.Constant(_VECTOR, ir.Undefined), zeros)

            starts = [splat(builder.load(builder.gep(fp, [_I64(r)]))) for r in range(rows)]
            sums = [[cgutils.alloca_once_value(builder, start) for _ in range(TILES)] for start in starts]
            row = [builder.gep(xp, [builder.mul(x_stride, _I64(r))]) for r in range(rows)]
            column = [builder.gep(wp, [builder.mul(count, _I64(4 * WIDE * t))]) for t in range(TILES)]
            with cgutils.for_range(builder, count, intp=_I64) as loop:
                weights = []
                for pointer in column:
                    pointer = builder.gep(pointer, [builder.mul(loop.index, _I64(4 * WIDE))])
                    weights.append(builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()), align=1))
                for r in range(rows):
                    pointer = builder.gep(row[r], [builder.mul(loop.index, _I64(4))])
                    four = splat(builder.load(builder.bitcast(pointer, _I32.as_pointer()), align=1))
                    for t in range(TILES):
                        builder.store(builder.call(dot, [builder.load(sums[r][t]), weights[t], four]), sums[r][t])
            for r in range(rows):
                for t in range(TILES):
                    pointer = builder.gep(op, [builder.add(builder.mul(out_stride, _I64(r)), _I64(WIDE * t))])
                    builder.store(builder.load(sums[r][t]), builder.bitcast(pointer, _VECTOR.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(x, weight, first, out, *([types.int64] * 7)), code

    return tile


_tile, _tile_row = _make_tile(ROWS), _make_tile(1)


@njit(cache=True, nogil=True)
def product(x: Int8, weight: UInt8, first: Int32, out: Int32) -> None:
    """Set the first (rows, outputs) of `out`, int32, to the product of (rows, inputs) int8 and packed weights.

    `first` is work space for `rows` sums.
    """
    rows, inputs = x.shape
    outputs = weight.size // inputs
    flat_x, flat_out = x.reshape(-1), out.reshape(-1)
    for r in range(rows):
        total = np.int32(0)
        row = x[r]
        for c in range(inputs):
            total += np.int32(row[c])
        first[r] = np.int32(-128) * total
    for n in range(0, outputs, WIDE * TILES):
        r = 0
        while r + ROWS <= rows:
            _tile(
                flat_x, weight, first, flat_out, inputs // 4, inputs, outputs, r * inputs, n * inputs, r,
                r * outputs + n,
            )  # fmt: skip
            r += ROWS
        while r < rows:
            _tile_row(
                flat_x, weight, first, flat_out, inputs // 4, inputs, outputs, r * inputs, n * inputs, r,
                r * outputs + n,
            )  # fmt: skip
            r += 1


def packed(weight: Int8) -> UInt8:
    """Return (outputs, inputs) weights in the order [output / 16][input / 4][16][4], 128 added."""
    outputs, inputs = weight.shape
    if outputs % (WIDE * TILES) or inputs % 4:
        raise ModelMissing(f"this engine has no kernel for products of {inputs} by {outputs}")
    shifted = (weight.astype(np.int16) + 128).astype(np.uint8).reshape(outputs // WIDE, WIDE, inputs // 4, 4)
    return np.ascontiguousarray(shifted.transpose(0, 2, 1, 3)).reshape(-1)


# Numba takes arrays over in no time, but tuples of tuples of arrays in 150 us: so all products lie in one array.


@njit(cache=True, nogil=True)
def _step(  # type: ignore[no-untyped-def]
    inputs, ngrams, widths, weights, multipliers, scales, distances, biases, attention_table, frequency_table,
    numerator, rows, grams, candidates, buckets, keys, values, lanes, known, columns, x, u, attended, part, sums, first,
    out,
) -> None:  # fmt: skip
    """Compute the frequencies of some columns: one call of the engine.

    Row 4 k + j of `scales` (4 layers + 1, 6) is of product j of layer k, the last row of the head: where its weights
    and multipliers begin, outputs, inputs, pre-shift and shift.
    """
    count = x.shape[0]
    width, hidden = x.shape[1], part.shape[1]
    embed(inputs, ngrams, widths, rows, grams, numerator, x, u)
    for k in range(distances.shape[0]):
        s = scales[4 * k]
        own = sums[: count * s[2]].reshape(count, s[2])
        product(u, _weights(weights, s), first, own)
        attend(
            own, multipliers[s[1] : s[1] + s[2]], s[4], s[5], keys[k][:lanes], values[k][:lanes], known, columns,
            distances[k], attention_table, attended,
        )  # fmt: skip
        s = scales[4 * k + 1]
        own = sums[: count * width].reshape(count, width)
        product(attended, _weights(weights, s), first, own)
        add_norm(own, multipliers[s[1] : s[1] + s[2]], s[4], s[5], numerator, x, u)
        for r in range(0, count, BLOCK):
            to = min(r + BLOCK, count)
            s = scales[4 * k + 2]
            own = sums[: (to - r) * hidden].reshape(to - r, hidden)
            product(u[r:to], _weights(weights, s), first, own)
            square(own, multipliers[s[1] : s[1] + s[2]], s[4], s[5], part[: to - r])
            s = scales[4 * k + 3]
            own = sums[: (to - r) * width].reshape(to - r, width)
            product(part[: to - r], _weights(weights, s), first, own)
            add_norm(own, multipliers[s[1] : s[1] + s[2]], s[4], s[5], numerator, x[r:to], u[r:to])
    s = scales[-1]
    own = sums[: count * 256].reshape(count, 256)
    product(u, _weights(weights, s), first, own)
    frequencies(own, multipliers[s[1] :], s[4], s[5], candidates, buckets, biases, frequency_table, out)


@njit(cache=True, nogil=True, inline="always")
def _weights(weights: UInt8, s: NDArray[np.int64]) -> UInt8:
    return weights[s[0] : s[0] + s[2] * s[3]]


class VnniModel:
    """A model's weights, packed. Threads may share it."""

    def __init__(self, weights: Weights) -> None:
        """Raise `CodecError` where the processor lacks the instruction, `ModelMissing` for sizes without a kernel."""
        if not available():
            raise CodecError("this processor has no AVX-512 VNNI")
        a = weights.architecture
        if (a.head, a.window, a.heads // a.kv_heads) != (HEAD, WINDOW, numbakernels.GROUP):
            raise ModelMissing(f"the CPU engine has no kernel for heads of {a.head} and a window of {a.window}")
        self.weights = weights
        products = [p for layer in weights.layers for p in (layer.qkv, layer.out, layer.up, layer.down)]
        products.append(weights.head)
        starts = np.cumsum([0, *(p.weight.size for p in products)]), np.cumsum([0, *map(_outputs, products)])
        scales = [(starts[0][i], starts[1][i], *p.weight.shape, p.pre, p.shift) for i, p in enumerate(products)]
        self.constants = (
            weights.inputs, *numbakernels.flat_ngrams(weights.ngrams),
            np.concatenate([packed(p.weight) for p in products]), np.concatenate([p.multiplier for p in products]),
            np.array(scales, np.int64), np.stack([layer.distance for layer in weights.layers]), weights.biases,
            weights.attention_table, weights.frequency_table, norm_numerator(a.width),
        )  # fmt: skip

    def engine(self, lanes: int, columns: int = 1) -> VnniEngine:
        return VnniEngine(self, lanes, columns)


def _outputs(p: Product) -> int:
    return p.weight.shape[0]


class VnniEngine:
    """The network for `lanes` lanes side by side, from their first column on, at most `columns` columns in one call."""

    def __init__(self, model: VnniModel, lanes: int, columns: int = 1) -> None:
        a, rows = model.weights.architecture, lanes * columns
        self.model, self.lanes, self.known = model, lanes, 0
        self.keys = np.zeros((a.layers, lanes, a.kv_heads, a.head, a.window), np.int8)
        self.values = np.zeros((a.layers, lanes, a.kv_heads, a.window, a.head), np.int8)
        self.x, self.u = np.empty((rows, a.width), np.int32), np.empty((rows, a.width), np.int8)
        self.attended = np.empty((rows, a.heads * a.head), np.int8)
        widest = max((a.heads + 2 * a.kv_heads) * a.head, a.width, 256)
        self.sums = np.empty(max(rows * widest, min(rows, BLOCK) * a.hidden), np.int32)
        self.part = np.empty((min(rows, BLOCK), a.hidden), np.int8)
        self.first, self.out = np.empty(max(rows, BLOCK), np.int32), np.empty((rows, 256), np.uint32)

    def forward(self, f: Features) -> NDArray[np.uint32]:
        """Return the frequencies (columns lanes, 256) for the features of some columns, (columns, lanes, ...).

        Fewer lanes than the engine has are its first ones: the others have ended. The result is valid until the next
        call.
        """
        columns, lanes = f.rows.shape[:2]
        rows = columns * lanes
        out = self.out[:rows]
        _step(
            *self.model.constants,
            *(field.reshape(rows, -1) for field in f),
            self.keys, self.values, lanes, self.known, columns,
            self.x[:rows], self.u[:rows], self.attended[:rows], self.part, self.sums, self.first, out,
        )  # fmt: skip
        self.known += columns
        return out
