"""The native library: loaded once per process, its structures, and the choice of a level.

A level is a set of instructions that all kernels were compiled for. `NNFS_KERNELS` names one (`LEVELS`), or "none" for
numba's kernels; without it the first that this processor has is taken. All levels give the same integers.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnfs.errors import CodecError
from nnfs.kernels import build

log = logging.getLogger(__name__)

VARIABLE = "NNFS_KERNELS"
NONE = "none"
LEVELS = ("amx", "vnni", "avxvnni", "avx2", "neon", "portable")  # in the order of preference and of `dispatch.c`
NGRAM_TABLES = 5

_PTR, _I32, _I64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class Product(ctypes.Structure):
    """`Product` of nnfs.h."""

    _fields_ = (
        ("weight", _PTR), ("multiplier", _PTR), ("outputs", _I32), ("inputs", _I32), ("pre", _I32), ("shift", _I32),
    )  # fmt: skip


class Network(ctypes.Structure):
    """`Network` of nnfs.h."""

    _fields_ = (
        *((name, _I32) for name in ("width", "layers", "heads", "kv_heads", "hidden", "input_rows", "ngram_bits")),
        ("bias_rows", _I32), ("numerator", _I64), ("inputs", _PTR), ("ngrams", _PTR * NGRAM_TABLES),
        ("ngram_widths", _I32 * (NGRAM_TABLES + 1)),
        *((name, _PTR) for name in ("biases", "attention", "frequency", "rings", "products")),
    )  # fmt: skip


class State(ctypes.Structure):
    """`State` of nnfs.h."""

    _fields_ = (
        ("lanes", _I64), ("rows", _I64), ("known", _I64),
        *((name, _PTR) for name in ("keys", "values", "x", "u", "act", "attended", "part", "logits", "out")),
    )  # fmt: skip


class Features(ctypes.Structure):
    """`Features` of nnfs.h."""

    _fields_ = (("rows", _PTR), ("ngrams", _PTR), ("candidate", _PTR), ("bucket", _PTR))


class Library:
    """The entry points, and the levels that can run here. Threads may share it: calls let go of the GIL."""

    def __init__(self, path: str) -> None:
        """Raises `OSError` for a file that cannot be loaded."""
        self.path = path
        self.calls: Any = ctypes.CDLL(path)
        for name, result, arguments in _ENTRY_POINTS:
            call = getattr(self.calls, name)
            call.restype, call.argtypes = result, arguments
        there = self.calls.nnfs_levels()  # AMX is asked of the system here, for all threads
        self.levels = tuple(name for i, name in enumerate(LEVELS) if there >> i & 1)


_NETWORK, _STATE, _FEATURES = map(ctypes.POINTER, (Network, State, Features))
_ENTRY_POINTS: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
    ("nnfs_levels", ctypes.c_uint32, ()),
    ("nnfs_offset", ctypes.c_int, (ctypes.c_int,)),
    ("nnfs_network_fits", ctypes.c_int, (_NETWORK,)),
    ("nnfs_state_start", _I64, (ctypes.c_int, _NETWORK, _STATE, _PTR, _I64, _I64)),
    ("nnfs_forward", ctypes.c_int, (ctypes.c_int, _NETWORK, _STATE, _FEATURES, _I64, _I64)),
)


def address(array: NDArray[Any]) -> int:
    """Return where a contiguous array begins; whoever hands that to C keeps the array."""
    if not array.flags.c_contiguous:
        raise ValueError("the kernels take contiguous arrays")
    return array.ctypes.data


def room(size: int) -> NDArray[np.uint8]:
    """Return memory that begins at a multiple of 64, the width of a vector and of a line of the cache."""
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


@cache
def library() -> Library | None:
    """Return the library, None where there is none: said once, for numba's kernels are a third as fast."""
    path = build.found()
    if path is None:
        log.info("no native kernels are compiled here: `python -m nnfs.kernels.build` does; numba's are used")
        return None
    try:
        return Library(path)
    except (OSError, AttributeError) as error:
        log.warning("the native kernels cannot be loaded (%s); numba's are used", error)
        return None


def level(forced: str | None = None) -> int | None:
    """Return the level to use, by its place in `LEVELS`; None for none.

    `forced` or NNFS_KERNELS names one. Raises `CodecError` for one that is not there.
    """
    name = forced or os.environ.get(VARIABLE) or ""
    if name == NONE:
        return None
    there = library()
    if not name:
        return LEVELS.index(there.levels[0]) if there else None
    if name not in LEVELS:
        raise CodecError(f"{VARIABLE}: no level {name}; there are: {', '.join(LEVELS)} and {NONE}")
    if not there or name not in there.levels:
        raise CodecError(f"{VARIABLE}: {name} cannot run here; what can: {', '.join(there.levels) if there else NONE}")
    return LEVELS.index(name)
