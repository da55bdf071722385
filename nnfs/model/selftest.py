"""The self-test: a small network on a device must give the integers of every other machine, by a stored digest.

A kernel that deviates would write payloads that no other machine can read. So nothing is coded on a
device before its engine has given the frequencies that it should.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from nnfs.errors import CodecError
from nnfs.kernels import library as native
from nnfs.model import fixedpoint
from nnfs.model.architecture import (
    AGE_ROW,
    AGES,
    BIASES,
    BYTES,
    CANDIDATES,
    INPUT_ROWS,
    MATCH_ROW,
    NGRAMS,
    ORDER_ROW,
    ORDER_ROWS,
    ORDERS,
    Architecture,
)
from nnfs.model.engines import Engine, Model, open_model
from nnfs.model.features import Features
from nnfs.model.native import NativeModel
from nnfs.model.weights import Layer, Product, Weights

log = logging.getLogger(__name__)

ARCHITECTURE = Architecture(
    width=64, layers=2, heads=4, kv_heads=1, hidden=128, ngram_bits=8, ngram_widths=(16, 16, 16, 8, 8)
)
LANES = 5
CALLS = (32, 32, 1, 1, 2, 1, 1, 2)  # columns, more than a window
SINGLE = 7  # columns that are also stepped one by one
DIGEST = "a254c95b748e49532949084cba30a162"


def usable(device: str) -> str:
    """Return the device to code on, which has passed the test: for "auto" a GPU that passes it, else "cpu".

    Raises `CodecError`.
    """
    if device == "auto":
        if _has_gpu():
            try:
                run("cuda")
                return "cuda"
            except CodecError as why:
                log.warning("%s", why)
        device = "cpu"
    run(device)
    return device


def _has_gpu() -> bool:
    """Return whether torch finds a GPU. torch is imported only where the system has a device file of one."""
    if not any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg"))):
        return False
    try:
        import torch
    except ImportError:
        return False
    found: bool = torch.cuda.is_available()
    return found


@cache
def run(device: str, product: str | None = None) -> None:
    """Test a device ("cpu", "cuda:0"), once per process. Raises `CodecError` when it fails."""
    try:
        found = digest(open_model(weights(), device, product))
    except (RuntimeError, AssertionError) as error:  # torch without CUDA, a CUDA without a device, not enough memory
        raise CodecError(f"{device} cannot be used: {error}") from error
    if found != DIGEST:
        raise CodecError(f"{device} does not compute what it should: the neural codec cannot run on it")


@cache
def native_level() -> str | None:
    """Return the first level of the native kernels that passes the test, None for none of them.

    Raises `CodecError` for a forced one that fails.
    """
    return native.sound_level(lambda name: digest(NativeModel(weights(), name)) == DIGEST, "kernels")


def digest(model: Model) -> str:
    """Return the digest of the frequencies of a model of `weights()`. Raises `CodecError`."""
    f = features(sum(CALLS), LANES)
    found = frequencies(model.engine(LANES, max(CALLS)), f, CALLS)
    single = frequencies(model.engine(LANES), f, [1] * SINGLE)
    if not np.array_equal(single, found[: len(single)]):
        raise CodecError("a column alone is not computed as it is among others")
    return hashlib.blake2b(found.astype("<u4").tobytes(), digest_size=16).hexdigest()


def frequencies(engine: Engine, f: Features, calls: Iterable[int]) -> NDArray[np.uint32]:
    """Return the frequencies (columns lanes, 256) of columns stepped by calls of these lengths."""
    found, at = [], 0
    for count in calls:
        found.append(engine.forward(f.columns(at, at + count)).copy())
        at += count
    return np.concatenate(found)


class Numbers:
    """Pseudo-random numbers that are the same in every version and on every machine."""

    def __init__(self, seed: bytes) -> None:
        self._seed, self._count = seed, 0

    def take(self, low: int, high: int, *shape: int) -> NDArray[np.int32]:
        """Return integers from `low` to `high`, both included."""
        self._count += 1
        size = int(np.prod(shape))
        data = hashlib.shake_256(self._seed + self._count.to_bytes(4, "little")).digest(4 * size)
        numbers = np.frombuffer(data, "<u4").astype(np.int64) % (high - low + 1) + low
        return numbers.astype(np.int32).reshape(shape)


def weights(a: Architecture = ARCHITECTURE, seed: bytes = b"weights") -> Weights:
    """Return a network of random weights that keeps its activations in the middle of their ranges."""
    numbers = Numbers(seed)

    def product(outputs: int, inputs: int, shift: int) -> Product:
        weight = numbers.take(-127, 127, outputs, inputs).astype(np.int8)
        return Product(weight, numbers.take(1 << 13, fixedpoint.MULTIPLIER_LIMIT, outputs), shift)

    def layer() -> Layer:
        queries = a.heads * a.head
        return Layer(
            product(queries + 2 * a.kv_heads * a.head, a.width, 20),
            product(a.width, queries, 12),
            product(a.hidden, a.width, 17),
            product(a.width, a.hidden, 13),
            numbers.take(-8192, 8192, a.heads, a.window),
        )

    return Weights(
        a,
        numbers.take(-127, 127, INPUT_ROWS, a.width).astype(np.int8),
        tuple(numbers.take(-127, 127, 1 << a.ngram_bits, width).astype(np.int8) for width in a.ngram_widths),
        tuple(layer() for _ in range(a.layers)),
        product(BYTES, a.width, 17),
        numbers.take(-1024, 1024, BIASES),
        falling(fixedpoint.ATTENTION_TOP),
        falling(fixedpoint.FREQUENCY_TOP),
    )


def falling(top: int) -> NDArray[np.int32]:
    """Return a table that falls from `top` by about 1/64 in each step."""
    table = np.empty(fixedpoint.TABLE, np.int32)
    for i in range(fixedpoint.TABLE):
        table[i] = top
        top = top * 1008 // 1024
    return table


def features(
    columns: int, lanes: int, ngram_bits: int = ARCHITECTURE.ngram_bits, seed: bytes = b"features"
) -> Features:
    """Return features within their ranges that belong to no real bytes."""
    numbers, shape = Numbers(seed), (columns, lanes)
    order_rows = (ORDER_ROW + k * ORDER_ROWS + numbers.take(0, ORDER_ROWS - 1, *shape) for k in range(len(ORDERS)))
    rows = (
        numbers.take(0, BYTES, *shape),
        AGE_ROW + numbers.take(0, AGES - 1, *shape),
        *order_rows,
        MATCH_ROW + numbers.take(0, INPUT_ROWS - MATCH_ROW - 1, *shape),
    )
    return Features(
        np.stack(rows, -1),
        numbers.take(0, (1 << ngram_bits) - 1, *shape, len(NGRAMS)),
        numbers.take(0, BYTES - 1, *shape, CANDIDATES).astype(np.uint8),
        numbers.take(0, BIASES - 1, *shape, CANDIDATES),
    )
