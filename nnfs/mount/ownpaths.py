"""A check of paths: a file that the daemon opens beneath its own mount point would make it wait for itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path

import nnfs
from nnfs import kernelcache
from nnfs.config import CONFIG_ENVIRONMENT, config_file
from nnfs.constants import SOCKET_NAME, THAWED_FOLDER
from nnfs.errors import UsageError
from nnfs.kernels import build
from nnfs.mount.table import FSTYPE, is_beneath, mounts, resolve

TEMPORARY = ("TMPDIR", "TEMP", "TMP")  # as tempfile looks for a folder
NAMED = (CONFIG_ENVIRONMENT, kernelcache.ROOT, build.FOLDER, *TEMPORARY)  # environment variables that name a path


def make_absolute(environment: MutableMapping[str, str]) -> None:
    """Make the paths in environment variables absolute: daemon and workers run in "/"."""
    for name in NAMED:
        if path := environment.get(name):
            environment[name] = os.path.join(os.getcwd(), path)


def check(mountpoint: Path, store: Path, log_file: Path | None) -> None:
    """Raise `UsageError` if the mount would cover a file that its daemon opens, symbolic links followed."""
    where = resolve(os.fspath(mountpoint))
    package = resolve(os.path.dirname(os.path.abspath(nnfs.__file__)))
    if is_beneath(where, package):  # modules, models and kernels are opened when they are needed first
        raise UsageError(f"the mount point {where} would cover a part of this program, {package}: choose another one")
    hung = [mount.mountpoint for mount in mounts() if mount.fstype == FSTYPE]
    own = _identity(where)
    for what, path, cure in _opened(store, log_file):
        if is_beneath(resolve(path), where) or (own is not None and own in _above(resolve(path), hung)):
            raise UsageError(
                f"{what}, {path}, would lie beneath the mount point {where} and hang the daemon that opens it: {cure}"
            )


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:  # the mount of a daemon that has died
        return None
    return found.st_dev, found.st_ino


def _above(path: str, not_touched: Sequence[str]) -> Iterator[tuple[int, int] | None]:
    """Yield the identity of a path and of the directories above it: a bind mount gives the mount point another name."""
    for one in (path, *map(os.fspath, Path(path).parents)):
        if not any(is_beneath(one, point) for point in not_touched):
            yield _identity(one)


def _opened(store: Path, log_file: Path | None) -> Iterator[tuple[str, str, str]]:
    """Yield for each file that the daemon opens its purpose, its path, and advice."""
    elsewhere = "choose another mount point"
    yield "the store", os.fspath(store), elsewhere
    if os.path.isdir(store):  # its parts may be symbolic links
        for name in sorted({THAWED_FOLDER, SOCKET_NAME, *os.listdir(store)}):
            yield "a part of the store", os.path.join(store, name), elsewhere
    if log_file is not None:
        yield "the log", os.fspath(log_file), "name another file with --log"
    yield "the configuration", config_file(), f"name another file with {CONFIG_ENVIRONMENT}"
    temporary = next((os.environ[name] for name in TEMPORARY if os.environ.get(name)), "/tmp")
    yield "the folder of temporary files", temporary, "name another one with TMPDIR"
    yield "this program", os.path.dirname(os.path.abspath(nnfs.__file__)), elsewhere
    for cache, name in ((kernelcache.roots(), kernelcache.ROOT), (build.folders(), build.FOLDER)):
        for folder in cache:
            yield "the cache of compiled kernels", folder, f"name another one with {name} or XDG_CACHE_HOME"
    for path in (sys.executable, sys.prefix, sys.base_prefix, *filter(os.path.isabs, sys.path)):
        yield "Python", path, elsewhere
    for path in sorted(_mapped()):
        yield "a library in use", path, elsewhere
    for path in ("/dev/fuse", "/proc/self", "/sys/fs/fuse", "/etc/localtime"):
        yield "a part of the system that the daemon needs", path, elsewhere


def _mapped() -> set[str]:
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        words = (line.rstrip("\n").split(None, 5) for line in maps)
        return {word[5] for word in words if len(word) == 6 and word[5].startswith("/")}
