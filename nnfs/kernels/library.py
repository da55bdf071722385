"""The native library: loaded once per process, its structures, and the choice of a level.

A level is a set of instructions that all kernels were compiled for. `NNFS_KERNELS` names one (`LEVELS`), or "none" for
numba's kernels; without it the first that this processor has is taken. All levels give the same integers.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nnfs.errors import CodecError
from nnfs.kernels import build

log = logging.getLogger(__name__)

VARIABLE = "NNFS_KERNELS"
NONE = "none"
LEVELS = ("amx", "vnni", "avxvnni", "avx2", "neon", "portable")  # in the order of preference and of `dispatch.c`
NGRAM_TABLES = 5
HUGE = 1 << 21  # bytes of a huge page
MOST_TEAM = 4  # threads that step one chunk together, see team.h

_PTR, _I32, _I64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class Product(ctypes.Structure):
    """`Product` of nnfs.h."""

    _fields_ = (
        ("weight", _PTR), ("rows", _PTR), ("multiplier", _PTR),
        ("outputs", _I32), ("inputs", _I32), ("pre", _I32), ("shift", _I32),
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


class Mixer(ctypes.Structure):
    """`Mixer` of mixing.h."""

    _fields_ = (
        ("tables", _PTR), *((name, _I64) for name in ("size", "lanes", "stride", "begin", "lines")),
        *((name, _I64) for name in ("rate", "rate_last", "map_limit", "refine_limit")),
        *((name, _PTR) for name in ("plain", "table", "maps", "match_maps", "weights", "weights_last", "refine")),
        ("find", _PTR), ("record", _PTR),
    )  # fmt: skip


class Light(ctypes.Structure):
    """`Light` of mixing.h."""

    _fields_ = (
        ("tables", _PTR), ("size", _I64), ("lines", _I64),
        *((name, _PTR) for name in ("plain", "pairs", "table", "match_map", "weights", "weights_last")),
        ("refine", _PTR), ("find", _PTR),
    )  # fmt: skip


class Fields(ctypes.Structure):
    """`Fields` of mixing.h."""

    _fields_ = (
        ("tables", _PTR), *((name, _I64) for name in ("size", "lines", "stride", "width", "skip", "big")),
        *((name, _PTR) for name in ("plain", "table", "maps", "match_map", "guess_map", "delta", "indirect")),
        *((name, _PTR) for name in ("weights", "weights_last", "refine", "find")),
    )  # fmt: skip


class Coder(ctypes.Structure):
    """`Coder` of mixing.h."""

    _fields_ = (("states", _PTR), ("width", _I64), ("words", _PTR), ("size", _I64), ("cursor", _I64))


class Samples(ctypes.Structure):
    """`Samples` of mixing.h: the tables, then the fields of `nnfs.mixer.samplestate.Samples`."""

    _fields_ = tuple((f"field{i}", _PTR) for i in range(25))


class Past(ctypes.Structure):
    """`Past` of nnfs.h."""

    _fields_ = (
        ("plain", _PTR), ("size", _I64), ("lanes", _I64), ("begin", _I64), ("bits", _I64), ("orders", _PTR),
        ("entries", _I64), ("starts", _PTR), ("lane", _PTR),
    )  # fmt: skip


class Batch(ctypes.Structure):
    """`Batch` of nnfs.h."""

    _fields_ = (
        ("count", _I64), *((name, _PTR) for name in ("pasts", "mixers", "coders", "paths", "alive", "first")),
        ("rows", _I64), *((name, _PTR) for name in ("row", "ngram", "candidate", "bucket")),
    )  # fmt: skip


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


_INT = ctypes.c_int
_NETWORK, _STATE, _FEATURES, _MIXER, _CODER, _PAST, _BATCH = map(
    ctypes.POINTER, (Network, State, Features, Mixer, Coder, Past, Batch)
)
_ENTRY_POINTS: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
    ("nnfs_levels", ctypes.c_uint32, ()),
    ("nnfs_offset", _INT, (_INT,)),
    ("nnfs_network_fits", _INT, (_NETWORK,)),
    ("nnfs_state_start", _I64, (_INT, _NETWORK, _STATE, _PTR, _I64, _I64)),
    ("nnfs_forward", _INT, (_INT, _NETWORK, _STATE, _FEATURES, _I64, _I64)),
    ("nnfs_tables_size", _I64, ()),
    ("nnfs_tables", None, (_PTR,) * 6),
    ("nnfs_mix_encode", _INT, (_INT, _MIXER, _PTR, _PTR)),
    ("nnfs_mix_enter", _INT, (_INT, _MIXER)),
    ("nnfs_mix_decode", _INT, (_INT, _MIXER, _CODER, _I64, _I64)),
    ("nnfs_samples", _INT, (_INT, ctypes.POINTER(Samples), _PTR, ctypes.POINTER(Coder))),
    ("nnfs_light_encode", _INT, (_INT, ctypes.POINTER(Light), _PTR, _PTR)),
    ("nnfs_light_decode", _INT, (_INT, ctypes.POINTER(Light), ctypes.POINTER(Coder))),
    ("nnfs_fields", _INT, (_INT, ctypes.POINTER(Fields), _PTR, ctypes.POINTER(Coder))),
    ("nnfs_rans_encode", _I64, (_PTR, _I64, _I64, _PTR, _PTR, _I64, _PTR)),
    ("nnfs_encode_columns", _INT, (_INT, _NETWORK, _STATE, _BATCH, _I64, _I64, _I64)),
    ("nnfs_team_size", _I64, ()),
    ("nnfs_team", _INT, (_PTR, _I64)),
    ("nnfs_decode_columns", _INT, (_INT, _NETWORK, _STATE, _BATCH, _I64, _I64, _PTR, _I64)),
    ("nnfs_features_enter", _INT, (_PAST,)),
    ("nnfs_ppm_size", _I64, (_I64,)),
    ("nnfs_ppm_encode", _I64, (_PTR, _I64, _PTR, _I64, _PTR, _I64)),
    ("nnfs_ppm_decode", _INT, (_PTR, _I64, _PTR, _I64, _PTR, _I64)),
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


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return zeros that begin at a multiple of 64; large ones cost nothing until they are touched.

    Those lie in huge pages where the system has some to give: hash tables are read all over.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size >= HUGE:
        memory = mmap.mmap(-1, size + HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has small pages
        memory.madvise(mmap.MADV_HUGEPAGE)
        raw = np.frombuffer(memory, np.uint8)
        start = -raw.ctypes.data % HUGE
    else:
        raw = np.zeros(size + 64, np.uint8)
        start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


@cache
def library() -> Library | None:
    """Return the library, None where there is none. That is logged once: numba's kernels are a third as fast."""
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

    `forced` names one, and raises `CodecError` when it cannot run. NNFS_KERNELS names one, too, but one that cannot run
    is ignored: stored data can be read all the same.
    """
    name = forced or os.environ.get(VARIABLE) or ""
    if name == NONE:
        return None
    there = library()
    if there and name in there.levels:
        return LEVELS.index(name)
    if name:
        can = f"what can: {', '.join(there.levels) if there else NONE}"
        why = f"{name} cannot run here; {can}" if name in LEVELS else f"no level {name}; {can}"
        if forced:
            raise CodecError(why)
        del os.environ[VARIABLE]
        log.warning("%s: %s: the usual one is used", VARIABLE, why)
    return LEVELS.index(there.levels[0]) if there else None


def sound_level(passes: Callable[[str], bool], kernels: str) -> str | None:
    """Return the first level that passes a self-test, None for none. `kernels` names what is tested, for messages.

    With NNFS_KERNELS only that level is tested; raises `CodecError` when it fails.
    """
    first, there = level(), library()
    if first is None or there is None:
        return None
    forced = bool(os.environ.get(VARIABLE))
    for name in (LEVELS[first],) if forced else there.levels:
        if passes(name):
            return name
        why = f"the native {kernels} ({name}) do not compute what they should on this processor"
        if forced:
            raise CodecError(why)
        log.error("%s: they are not used; please report it", why)
    return None
