"""The kernels of AArch64, compiled by a cross compiler and run by qemu-user: they decode what was encoded here.

Features, network, mixer, coder and codec 19 all have to give the same integers for that. Skipped where one of both
programs is missing (Debian: gcc-aarch64-linux-gnu, qemu-user).
"""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnfs.codec import neural
from nnfs.codec.neural import Neural
from nnfs.codec.neuralnative import NativeBatch
from nnfs.codec.ppm import PartialMatching
from nnfs.kernels import build
from nnfs.kernels import library as library_of
from nnfs.kernels.library import LEVELS
from nnfs.mixer import native
from nnfs.mixer.native import Kernels
from nnfs.model import selftest
from nnfs.model.native import NativeModel
from tests.kernels.kit import library
from tests.model.golden import sample

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
SIZE, LANES = 700, 5


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which(COMPILER) or not shutil.which(EMULATOR):
        pytest.skip(f"there is no {COMPILER} or no {EMULATOR}")
    folder = tmp_path_factory.mktemp("cross")
    shared = build.compile_to(str(folder / "libkernels.so"), [COMPILER, "-O1"], machine="aarch64")
    source = Path(__file__).with_name("cross.c")
    command = [COMPILER, "-O1", str(source), shared, "-Wl,-rpath," + str(folder), "-o", str(folder / "cross")]
    subprocess.run(command, check=True)
    return folder / "cross"


def image(parts: Sequence[tuple[int, int]]) -> tuple[bytes, list[int], dict[int, int]]:
    """Return these (address, size) as one piece of memory, where its pointers are, and where each address went.

    A pointer is any aligned number that names a place within one of the parts.
    """
    begin: dict[int, int] = {}
    size = 0
    for address, own in parts:
        begin[address] = size
        size += -(-own // 64) * 64
    memory = bytearray(size)
    for address, own in parts:
        memory[begin[address] : begin[address] + own] = ctypes.string_at(address, own)
    words = np.frombuffer(memory, np.uint64)
    places: list[int] = []
    for address, own in parts:
        for at in np.flatnonzero((words >= address) & (words < address + own)):
            words[at] = int(words[at]) - address + begin[address]
            places.append(8 * int(at))
    return bytes(memory), places, begin


def of_arrays(*arrays: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
    return [(array.ctypes.data, array.nbytes) for array in arrays if array.nbytes]


def of_structures(*structures: Any) -> list[tuple[int, int]]:
    return [(ctypes.addressof(one), ctypes.sizeof(one)) for one in structures]


def image_of(batch: NativeBatch, kernels: Kernels, mix: Any, coders: Any, columns: int) -> bytes:
    """Return what `cross` reads, up to the payload of codec 19."""
    past, model = batch.past, batch.model
    plain = mix.stack.plain[0]
    own = [one for one in batch._kept if isinstance(one, ctypes.Array)]
    living = [one for one in batch._kept if isinstance(one, np.ndarray)]
    parts = of_structures(model.network, model._products, batch.batch, batch._pasts, *own)
    parts += of_arrays(
        *model._kept, *batch._room, batch._first, *living, kernels._tables, past.orders, past.starts, past.lane,
        coders.states, coders.words, *(field for field in mix.stack),
    )  # fmt: skip
    memory, places, begin = image(parts)
    head = struct.pack(
        "<7q", len(places), len(memory), begin[ctypes.addressof(model.network)],
        begin[ctypes.addressof(batch.batch)], columns, begin[mix.stack.plain.ctypes.data], plain.size,
    )  # fmt: skip
    return head + struct.pack(f"<{len(places)}q", *places) + memory


@pytest.mark.parametrize("level", ["neon", "portable"])
def test_aarch64_decodes_what_was_encoded_here(
    level: str, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = Kernels(library(), "portable")
    weights = selftest.weights()
    model = NativeModel(weights, "portable", library())
    monkeypatch.setattr(native, "kernels", lambda: kernels)
    monkeypatch.setattr(neural, "open_model", lambda *_: model)
    monkeypatch.setattr(neural, "lanes_for", lambda _: LANES)
    codec, plain = Neural(weights), sample(SIZE, 6)
    (payload,) = codec._encode([(plain, False)], lambda: None)
    other = PartialMatching().encode(plain)
    assert other is not None
    made: list[bytes] = []
    decode = NativeBatch.decode

    def instead(self: NativeBatch, kernels: Kernels, mix: Any, coders: Any, *rest: Any) -> list[int]:
        monkeypatch.setattr(self, "_call", lambda *_: None)
        found = decode(self, kernels, mix, coders, *rest)
        made.append(image_of(self, kernels, mix, streams[-1], -(-SIZE // LANES)))
        return found

    streams: list[Any] = []
    start = neural._Coders.__init__

    def keep(self: Any, *arguments: Any) -> None:
        start(self, *arguments)
        streams.append(self)

    monkeypatch.setattr(neural._Coders, "__init__", keep)
    monkeypatch.setattr(NativeBatch, "decode", instead)
    codec._decode([(payload, SIZE)], lambda: None)
    stored = tmp_path / "image"
    stored.write_bytes(made[0] + struct.pack("<2q", len(other) - 1, SIZE) + other[1:])
    command = [EMULATOR, "-cpu", "max", "-L", "/usr/aarch64-linux-gnu", str(program), str(stored)]
    done = subprocess.run([*command, str(LEVELS.index(level))], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert done.stdout == plain * 2
    assert library_of.library() is not None
