# mypy: disable-error-code="no-untyped-call"
"""The cache of numba's kernels, which survives power cuts, damage, and folders that cannot be written.

Numba's own cache keeps an index and data files without checksums and does not fsync them: a file that a power cut left
empty made every load fail, for ever. Here each kernel is one file, named by the code and the types that it was compiled
from: 8 bytes `MAGIC`, the BLAKE2b-256 of the rest, and the rest. Any other file is removed, and the kernel compiled
again.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
import os
import pickle
import sys
import uuid
from collections.abc import Callable
from typing import Any

import llvmlite
import numba
from numba.core import caching, compiler
from numba.core.serialize import dumps

from nnfs import kernelcache

log = logging.getLogger(__name__)

MAGIC = b"nnfs-k\x01\n"
DIGEST = 32
SUFFIX, PART = ".kernel", ".part"

_unwritable: set[str] = set()  # places that this process has failed to write to


class KernelCache(caching._Cache):
    """The kernels of one function, by signature and processor."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        module = os.path.splitext(os.path.basename(inspect.getfile(function)))[0]
        self._name = f"{module}.{function.__qualname__}".replace("<", "").replace(">", "").replace("/", "_")
        self._enabled = True

    @property
    def cache_path(self) -> str:
        """Return the folder in which kernels are looked for first."""
        return kernelcache.places()[0]

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def flush(self) -> None:
        """Do nothing: kernels stay, since the name of a kernel covers all that it depends on."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return a kernel that was compiled before, None when there is no undamaged one."""
        if not self._enabled:
            return None
        target_context.refresh()
        name = self._file_name(sig, target_context.codegen())
        for place in kernelcache.places():
            path = os.path.join(place, name)
            content = read(path) if kernelcache.is_trusted(place) else None
            if content is None:
                continue
            try:
                return compiler.CompileResult._rebuild(target_context, *pickle.loads(content))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is compiled again
                _throw_away(path, repr(error))
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write a kernel to the first folder that takes it."""
        if not self._enabled or any(not one.can_cache for one in data.lifted) or data.library.has_dynamic_globals:
            return
        name, content = self._file_name(sig, data.codegen), dumps(data._reduce())
        for place in kernelcache.places():
            if place not in _unwritable and write(place, name, content):
                return

    def _file_name(self, sig: Any, codegen: Any) -> str:
        code = self._function.__code__
        closed = tuple(cell.cell_contents for cell in self._function.__closure__ or ())
        versions = numba.__version__, llvmlite.__version__, sys.version_info[:3], getattr(sys, "abiflags", "")
        digest = hashlib.blake2b(digest_size=16)
        for part in (repr((versions, codegen.magic_tuple(), repr(sig))).encode(), code.co_code, dumps(closed)):
            digest.update(hashlib.blake2b(part).digest())
        return f"{self._name}-{code.co_firstlineno}-{digest.hexdigest()}{SUFFIX}"


def read(path: str) -> bytes | None:
    """Return the content of a kernel's file, None when there is no undamaged one. A damaged file is removed."""
    try:
        with open(path, "rb") as file:
            stored = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        _throw_away(path, str(error))
        return None
    content = stored[len(MAGIC) + DIGEST :]
    if stored[: len(MAGIC) + DIGEST] != MAGIC + hashlib.blake2b(content, digest_size=DIGEST).digest():
        _throw_away(path, "it is not what was written")
        return None
    return content


def _throw_away(path: str, why: str) -> None:
    log.warning("%s: %s: it is compiled again", path, why)
    with contextlib.suppress(OSError):
        os.unlink(path)


def write(place: str, name: str, content: bytes) -> bool:
    """Write a kernel's file durably, completely or not at all. Return False when the folder cannot be written."""
    part = os.path.join(place, f"{name}.{uuid.uuid4().hex[:16]}{PART}")
    try:
        kernelcache.make_place(place)
        if not kernelcache.is_trusted(place):
            raise PermissionError(f"{place} belongs to somebody else")
        with open(part, "xb") as file:
            file.write(MAGIC + hashlib.blake2b(content, digest_size=DIGEST).digest() + content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, os.path.join(place, name))
        kernelcache.sync_folder(place)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(part)
        _unwritable.add(place)
        log.info("compiled kernels cannot be kept in %s: %s", place, error)
        return False
    return True
