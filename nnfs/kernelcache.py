"""The places of compiled kernels, and the environment variables that must not reach numba. It imports nothing large.

Kernels lie beside the sources, where set-up puts them, or in the user's cache. Every place is read; new kernels are
put into the first place that can be written; where there is none, they are compiled in memory only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, MutableMapping
from functools import cache

FOLDER = "kernels-"
ROOT = "NUMBA_CACHE_DIR"  # the environment variable that names another place
KEPT = frozenset((ROOT, "NUMBA_NUM_THREADS"))
_HERE = os.path.dirname(os.path.abspath(__file__))


@cache
def folder_name() -> str:
    """Return the name of this version's folder, a digest of all sources.

    A kernel depends on those that it calls, in other files: after an upgrade the encoder could be new, the decoder old.
    """
    digest = hashlib.blake2b(digest_size=12)
    for room in ("model", "mixer", "codec"):
        folder = os.path.join(_HERE, room)
        for name in sorted(os.listdir(folder)):
            if name.endswith(".py"):
                with open(os.path.join(folder, name), "rb") as file:
                    digest.update(hashlib.blake2b(file.read()).digest())
    return FOLDER + digest.hexdigest()


def roots() -> list[str]:
    """Return the folders that have a folder for each version: that of the environment, else the two usual ones."""
    named = os.environ.get(ROOT)
    return [named] if named else [os.path.join(_HERE, "__pycache__"), *users_own()]


def users_own() -> Iterator[str]:
    """Yield the user's cache folder; none without a home, since a home that does not exist is not made."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        home = os.path.expanduser("~")
        if not (os.path.isabs(home) and os.path.isdir(home)):
            return
        base = os.path.join(home, ".cache")
    yield os.path.join(base, "nnfs")


def places() -> list[str]:
    """Return the folders of this version's kernels, in the order in which they are asked."""
    return [os.path.join(root, folder_name()) for root in roots()]


def is_trusted(place: str) -> bool:
    """Return whether code of a folder may be run: only its owner can write it, and we run that user's code anyway."""
    try:
        status = os.stat(place)
    except OSError:
        return False
    return status.st_uid in (0, os.geteuid(), os.stat(__file__).st_uid) and not status.st_mode & 0o002


def make_place(place: str) -> None:
    """Make a folder of kernels, and two above it at most: no home, no mount point. Raises `OSError`."""
    for folder in (os.path.dirname(os.path.dirname(place)), os.path.dirname(place), place):
        try:
            os.mkdir(folder, 0o755)
        except FileExistsError:
            continue
        sync_folder(os.path.dirname(folder))


def sync_folder(folder: str) -> None:
    """Make the names in a folder durable. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clean_environment(environment: MutableMapping[str, str]) -> None:
    """Remove variables that change numba's results or speed, such as NUMBA_DISABLE_JIT: other programs need them."""
    for name in [name for name in environment if name.startswith("NUMBA_") and name not in KEPT]:
        del environment[name]
