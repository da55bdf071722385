"""``python -m nnfs.kernels.build``: compile the native kernels for this machine, if that was not done yet.

One translation unit for each level (a set of instructions), each with its own flags, and one for the entry points; all
linked to one library. Its name holds the digest of the sources and that of the compiler, so an old library is never
taken for a new one, and nothing runs a compiler only to find out. It is written beside the sources, or to the user's
cache where that folder is read-only: in one piece, synced, or not at all. The file ends with its BLAKE2b-256, since
loading one that was cut short ends the process.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable

from nnfs import kernelcache
from nnfs.errors import BuildFailed

log = logging.getLogger(__name__)

SOURCES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "src")
BUILT = "built"  # beside the sources, in a package that brings the library
FOLDER = "NNFS_KERNELS_CACHE"  # the environment variable that names another folder for the libraries
COMMON = ("dispatch.c", "features.c", "ppm.c")  # of all levels
PREFIX, SUFFIX = "nnfs-", ".so"
DIGEST = 32  # bytes behind a library's own
DIGITS = 20  # of the digest of its sources in a library's name
FLAGS = (
    "-std=gnu11", "-O3", "-fPIC", "-fwrapv", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=off",
    "-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-warning-option",
)  # fmt: skip
_AVX2 = ("-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mlzcnt", "-mpopcnt")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512")
LEVELS: dict[str, dict[str, tuple[str, ...]]] = {  # of each machine; "portable" is always there
    "x86_64": {
        "amx": (*_AVX512, "-mamx-tile", "-mamx-int8"),
        "vnni": _AVX512,
        "avxvnni": (*_AVX2, "-mavxvnni"),
        "avx2": _AVX2,
    },
    "aarch64": {"neon": ("-march=armv8.2-a+dotprod",)},
}
LEVELS["amd64"], LEVELS["arm64"] = LEVELS["x86_64"], LEVELS["aarch64"]
VARIANTS: dict[str, tuple[str, ...]] = {
    "": (),
    # All levels of x86-64 in plain C of their shapes and layouts: tests run them where the instructions are missing.
    "emulated-": ("-DNNFS_EMULATE", "-O2"),
    "sanitized-": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"),
    "emulated-sanitized-": (
        "-DNNFS_EMULATE", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1",
    ),
}  # fmt: skip
SECONDS = 300  # for one run of the compiler


def sources_digest() -> str:
    """Return the digest of all sources."""
    digest = hashlib.blake2b(digest_size=DIGITS // 2)
    for name in sorted(os.listdir(SOURCES)):
        with open(os.path.join(SOURCES, name), "rb") as file:
            digest.update(name.encode() + b"\0" + hashlib.blake2b(file.read()).digest())
    digest.update(repr((FLAGS, LEVELS, DIGEST, platform.machine())).encode())
    return digest.hexdigest()


def folders() -> list[str]:
    """Return where libraries are looked for, and kept: the first of them that can be written."""
    own = [os.path.join(os.path.dirname(SOURCES), name) for name in (BUILT, "__pycache__")]
    named = os.environ.get(FOLDER)
    return [named] if named else [*filter(os.path.isdir, own[:1]), own[1], *kernelcache.users_own()]


def is_sound(path: str) -> bool:
    """Whether a library is as it was written, by somebody whose code we run anyway."""
    try:
        with open(path, "rb") as file:
            stored = file.read()
    except OSError:
        return False
    return stored[-DIGEST:] == _digest(stored[:-DIGEST]) and all(
        map(kernelcache.is_trusted, (path, os.path.dirname(path)))
    )


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST).digest()


def found(variant: str = "") -> str | None:
    """Return the library of these sources, if there is one."""
    start = f"{PREFIX}{variant}{sources_digest()}-"
    for folder in folders():
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            if name.startswith(start) and name.endswith(SUFFIX):
                if is_sound(path := os.path.join(folder, name)):
                    return path
                log.warning("%s is damaged, or somebody else's: python -m nnfs.kernels.build makes another", path)
    return None


def compiler() -> list[str]:
    """Return the C compiler: $CC, else cc, gcc or clang. Raises `BuildFailed`."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    raise BuildFailed(f"no C compiler ({' '.join(named) or 'cc, gcc or clang'}): install gcc or clang, or set CC")


