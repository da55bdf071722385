"""The GPU's kernels compiled for the host, behind the driver's functions: how they run where there is no GPU.

For tests and `tools/test-gpu --host`. `cuda/device.h` says what the host does in a GPU's place.
"""

from __future__ import annotations

import hashlib
import os
import shutil

from nnfs.errors import BuildFailed
from nnfs.kernels import build, compiled

FLAGS = (
    "-std=c++17",
    "-O3",
    "-fwrapv",
    "-ffp-contract=off",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wall",
    "-Werror",
)
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1")
FORWARDS, BACKWARDS, MIXED = range(3)  # the order in which a phase's items run


def library(folder: str, *, tensor: bool = True, sanitized: bool = False) -> str:
    """Return the library, compiled into `folder` if it is not there yet. Raises `BuildFailed`."""
    command = [os.environ.get("CXX") or "c++", *FLAGS, *(SANITIZED if sanitized else ())]
    command += () if tensor else (compiled.DP4A,)
    if not shutil.which(command[0]):
        raise BuildFailed("no C++ compiler (c++): install g++ or clang, or set CXX")
    main = os.path.join(compiled.SOURCES, "host.cpp")
    with open(main, encoding="utf-8") as file:
        digest = hashlib.blake2b(repr((compiled.source(), file.read(), command)).encode(), digest_size=10).hexdigest()
    path = os.path.join(folder, f"host-{digest}.so")
    if not os.path.exists(path):
        part = f"{path}.{os.getpid()}"
        build.run([*command, main, "-o", part])
        os.replace(part, path)
    return path
