"""Small networks with the weights that tests want."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nnfs.model import fixedpoint, selftest
from nnfs.model.architecture import BIASES, INPUT_ROWS, Architecture
from nnfs.model.features import Features
from nnfs.model.forward import Multiply, Reference, float_product
from nnfs.model.weights import Layer, Product, Weights

TINY = selftest.ARCHITECTURE
ONE_LAYER = dataclasses.replace(TINY, layers=1, heads=8, kv_heads=2, hidden=192)


@cache
def random_weights(seed: int = 0, a: Architecture = TINY) -> Weights:
    """Return weights that keep activations in the middle of their ranges."""
    return selftest.weights(a, b"test %d" % seed)


@cache
def trained_weights() -> Weights:
    """Return a network as it stands before its first step of training, stored as training stores it."""
    from nnfs.train.network import Network
    from nnfs.train.quantise import quantised

    torch.manual_seed(5)
    return quantised(Network(TINY))


def _pattern(kind: str, rows: int, inputs: int) -> NDArray[np.int8]:
    weight = np.full((rows, inputs), 127, np.int8)
    if kind == "alternating":
        weight[:, 1::2] = -127
        weight[1::2] *= -1
    if kind == "halves":
        weight[rows // 2 :] = -127
    return weight


@cache
def extreme_weights(kind: str, shift: int) -> Weights:
    """Return weights of +-127 alone, the greatest multipliers, and biases and distances at their limits."""
    a = TINY

    def product(rows: int, inputs: int, shift: int) -> Product:
        return Product(_pattern(kind, rows, inputs), np.full(rows, fixedpoint.MULTIPLIER_LIMIT, np.int32), shift)

    def layer(k: int) -> Layer:
        distance = np.full((a.heads, a.window), 1 << 24, np.int32)
        distance[:, k::3] = -(1 << 24)
        distance[1] = 0
        queries = a.heads * a.head
        return Layer(
            product(queries + 2 * a.kv_heads * a.head, a.width, shift),
            product(a.width, queries, shift),
            product(a.hidden, a.width, shift),
            product(a.width, a.hidden, shift),
            distance,
        )

    biases = np.full(BIASES, 1 << 24, np.int32)
    biases[::2] *= -1
    return Weights(
        a,
        _pattern(kind, INPUT_ROWS, a.width),
        tuple(_pattern(kind, 1 << a.ngram_bits, width) for width in a.ngram_widths),
        tuple(layer(k) for k in range(a.layers)),
        product(256, a.width, max(shift, 2)),
        biases,
        np.full(
            fixedpoint.TABLE, fixedpoint.ATTENTION_TOP, np.int32
        ),  # the greatest sums, and no weight that hides what is unseen
        selftest.falling(fixedpoint.FREQUENCY_TOP),
    )


def fields(f: Features) -> tuple[NDArray[Any], ...]:
    """Return the arrays of some features, as arrays of anything."""
    return (f.rows, f.ngrams, f.candidates, f.buckets)


def expected(w: Weights, f: Features, multiply: Multiply = float_product) -> NDArray[np.uint32]:
    """Return what the reference makes of all columns at once, (columns lanes, 256)."""
    columns, lanes = f.rows.shape[:2]
    found = Reference(w, lanes, multiply=multiply).forward(*map(torch.from_numpy, f))
    frequencies: NDArray[np.uint32] = found.numpy().view(np.uint32).reshape(columns * lanes, 256)
    return frequencies
