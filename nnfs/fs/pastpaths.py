"""Paths of files in snapshots, for people."""

from __future__ import annotations

import os
from collections.abc import Mapping

from nnfs.errors import StoreDamaged
from nnfs.store import moments, schema
from nnfs.store.moments import INO_MASK, Past
from nnfs.store.schema import Dentry
from nnfs.store.txn import Snapshot

Names = Mapping[int, tuple[int, bytes]]  # inode to the directory that has had it, and its name there


def path_in(past: Past, ino: int, names: Names) -> bytes | None:
    """Return the path of an inode below the root of a snapshot, None if it is not found. `names` has those of files."""
    parts: list[bytes] = []
    seen: set[int] = set()
    try:
        while ino != schema.ROOT_INO:
            if ino in seen or (found := _name_of(past, ino, names)) is None:
                return None
            seen.add(ino)
            ino, name = found
            parts.append(name)
    except StoreDamaged:
        return None
    return b"/".join(reversed(parts))


def _name_of(past: Past, ino: int, names: Names) -> tuple[int, bytes] | None:
    """Return the directory of an inode, and its name there."""
    inode = past.inode(ino)
    if inode is None or not inode.is_directory:
        return names.get(ino)
    for key, record in past.range("dentry", inode.aux):
        dentry = Dentry.unpack(key, record)
        if dentry.ino == ino:
            return inode.aux, dentry.name
    return None


def shown_path(snapshot: Snapshot, ino: int, names: Names) -> str:
    """Return the path of an inode of a snapshot (its number has that of the snapshot in its upper bits)."""
    number, plain = ino >> schema.INO_BITS, ino & INO_MASK
    try:
        past = Past(snapshot, moments.load(snapshot), number)
    except (KeyError, StoreDamaged):
        return f"<inode {plain} of snapshot {number}>"
    path = path_in(past, plain, names)
    end = b"<inode %d>" % plain if path is None else path
    return os.fsdecode(b"/.nnfs/snapshots/" + past.moment.name + b"/" + end)
