"""Which store a path belongs to."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from nnfs.errors import StoreError, UsageError

FSTYPE = "fuse.nnfs"
DATA_FILE = "data.mdb"
STORE_XATTR = "user.nnfs.store"


@dataclass(frozen=True)
class MountEntry:
    """One line of /proc/self/mountinfo."""

    mountpoint: str
    fstype: str
    source: str


def _unescape(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)


def mounts() -> list[MountEntry]:
    """Everything mounted here, oldest first."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for line in lines:
            left, _, right = line.rstrip("\n").partition(" - ")
            kind, source, *_ = [*right.split(" "), ""]
            found.append(MountEntry(_unescape(left.split(" ")[4]), kind, _unescape(source)))
    return found


def mount_of(path: str) -> MountEntry | None:
    """The mount that an absolute path lies on, by its name alone: nothing is touched, so nothing can hang."""
    best = None
    for entry in mounts():
        inside = path == entry.mountpoint or path.startswith(entry.mountpoint.rstrip("/") + "/")
        if inside and (best is None or len(entry.mountpoint) >= len(best.mountpoint)):
            best = entry
    return best


@dataclass(frozen=True)
class Place:
    """A store, and the mount of it that the path given lies in (None: the path is the store's own directory)."""

    store: Path
    mount: MountEntry | None
    path: Path

    @property
    def is_inside(self) -> bool:
        """Whether the path names something in the filesystem rather than the store itself."""
        return self.mount is not None


def _store_of(entry: MountEntry, path: str) -> Path:
    try:
        return Path(os.fsdecode(os.getxattr(path, STORE_XATTR)))
    except OSError as error:
        source = Path(entry.source)
        if source.is_absolute() and (source / DATA_FILE).exists():
            return source
        raise UsageError(
            f"{entry.mountpoint}: its daemon does not tell its store, and its source {entry.source} is none"
        ) from error


def locate(text: str) -> Place:
    """Find the store of a path: a store directory, a mount point, or anything below one.

    Raises `UsageError`, FileNotFoundError.
    """
    path = os.path.abspath(text)
    entry = mount_of(path)
    if entry is None or entry.fstype != FSTYPE:  # there may be a symbolic link on the way
        path = os.path.realpath(path)
        entry = mount_of(path)
    if entry is not None and entry.fstype == FSTYPE:
        try:
            os.lstat(path)
        except FileNotFoundError:
            raise
        except OSError:
            path = entry.mountpoint  # the daemon is dead, but the kernel still tells whose it was
        where = path if os.path.isdir(path) or os.path.isfile(path) else entry.mountpoint
        return Place(_store_of(entry, where), entry, Path(path))
    os.stat(path)
    try:
        os.stat(os.path.join(path, DATA_FILE))
    except PermissionError as error:
        raise StoreError(f"{text} may not be read by this user: if it is a store, use sudo") from error
    except OSError:
        pass
    else:
        return Place(Path(path), None, Path(path))
    raise UsageError(f"{text} is neither a store nor on an nnfs mount")
