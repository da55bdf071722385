"""Access to a store's files: only their owner and root, independent of the umask and of earlier versions.

Modes inside the filesystem mean nothing to a user who reads `data.mdb` itself, so it is closed to its group, too.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from nnfs.constants import DATA_FILE, DRAFT_FOLDER, HISTORY_FILE, LOCK_FILE, RESERVE_FILE, SOCKET_NAME, THAWED_FOLDER

FILE, FOLDER = 0o600, 0o700
OTHERS = 0o077  # the bits of everybody but the owner
UMASK = OTHERS  # of every process of nnfs: what it forgets to close is closed

FOLDERS = (THAWED_FOLDER, DRAFT_FOLDER)
# test_privacy sees what is forgotten
FILES = (DATA_FILE, LOCK_FILE, SOCKET_NAME, RESERVE_FILE, HISTORY_FILE, f".{HISTORY_FILE}")
FOREIGN_MODE = stat.S_IWGRP | stat.S_IWOTH  # of a folder that holds other things as well


def opener(path: str, flags: int) -> int:
    """Open a file for `open(opener=...)` with mode 0600; an existing file gets that mode where it can."""
    descriptor = os.open(path, flags, FILE)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_mode & OTHERS:
        try:
            os.fchmod(descriptor, status.st_mode & ~OTHERS & 0o7777)
        except OSError:
            pass  # the file belongs to another user; it is open, as requested
    return descriptor


def give(descriptor: int, store: Path) -> None:
    """Give a file that root has made in a store to the store's owner, who may be the next one to mount it."""
    owner = store.stat()
    if owner.st_uid and os.geteuid() == 0:
        with contextlib.suppress(OSError):  # no owners there
            os.fchown(descriptor, owner.st_uid, owner.st_gid)


def close_up(store: Path) -> tuple[list[str], list[str]]:
    """Remove all rights but the owner's from a store. Return what was open, and what could not be closed.

    The directory itself is closed if it holds nothing but the store, even if it is the root of a filesystem. A
    directory that holds other things stays as it is: the files are closed, and a warning tells of rights to write, with
    which the files can be exchanged. The target of a symbolic link in place of a folder stays as it is, too.
    """
    closed, left = [], []
    names = set(os.listdir(store))
    paths = [store / name for name in FILES if (store / name).exists()]
    paths += [store / name for name in FOLDERS if name in names and not (store / name).is_symlink()]
    if names <= {*FILES, *FOLDERS, "lost+found"}:
        paths += [store]
    elif (mode := store.stat().st_mode) & FOREIGN_MODE and not mode & stat.S_ISVTX:
        left.append(f"others may write to {store}, which holds other things, too: they can exchange the store's files")
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode)
        if not mode & OTHERS:
            continue
        try:
            path.chmod(mode & ~OTHERS)
            closed.append(f"{path} ({mode:o})")
        except OSError as error:
            left.append(f"others may read {path} ({mode:o}), and it cannot be closed: {error.strerror}")
    return closed, left
