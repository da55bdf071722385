"""Section 7: model files, fingerprints, deltas."""

from __future__ import annotations

import hashlib
import json
import lzma
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.format.decoder.rans import Damaged

TYPES = {"I8": "|i1", "U8": "|u1", "I32": "<i4", "U32": "<u4"}
MAGIC = b"nnfs-d\x01\n"
Tensors = dict[str, NDArray[Any]]


def read_safetensors(file: bytes) -> tuple[Tensors, dict[str, str]]:
    """7.1: tensors and metadata."""
    size = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, about in header.items():
        begin, end = about["data_offsets"]
        data = file[8 + size + begin : 8 + size + end]
        tensors[name] = np.frombuffer(data, TYPES[about["dtype"]]).reshape(about["shape"])
    return tensors, metadata


def fingerprint(architecture: dict[str, Any], tensors: Tensors) -> bytes:
    """7.2: what names a model."""
    digest = hashlib.blake2b(json.dumps(architecture, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        shape = "(" + ", ".join(map(str, tensor.shape)) + (",)" if tensor.ndim == 1 else ")")
        digest.update(f"{name} {tensor.dtype.str} {shape}".encode() + tensor.tobytes())
    return digest.digest()


class Model:
    """A whole model's file."""

    def __init__(self, file: bytes) -> None:
        self.tensors, metadata = read_safetensors(file)
        self.architecture = json.loads(metadata["architecture"])
        if self.architecture["profile"] != 1:
            raise Damaged("another profile")
        self.fingerprint = fingerprint(self.architecture, self.tensors)


def compose(base: Model, file: bytes) -> Model:
    """7.7: the model that a delta makes of its base."""
    if not file.startswith(MAGIC) or file[8:72] != base.fingerprint:
        raise Damaged("no delta, or not of this base")
    changes, _ = read_safetensors(lzma.decompress(file[72:], lzma.FORMAT_XZ))
    model = Model.__new__(Model)
    model.architecture, model.tensors = base.architecture, dict(base.tensors)
    for name, change in changes.items():
        kind, _, of = name.partition(".")
        if kind in ("dictionary", "biases"):
            model.tensors[name] = change
        elif kind == "start":
            low, high = change.astype(np.int64)
            model.tensors[name] = moved(of, model.tensors[name], low + 256 * high)
        elif kind == "left":
            weight = model.tensors[f"{of}.weight"].astype(np.int64)
            rows, columns = np.indices(weight.shape)
            dither = ((40503 * rows + 24251 * columns) & 0xFFFF) >> 8
            product = change.astype(np.int64) @ changes[f"right.{of}"].astype(np.int64)
            model.tensors[f"{of}.weight"] = np.clip(weight + (16 * product + dither >> 8), -127, 127).astype("|i1")
    model.fingerprint = fingerprint(model.architecture, model.tensors)
    return model


def moved(name: str, values: NDArray[Any], steps: NDArray[np.int64]) -> NDArray[Any]:
    """Start values moved by so many steps."""
    old = values.astype(np.int64)
    if name in ("weights", "weights_last"):
        return (old + 1024 * steps).astype(values.dtype)
    p = np.clip((old >> 10) + 1024 * steps, 0, (1 << 22) - 1)
    return np.where(steps != 0, p << 10 | 100, old).astype(values.dtype)
