"""The GPU's kernels, compiled: by NVRTC for the GPU at hand, since a user with a GPU seldom has nvcc.

NVRTC comes with the CUDA build of torch (the package nvidia-cuda-nvrtc), or with a toolkit. Compiled kernels are kept
where the processor's are, under the digest of the sources, of the options and of NVRTC's version.
"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import importlib.util
import logging
import os
import re
import tempfile
from functools import cache
from typing import Any

from nnfs import kernelcache
from nnfs.errors import BuildFailed
from nnfs.kernels import build

log = logging.getLogger(__name__)

SOURCES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cuda")
MAIN = "device.cu"
OPTIONS = ("--std=c++17", "--fmad=false")
DP4A = "-DNNFS_DP4A=1"  # products without tensor cores
TENSOR = 80  # the first GPUs (sm_80) with the tensor cores' instruction that `product` uses
OLDEST = 61  # sm_61 has dp4a
_INCLUDE = re.compile(r'^#include "([^"]+)".*$', re.MULTILINE)
_PTR, _INT = ctypes.c_void_p, ctypes.c_int


@cache
def source() -> str:
    """Return the kernels' source as one text: NVRTC needs no files then."""
    seen: set[str] = set()

    def whole(path: str) -> str:
        path = os.path.normpath(path)
        if path in seen:
            return ""
        seen.add(path)
        with open(path, encoding="utf-8") as file:
            text = file.read()
        return _INCLUDE.sub(lambda found: whole(os.path.join(os.path.dirname(path), found[1])), text)

    return whole(os.path.join(SOURCES, MAIN))


def options(version: int, *, tensor: bool) -> list[str]:
    """Return the compiler's options for a GPU of this version (90: sm_90)."""
    return [f"--gpu-architecture=sm_{version}", *OPTIONS, *(() if tensor else (DP4A,))]


def libraries() -> list[str]:
    """Return where NVRTC may be, the best first."""
    found: list[str] = []
    where = importlib.util.find_spec("nvidia")
    for folder in (where.submodule_search_locations or ()) if where else ():
        found += sorted(glob.glob(os.path.join(folder, "*", "lib", "libnvrtc.so.1[2-9]")), reverse=True)
    for folder in (os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"):
        if folder:
            found += sorted(glob.glob(os.path.join(folder, "lib64", "libnvrtc.so.1[2-9]")), reverse=True)
    return [*found, "libnvrtc.so.13", "libnvrtc.so.12"]


class Compiler:
    """NVRTC."""

    def __init__(self, path: str) -> None:
        """Raises `OSError` for a library that cannot be loaded."""
        self._calls = ctypes.CDLL(path)
        major, minor = _INT(), _INT()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._calls, name)(*arguments)
        if code:
            say = self._calls.nvrtcGetErrorString
            say.restype = ctypes.c_char_p
            raise BuildFailed(f"{name}: {say(code).decode(errors='replace')}")

    def _text(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(max(1, size.value))
        self._call(f"nvrtcGet{what}", program, text)
        return text.raw[: size.value]

    def compile(self, text: str, chosen: list[str]) -> bytes:
        """Return a program's cubin. Raises `BuildFailed` with what the compiler says."""
        program = _PTR()
        self._call("nvrtcCreateProgram", ctypes.byref(program), text.encode(), MAIN.encode(), 0, None, None)
        try:
            given = (ctypes.c_char_p * len(chosen))(*(option.encode() for option in chosen))
            try:
                self._call("nvrtcCompileProgram", program, len(chosen), given)
            except BuildFailed as error:
                said = self._text("ProgramLog", program).decode(errors="replace").strip("\0\n ")
                raise BuildFailed(f"{error}\n{said}") from None
            return self._text("CUBIN", program)
        finally:
            self._calls.nvrtcDestroyProgram(ctypes.byref(program))


@cache
def compiler() -> Compiler:
    """Return NVRTC. Raises `BuildFailed` where there is none."""
    for path in libraries():
        try:
            return Compiler(path)
        except OSError:
            continue
    raise BuildFailed("NVRTC is missing: it comes with the CUDA build of torch, or as the package nvidia-cuda-nvrtc")


def cubin(version: int, *, tensor: bool) -> bytes:
    """Return the kernels for a GPU of this version, compiled if that was not done yet. Raises `BuildFailed`."""
    if version < (TENSOR if tensor else OLDEST):
        raise BuildFailed(f"a GPU of version {version / 10} has no instruction for these products")
    chosen, made_by = options(version, tensor=tensor), compiler()
    digest = hashlib.blake2b(repr((source(), chosen, made_by.version)).encode(), digest_size=16).hexdigest()
    name = f"nnfs-{digest}.cubin"
    for folder in build.folders():
        if build.is_sound(path := os.path.join(folder, name)):
            with open(path, "rb") as file:
                return file.read()[: -build.DIGEST]
    image = made_by.compile(source(), chosen)
    _keep(name, image)
    return image


def _keep(name: str, image: bytes) -> None:
    """Keep what was compiled, where there is a place for it."""
    for folder in build.folders():
        try:
            kernelcache.make_place(folder)
            with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as room:
                made = os.path.join(room, name)
                with open(made, "wb") as file:
                    file.write(image)
                build.install(made, os.path.join(folder, name))
            return
        except OSError as error:
            log.info("compiled kernels cannot be kept in %s: %s", folder, error)
