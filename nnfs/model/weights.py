"""A network's weights in their stored form: integers, an architecture, a fingerprint.

The file is safetensors: the tensors of `Weights`, and in its metadata the architecture and the provenance (how it was
trained, on what). The fingerprint is the BLAKE2b-512 of architecture and tensors; it names the model for ever and does
not depend on the provenance.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from nnfs.errors import ModelMissing
from nnfs.mixer import startvalues
from nnfs.mixer.startvalues import StartValues
from nnfs.model.architecture import BIASES, BYTES, CANDIDATES, INPUT_ROWS, Architecture
from nnfs.model.fixedpoint import ATTENTION_TOP, FREQUENCY_TOP, MAX_SHIFT, MULTIPLIER_LIMIT, TABLE, pre_shift

FINGERPRINT_SIZE = 64  # bytes
INT32 = (1 << 31) - 1
DICTIONARY = "dictionary"  # the name of its tensor
MOST_DICTIONARY = 1 << 20  # bytes, as stored

Int8 = NDArray[np.int8]
Int32 = NDArray[np.int32]
UInt8 = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
    """The weights of a product: int8 integers, and the multipliers that scale their sums."""

    weight: Int8  # (outputs, inputs), within +-127
    multiplier: Int32  # (outputs,)
    shift: int

    @property
    def pre(self) -> int:
        """The shift before the multiplication."""
        return pre_shift(self.weight.shape[1])

    @property
    def peak(self) -> int:
        """The greatest absolute value of an intermediate integer: before the last shift."""
        sums: int = (self.weight.shape[1] * 127 * 127 + (1 << self.pre >> 1)) >> self.pre
        return sums * int(self.multiplier.max()) + (1 << (self.shift - 1))


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """One layer: attention, then the feed-forward part."""

    qkv: Product  # (heads * head + 2 * kv_heads * head, width): queries, keys, values
    out: Product  # (width, heads * head)
    up: Product  # (hidden, width)
    down: Product  # (width, hidden)
    distance: Int32  # (heads, window): score of a key by how many positions it lies back


@dataclasses.dataclass(frozen=True, slots=True)
class Weights:
    """All weights and tables that inference needs."""

    architecture: Architecture
    inputs: Int8  # (INPUT_ROWS, width)
    ngrams: tuple[Int8, ...]  # each (2^ngram_bits, its width)
    layers: tuple[Layer, ...]
    head: Product  # (256, width)
    biases: Int32  # (BIASES,)
    attention_table: Int32  # (TABLE,): 2047 exp(-i/64)
    frequency_table: Int32  # (TABLE,): 2^20 exp(-i/64)
    start: StartValues = dataclasses.field(default_factory=lambda: startvalues.untrained(True))  # of the mixing stage
    dictionary: UInt8 = dataclasses.field(
        default_factory=lambda: np.zeros(0, np.uint8)
    )  # see `nnfs.codec.storeddictionary`

    def fingerprint(self) -> bytes:
        """Return the 64 bytes that name this model."""
        return fingerprint_of(self.architecture, _flat(self))


def fingerprint_of(architecture: Architecture, tensors: dict[str, NDArray[Any]]) -> bytes:
    """Return the 64 bytes that name a model with these tensors."""
    digest = hashlib.blake2b(architecture.to_json().encode(), digest_size=FINGERPRINT_SIZE)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.digest()


def _flat(w: Weights) -> dict[str, NDArray[Any]]:
    """Return the tensors by name."""
    tensors: dict[str, NDArray[Any]] = {
        "inputs": w.inputs,
        "biases": w.biases,
        "attention_table": w.attention_table,
        "frequency_table": w.frequency_table,
    }
    for k, table in enumerate(w.ngrams):
        tensors[f"ngrams.{k}"] = table
    for name, product in _products(w):
        tensors |= {
            f"{name}.weight": product.weight,
            f"{name}.multiplier": product.multiplier,
            f"{name}.shift": np.array([product.shift], np.int32),
        }
    for k, layer in enumerate(w.layers):
        tensors[f"layers.{k}.distance"] = layer.distance
    for name in startvalues.STORED:
        tensors[f"start.{name}"] = getattr(w.start, name)
    if w.dictionary.size:
        tensors[DICTIONARY] = w.dictionary
    return tensors


def _products(w: Weights) -> Iterator[tuple[str, Product]]:
    for k, layer in enumerate(w.layers):
        for part in ("qkv", "out", "up", "down"):
            yield f"layers.{k}.{part}", getattr(layer, part)
    yield "head", w.head


def save_weights(w: Weights, path: str, provenance: dict[str, str]) -> None:
    """Write a model file, completely or not at all."""
    part = path + ".part"
    with open(part, "wb") as file:
        about = {"architecture": w.architecture.to_json(), "fingerprint": w.fingerprint().hex()}
        file.write(save(_flat(w), provenance | about))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def load_weights(content: bytes) -> Weights:
    """Return the weights in the bytes of a model file.

    Raises `ModelMissing` for a file that is damaged, whose content is not what its fingerprint names, or that this
    nnfs cannot run.
    """
    try:
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
        weights = _checked(tensors, Architecture.from_json(metadata["architecture"]))
    except (SafetensorError, ValueError, TypeError, KeyError, IndexError) as error:
        raise ModelMissing(f"not a model file: {error}") from error
    stated = metadata.get("fingerprint")
    if stated is not None and stated != (found := weights.fingerprint().hex()):
        raise ModelMissing(
            f"the model's file is damaged: it says that it is {stated[:16]}, but its content is {found[:16]}"
        )
    return weights


class _Reader:
    """The tensors of a file, taken by name; each must have the type and shape that the architecture demands."""

    def __init__(self, tensors: dict[str, NDArray[Any]]) -> None:
        self._tensors = tensors

    def take(self, name: str, dtype: type, *shape: int) -> NDArray[Any]:
        tensor = self._tensors.pop(name)
        if tensor.dtype != dtype or tensor.shape != shape:
            raise ValueError(f"{name} is {tensor.dtype}{tensor.shape}, not {np.dtype(dtype)}{shape}")
        if dtype is np.int8 and tensor.size and tensor.min() < -127:
            raise ValueError(f"{name} has a weight of -128: sums would not be exact")
        return np.ascontiguousarray(tensor)

    def product(self, name: str, outputs: int, inputs: int) -> Product:
        product = Product(
            self.take(f"{name}.weight", np.int8, outputs, inputs),
            self.take(f"{name}.multiplier", np.int32, outputs),
            int(self.take(f"{name}.shift", np.int32, 1)[0]),
        )
        least, most = int(product.multiplier.min()), int(product.multiplier.max())
        if not (1 <= product.shift <= MAX_SHIFT and 0 <= least <= most <= MULTIPLIER_LIMIT):
            raise ValueError(f"the scale of {name} is out of range")
        if product.peak > INT32:
            raise ValueError(f"the scale of {name} does not fit int32 arithmetic")
        return product

    def table(self, name: str, top: int) -> Int32:
        table = self.take(name, np.int32, TABLE)
        if not 0 <= table.min() <= table.max() <= top or table[0] != top:
            raise ValueError(f"{name} is out of range")
        return table

    def dictionary(self) -> UInt8:
        """Return the dictionary in its stored form, empty without one: few models have one."""
        if DICTIONARY not in self._tensors:
            return np.zeros(0, np.uint8)
        size = self._tensors[DICTIONARY].size
        if not 0 < size <= MOST_DICTIONARY:
            raise ValueError(f"a dictionary of {size} bytes")
        return self.take(DICTIONARY, np.uint8, size)

    def limited(self, name: str, limit: int, *shape: int) -> Int32:
        tensor = self.take(name, np.int32, *shape)
        if tensor.min() < -limit or tensor.max() > limit:
            raise ValueError(f"{name} is out of range")
        return tensor


def _start(reader: _Reader) -> StartValues:
    """Return the start values of the mixer. Any integers are valid."""
    plain = startvalues.untrained(True)
    taken = {}
    for name in startvalues.STORED:
        like = getattr(plain, name)
        taken[name] = reader.take(f"start.{name}", like.dtype.type, *like.shape)
    return dataclasses.replace(plain, **taken)


def _checked(tensors: dict[str, NDArray[Any]], a: Architecture) -> Weights:
    reader = _Reader(tensors)
    queries = a.heads * a.head
    weights = Weights(
        a,
        reader.take("inputs", np.int8, INPUT_ROWS, a.width),
        tuple(reader.take(f"ngrams.{k}", np.int8, 1 << a.ngram_bits, width) for k, width in enumerate(a.ngram_widths)),
        tuple(
            Layer(
                reader.product(f"layers.{k}.qkv", queries + 2 * a.kv_heads * a.head, a.width),
                reader.product(f"layers.{k}.out", a.width, queries),
                reader.product(f"layers.{k}.up", a.hidden, a.width),
                reader.product(f"layers.{k}.down", a.width, a.hidden),
                reader.limited(f"layers.{k}.distance", 1 << 24, a.heads, a.window),
            )
            for k in range(a.layers)
        ),
        reader.product("head", BYTES, a.width),
        reader.limited("biases", 1 << 24, BIASES),
        reader.table("attention_table", ATTENTION_TOP),
        reader.table("frequency_table", FREQUENCY_TOP),
        _start(reader),
        reader.dictionary(),
    )
    logit = (weights.head.peak >> weights.head.shift) + CANDIDATES * int(np.abs(weights.biases).max())
    if 2 * logit > INT32:
        raise ValueError("differences of logits do not fit int32 arithmetic")
    if tensors:
        raise ValueError(f"unknown tensors: {', '.join(sorted(tensors))}")
    return weights
