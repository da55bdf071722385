"""Deltas: the stored form of a fitted model, as changes of a whole model, its base.

The file: `MAGIC`, the fingerprint of the base, then, as an .xz stream, a safetensors file of

- `dictionary` uint8: a dictionary, as in a whole model's file;
- `start.NAME` int8 (2, ...): low and high bytes of the change of the mixer's start values, in steps of
  `STEP`;
- `left.NAME` int8 (outputs, rank) and `right.NAME` int8 (rank, inputs): their product is the change of the weights of a
  product, in `1 / UNIT` of a step;
- `biases` int32: the candidates' new biases.

A tensor may be missing: then it is as in the base. A change of less than a step is not lost: the weights that it moves
are chosen by a fixed pattern (`dither`), so that a sum of many changes correctly. All of it is integers, so a delta
makes the same model on every machine. It needs numpy only.
"""

from __future__ import annotations

import json
import lzma
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from nnfs.errors import ModelMissing
from nnfs.model.architecture import Architecture
from nnfs.model.weights import DICTIONARY, FINGERPRINT_SIZE, fingerprint_of

MAGIC = b"nnfs-d\x01\n"
HEAD = len(MAGIC) + FINGERPRINT_SIZE
UNIT = 4  # of `left` and of `right`: their product has 1/16
STEP = 1 << 10  # of start values; in maps of the probability, which has 22 bits
TRUST = 100  # uses that a changed entry of a map counts for
MOST = 1 << 24  # bytes that a delta may become
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0}]

Tensors = dict[str, NDArray[Any]]


def is_delta(data: bytes) -> bool:
    """Return whether a model's file is a delta."""
    return data.startswith(MAGIC)


def base_of(delta: bytes) -> bytes:
    """Return the fingerprint of the model that a delta changes. Raises `ModelMissing` for a file that is no delta."""
    if not is_delta(delta) or len(delta) <= HEAD:
        raise ModelMissing("not the delta of a fitted model")
    return delta[len(MAGIC) : HEAD]


def pack(base: bytes, changes: Tensors) -> bytes:
    """Return the file of a delta over the model with the fingerprint `base`."""
    stream = lzma.compress(save(changes), lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=FILTERS)
    return MAGIC + base + stream


def compose(base: bytes, delta: bytes) -> bytes:
    """Return the file of the whole model that a delta makes of its base's file.

    Raises `ModelMissing` for a damaged delta, or one over another model.
    """
    wanted = base_of(delta)
    try:
        tensors, about = _opened(base)
        architecture = Architecture.from_json(about["architecture"])
        if fingerprint_of(architecture, tensors) != wanted:
            raise ModelMissing(f"the fitted model is a delta over model {wanted.hex()[:16]}, not over the one given")
        _change(tensors, _unpacked(delta[HEAD:]))
    except (SafetensorError, lzma.LZMAError, ValueError, TypeError, KeyError, IndexError) as error:
        raise ModelMissing(f"not the delta of a fitted model, or not its base: {error}") from error
    about |= {"base": wanted.hex(), "fingerprint": fingerprint_of(architecture, tensors).hex()}
    return save(tensors, about)


def _opened(model: bytes) -> tuple[Tensors, dict[str, str]]:
    """Return the tensors of a model's file, and its metadata."""
    tensors = load(model)
    header = json.loads(model[8 : 8 + int.from_bytes(model[:8], "little")])
    return tensors, dict(header["__metadata__"])


def _unpacked(stream: bytes) -> Tensors:
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=1 << 28)
    content = decompressor.decompress(stream, MOST)
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("the delta is cut off, or something follows it")
    return load(content)


def _change(tensors: Tensors, changes: Tensors) -> None:
    """Apply the changes in place. Raises `KeyError` and `ValueError` for those that do not fit."""
    for name in sorted(changes):
        change = changes[name]
        kind, _, rest = name.partition(".")
        if kind == DICTIONARY or (kind == "biases" and change.shape == tensors[name].shape):
            tensors[name] = change
        elif kind == "start":
            tensors[name] = moved(rest, tensors[name], from_planes(change))
        elif kind == "left":
            weight = tensors[f"{rest}.weight"]
            tensors[f"{rest}.weight"] = adapted(weight, change, changes[f"right.{rest}"])
        elif kind != "right":
            raise ValueError(f"unknown change: {name}")


def dither(outputs: int, inputs: int) -> NDArray[np.int64]:
    """Return numbers below 256, spread evenly over the rows and columns of a product's weights."""
    rows, columns = np.arange(outputs, dtype=np.int64)[:, None], np.arange(inputs, dtype=np.int64)
    return (rows * 40503 + columns * 24251 & 0xFFFF) >> 8


def adapted(weight: NDArray[np.int8], left: NDArray[np.int8], right: NDArray[np.int8]) -> NDArray[np.int8]:
    """Return weights with a change of low rank."""
    change = left.astype(np.int64) @ right.astype(np.int64) * (256 // UNIT**2)
    if change.shape != weight.shape:
        raise ValueError(f"a change of {change.shape} for weights of {weight.shape}")
    return np.clip(weight + (change + dither(*weight.shape) >> 8), -127, 127).astype(np.int8)


def moved(name: str, values: NDArray[Any], steps: NDArray[np.int64]) -> NDArray[Any]:
    """Return start values moved by so many steps."""
    changed = values.astype(np.int64)
    if steps.shape != values.shape:
        raise ValueError(f"start values of {steps.shape} for {values.shape}")
    if name in ("weights", "weights_last"):
        return (changed + steps * STEP).astype(values.dtype)
    p = np.clip((changed >> 10) + steps * STEP, 0, (1 << 22) - 1)
    return np.where(steps != 0, p << 10 | TRUST, changed).astype(values.dtype)


def steps_between(name: str, before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.int64]:
    """Return the steps that bring start values closest to others."""
    a, b = before.astype(np.int64), after.astype(np.int64)
    if name not in ("weights", "weights_last"):
        a, b = a >> 10, b >> 10
    steps: NDArray[np.int64] = np.clip(np.rint((b - a) / STEP), -32000, 32000).astype(np.int64)
    return steps


def planes(steps: NDArray[np.int64]) -> NDArray[np.int8]:
    """Return 16-bit steps as low bytes, then high bytes: most of the latter are 0."""
    low = steps.astype(np.int8)
    return np.stack((low, (steps - low >> 8).astype(np.int8)))


def from_planes(stored: NDArray[np.int8]) -> NDArray[np.int64]:
    """Undo `planes`."""
    low, high = stored.astype(np.int64)
    steps: NDArray[np.int64] = low + (high << 8)
    return steps
