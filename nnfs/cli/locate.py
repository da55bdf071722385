"""Finding the store that a path belongs to."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nnfs.cli import bymount, client
from nnfs.constants import DATA_FILE, STORE_XATTR
from nnfs.errors import DaemonError, StoreError, UsageError
from nnfs.mount import table
from nnfs.mount.table import FSTYPE, is_beneath, resolve

__all__ = [
    "FSTYPE", "MountEntry", "Place", "check_answers", "found_by_mount", "held", "locate", "mount_from",
    "mount_of", "mounts",
]  # fmt: skip

LOOK_S = 5.0  # for a daemon to tell its store


@dataclass(frozen=True)
class MountEntry:
    """The facts about a mount that commands need."""

    mountpoint: str
    fstype: str
    source: str
    device: str = ""
    super_options: str = ""
    root: str = "/"


def mounts() -> list[MountEntry]:
    """Return all mounts of this mount namespace, oldest first."""
    return [
        MountEntry(mount.mountpoint, mount.fstype, mount.source, mount.device, mount.super_options, mount.root)
        for mount in table.mounts()
    ]


def mount_of(path: str) -> MountEntry | None:
    """Return the mount that an absolute path lies on, by its name alone: no file is accessed, so nothing can hang."""
    best = None
    for entry in mounts():
        if is_beneath(path, entry.mountpoint) and (best is None or len(entry.mountpoint) >= len(best.mountpoint)):
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
        """Return whether the path names something in the filesystem rather than the store itself."""
        return self.mount is not None


def _check_answers(entry: MountEntry) -> None:
    """Raise `DaemonError` when the daemon of a mount lives and does not answer: access to the mount would hang."""
    source = Path(entry.source)
    bymount.remember(source, *_told(entry), is_first=True)
    try:
        client.ping(source)
    finally:
        bymount.forget(source)


def check_answers(text: str) -> None:
    """Raise `DaemonError` when a path lies on a mount of nnfs whose daemon lives and does not answer.

    Commands that do not `locate` a path given by a user call this before they access it.
    """
    entry = mount_of(resolve(text))
    if entry is not None and entry.fstype == FSTYPE:
        _check_answers(entry)


def _store_of(entry: MountEntry, path: str) -> Path:
    """Return the store of a mount as its daemon tells; for a dead daemon the source, if that is a store."""
    told: list[str] = []

    def ask() -> None:
        with contextlib.suppress(OSError):
            told.append(os.fsdecode(os.getxattr(path, STORE_XATTR)))

    thread = threading.Thread(target=ask, daemon=True)  # of a hung daemon: ends with this process
    thread.start()
    thread.join(LOOK_S)
    if told:
        return Path(told[0])
    if thread.is_alive():
        raise DaemonError(f"{entry.mountpoint}: its daemon does not answer within {LOOK_S:.0f} s")
    source = Path(entry.source)
    if source.is_absolute() and (source / DATA_FILE).exists():
        return source
    raise UsageError(
        f"{entry.mountpoint}: its daemon does not tell its store, and its source {entry.source} is not a store"
    )


def mount_from(store: str) -> MountEntry | None:
    """Return the newest mount of a store's directory, by the name that it had when it was mounted."""
    found = [entry for entry in mounts() if entry.fstype == FSTYPE and entry.source == store]
    return next((entry for entry in found if entry.device == found[-1].device), None)  # rather than a bind mount of it


def _told(entry: MountEntry) -> tuple[str, str, str]:
    return entry.device, entry.source, entry.super_options


def found_by_mount(store: Path, entry: MountEntry, path: Path) -> Place:
    """Return a place on a mount. The mount's daemon is asked, even if another store lies at the store's path now."""
    bymount.remember(store, *_told(entry), is_first=True)
    return Place(store, entry, path)


def locate(text: str, *, follow: bool = False) -> Place:
    """Find the store of a path: a store directory, a mount point, or anything below one.

    With `follow` also follow symbolic links on the mount. Nothing on a mount is accessed before its daemon has
    answered. Raises `UsageError`, FileNotFoundError, and `DaemonError` for a daemon that lives and does not answer.
    """
    path = resolve(text)
    entry = mount_of(path)
    if entry is not None and entry.fstype == FSTYPE:
        _check_answers(entry)
        if follow:
            path = os.path.realpath(path)
            entry = mount_of(path)
            if entry is None or entry.fstype != FSTYPE:
                return locate(path)
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
        raise StoreError(f"{text} cannot be read by this user: if it is a store, use sudo") from error
    except OSError:
        pass
    else:
        return Place(Path(path), None, Path(path))
    raise UsageError(f"{text} is neither a store nor on an nnfs mount")


@contextlib.contextmanager
def held(place: Place) -> Iterator[None]:
    """Keep an automounted mount from being unmounted as idle while a command waits for a task."""
    point = place.mount.mountpoint if place.mount is not None else ""
    if not any(mount.mountpoint == point and mount.fstype == "autofs" for mount in mounts()):
        yield
        return
    descriptor = os.open(point, os.O_PATH | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.close(descriptor)
