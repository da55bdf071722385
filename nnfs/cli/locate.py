"""Which store a path belongs to."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from nnfs.cli import bymount
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
    device: str = ""
    super_options: str = ""


def _unescape(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)


def mounts() -> list[MountEntry]:
    """Everything mounted here, oldest first."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for line in lines:
            left, _, right = line.rstrip("\n").partition(" - ")
            kind, source, options, *_ = [*right.split(" "), "", ""]
            words = left.split(" ")
            found.append(MountEntry(_unescape(words[4]), kind, _unescape(source), words[2], options))
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


def mount_from(store: str) -> MountEntry | None:
    """The newest mount of a store's directory, by the name that it had when it was mounted."""
    return next((entry for entry in reversed(mounts()) if entry.fstype == FSTYPE and entry.source == store), None)


def _told(entry: MountEntry) -> tuple[str, str, str]:
    return entry.device, entry.source, entry.super_options


def found_by_mount(store: Path, entry: MountEntry, path: Path) -> Place:
    """A place on a mount, whose daemon is to be asked whatever lies at the store's path now."""
    bymount.remember(store, *_told(entry), is_first=True)
    return Place(store, entry, path)


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
        return found_by_mount(_store_of(entry, where), entry, Path(path))
    of_store = mount_from(path)
    if of_store is not None and not os.path.exists(path):  # deleted or moved while mounted
        return found_by_mount(Path(path), of_store, Path(of_store.mountpoint))
    os.stat(path)
    bymount.forget(Path(path))
    if of_store is not None:
        bymount.remember(Path(path), *_told(of_store), is_first=False)
    try:
        os.stat(os.path.join(path, DATA_FILE))
    except PermissionError as error:
        raise StoreError(f"{text} may not be read by this user: if it is a store, use sudo") from error
    except OSError:
        pass
    else:
        return Place(Path(path), None, Path(path))
    raise UsageError(f"{text} is neither a store nor on an nnfs mount")
