"""The decision whether `nnfs mount` may make a store, and the advice where there is none.

A new store that nobody wanted hides a mistake: a typing error in a path, or a disk that is not mounted. Everything
written then goes to the wrong place. So a mount makes a store in an existing empty directory only, and only for a
person at a terminal, who is told, or with `-o create`.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from nnfs.cli.locate import mounts
from nnfs.constants import DATA_FILE
from nnfs.errors import NotAStore, StoreError, UsageError
from nnfs.names import say

FSTAB = "/etc/fstab"
SIMILAR = 3  # names that are suggested at most


def provide(store: Path, *, create: bool, at_terminal: bool, chunk_size: int | None) -> None:
    """Make a store if there is none and that is allowed. A store that is there must have `chunk_size`.

    Raises `NotAStore` with advice, `StoreError`, `UsageError`, and the errors of `Store.create`.
    """
    try:
        names = os.listdir(store)
    except FileNotFoundError as error:
        raise NotAStore(f"{store} does not exist{why_missing(store)}; nnfs mkfs {store} makes a new store") from error
    except NotADirectoryError as error:
        raise NotAStore(f"{store} is not a directory: give the directory that holds the store's {DATA_FILE}") from error
    except PermissionError as error:
        raise StoreError(f"{store} cannot be read by this user: its owner or root (sudo) can mount it") from error
    if DATA_FILE in names:
        if chunk_size is not None:
            _compare(store, chunk_size)
        return
    from nnfs.store.env import Store, is_empty
    from nnfs.store.schema import DEFAULT_CHUNK_SIZE

    if not is_empty(store):
        raise NotAStore(f"{store} is not empty and holds no nnfs store{_inside(store, names)}")
    absent = not_mounted(store)
    if not create and (absent or not at_terminal):
        hint = absent or ": is it the right one, and is the disk mounted that has the store?"
        raise NotAStore(f"{store} is empty{hint} To make a new store in it: nnfs mkfs {store}, or mount with -o create")
    Store.create(store, chunk_size or DEFAULT_CHUNK_SIZE).close()
    say(f"{store} was empty: made a new store in it")


def _compare(store: Path, chunk_size: int) -> None:
    from nnfs.store.env import Store

    opened = Store.open(store, readonly=True)
    found = opened.superblock.chunk_size
    opened.close()
    if found != chunk_size:
        raise UsageError(f"{store} already has chunks of {found} bytes: leave --chunk-size out")


def why_missing(store: Path) -> str:
    """Return the likely reason why a directory does not exist, as the end of a message."""
    if absent := not_mounted(store):
        return absent.rstrip(".")
    above = store
    while not above.parent.is_dir():
        above = above.parent
    try:
        near = difflib.get_close_matches(above.name, os.listdir(above.parent), SIMILAR)
    except OSError:
        near = []
    there = f" ({' and '.join(os.fspath(above.parent / name) for name in near)} is there)" if near else ""
    if above != store:
        return f", nor does {above}{there}: a typing error, or a disk that is not mounted"
    return f"{there}: a typing error, or a disk that is not mounted"


def _inside(store: Path, names: list[str]) -> str:
    """Return the stores in a directory that is not a store itself, as the end of a message."""
    found = [os.fspath(store / name) for name in sorted(names) if (store / name / DATA_FILE).exists()]
    return f"; there is one in {' and in '.join(found[:SIMILAR])}" if found else ": choose an empty directory"


def not_mounted(store: Path) -> str:
    """Return the filesystem of /etc/fstab that should be mounted at or above a path and is not, or ""."""
    try:
        lines = Path(FSTAB).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    targets = {words[1] for words in map(str.split, lines) if len(words) > 1 and not words[0].startswith("#")}
    wanted = {re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), target) for target in targets}
    absent = {os.path.normpath(target) for target in wanted} - {entry.mountpoint for entry in mounts()}
    for path in (store, *store.parents):
        if os.fspath(path) in absent:
            return f": {FSTAB} has a filesystem for {path}, which is not mounted (mount {path})."
    return ""
