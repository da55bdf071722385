"""Small dense products of the attention kernel, written as vectors of LLVM's intermediate language.

Numba's own loops leave their accumulators in memory here, 4 to 10 times slower. The vectors are of 16 float32, which
every target of LLVM can take apart; they hold integers below 2^24, so neither the order nor a fused multiply-add could
change a sum.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

VECTOR = 16
_FLOAT, _BYTE = ir.FloatType(), ir.IntType(8)
_FLOATS, _BYTES = ir.VectorType(_FLOAT, VECTOR), ir.VectorType(_BYTE, VECTOR)


def array_at(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Return the pointer to the first element of an array."""
    return context.make_array(kind)(context, builder, value).data


def _splat(builder: Any, x: Any) -> Any:
    vector = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), x, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), [0] * VECTOR)
    return builder.shuffle_vector(vector, ir.Constant(_FLOATS, ir.Undefined), zeros)


def _widened(builder: Any, pointer: Any) -> Any:
    """Load 16 int8 as float32."""
    whole = builder.load(builder.bitcast(pointer, _BYTES.as_pointer()), align=1)
    return builder.sitofp(builder.sext(whole, ir.VectorType(ir.IntType(32), VECTOR)), _FLOATS)


def make_product(group: int, inner: int, outer: int) -> Any:
    """Return `product(left, right, start, stride, out)`: (group, inner) float32 . int8 rows -> (group, outer) float32.

    Row c of the right operand is the `outer` bytes of the flat array `right` from `start + c stride`.
    """
    tiles = outer // VECTOR

    @intrinsic
    def product(_typing: Any, left: Any, right: Any, _start: Any, _stride: Any, out: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a, b, o = (array_at(context, builder, signature.args[i], arguments[i]) for i in (0, 1, 4))
            index = ir.IntType(64)
            zero = ir.Constant(_FLOATS, [0.0] * VECTOR)
            sums = [[zero] * tiles for _ in range(group)]
            row = builder.gep(b, [arguments[2]])
            for c in range(inner):
                right_tiles = [_widened(builder, builder.gep(row, [index(t * VECTOR)])) for t in range(tiles)]
                for g in range(group):
                    factor = _splat(builder, builder.load(builder.gep(a, [index(g * inner + c)])))
                    for t in range(tiles):
                        sums[g][t] = builder.fadd(sums[g][t], builder.fmul(factor, right_tiles[t]))
                row = builder.gep(row, [arguments[3]])
            for g in range(group):
                for t in range(tiles):
                    place = builder.bitcast(builder.gep(o, [index(g * outer + t * VECTOR)]), _FLOATS.as_pointer())
                    builder.store(sums[g][t], place, align=4)
            return context.get_dummy_value()

        return types.void(left, right, types.int64, types.int64, out), code

    return product