def build(variant: str = "") -> str:
    """Return the library of these sources and this compiler, compiled if need be. Raises `BuildFailed`."""
    command = compiler()
    return built(f"{PREFIX}{variant}{sources_digest()}", command, lambda path: compile_to(path, command, variant))


def built(start: str, command: list[str], make: Callable[[str], object]) -> str:
    """Return a library, compiled to a path by `make` if need be. Raises `BuildFailed`.

    Its name is `start`, which ends in the digest of its sources, and the digest of the compiler.
    """
    version = hashlib.blake2b(run([*command, "--version"]).encode(), digest_size=6).hexdigest()
    name = f"{start}-{version}{SUFFIX}"
    for folder in folders():
        if is_sound(path := os.path.join(folder, name)):
            return path
    problem: OSError | None = None
    for folder in folders():
        try:
            kernelcache.make_place(folder)
            with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as room:
                make(made := os.path.join(room, name))
                install(made, os.path.join(folder, name))
        except OSError as error:
            problem = error
            continue
        _remove_old(folder, start, name)
        return os.path.join(folder, name)
    raise BuildFailed(f"no folder for the library: {problem}")


def compile_to(path: str, command: list[str], variant: str = "", machine: str = "") -> str:
    """Compile the library to `path` and return that; beside it objects are left. Raises `BuildFailed`.

    A level that this compiler does not know is left out. `variant`: of `VARIANTS`. `machine`: that of a cross compiler.
    """
    flags = [*command, *FLAGS, *VARIANTS[variant]]
    emulated = "-DNNFS_EMULATE" in flags
    levels = LEVELS.get("x86_64" if emulated else (machine or platform.machine()).lower(), {})
    objects, there = [], []
    for level, own in [*levels.items(), ("portable", ())]:
        out = os.path.join(os.path.dirname(path), f"{level}.o")
        named = [f"-DLEVEL_{level.upper()}", f"-DLEVEL_SYMBOL=nnfs_level_{level}", f'-DLEVEL_NAME="{level}"']
        try:
            run([*flags, *(() if emulated else own), *named, "-c", os.path.join(SOURCES, "level.c"), "-o", out])
        except BuildFailed:
            if level == "portable":
                raise
            continue
        objects.append(out)
        there.append(f"-DHAS_{level.upper()}=1")
    common = [os.path.join(SOURCES, name) for name in COMMON]
    run([*flags, *there, "-shared", *common, *objects, "-lm", "-o", path])
    return path


def run(command: list[str]) -> str:
    """Run a compiler and return what it prints. Raises `BuildFailed`."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildFailed(f"{command[0]}: {error}") from error
    if done.returncode:
        raise BuildFailed(f"{' '.join(command)}\n{done.stderr.strip()}")
    return done.stdout


def install(made: str, path: str) -> None:
    """Give a finished file its digest and its name: it survives a crash whole, or not at all."""
    with open(made, "r+b") as file:
        file.write(_digest(file.read()))
        file.flush()
        os.fsync(file.fileno())
    os.replace(made, path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove_old(folder: str, start: str, keep: str) -> None:
    """Remove the libraries of other sources or compilers beside our own. Processes that have them loaded keep them."""
    if folder != folders()[0] or FOLDER in os.environ:
        return  # other versions of nnfs may keep theirs there
    others = re.compile(re.escape(start[:-DIGITS]) + f"[0-9a-f]{{{DIGITS}}}-[0-9a-f]+" + re.escape(SUFFIX))
    for name in os.listdir(folder):
        if others.fullmatch(name) and name != keep:
            try:
                os.unlink(os.path.join(folder, name))
            except OSError:
                pass  # somebody else did


def main() -> int:
    """Compile. Return 1 where that is not possible: numba's kernels go on then."""
    try:
        print(build())
    except BuildFailed as why:
        print(f"no native kernels: {why}\nThe codecs run without them, at a third of the speed.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
