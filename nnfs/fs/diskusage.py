"""The answer of `nnfs du`: what the directories of a tree hold, and what that takes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nnfs.errors import RecordDamaged, UsageError
from nnfs.fs.trees import Tree, inode_in, proved, tree_of
from nnfs.store.schema import Dentry, Inode
from nnfs.store.txn import Snapshot


@dataclass(slots=True)
class _Directory:
    """Sums over a directory and all below it; `names` are those that have not been looked at yet."""

    path: bytes  # below the root of the tree
    depth: int
    names: Iterator[Dentry] = field(default_factory=lambda: iter(()))
    inodes: int = 1
    logical: int = 0
    stored: int = 0
    damaged: int = 0  # inodes and directories that cannot be read

    def add(self, other: _Directory) -> None:
        self.inodes += other.inodes
        self.logical += other.logical
        self.stored += other.stored
        self.damaged += other.damaged

    def line(self) -> dict[str, Any]:
        return {
            "path": os.fsdecode(self.path), "inodes": self.inodes, "logical_bytes": self.logical,
            "stored_bytes": self.stored, "damaged": self.damaged,
        }  # fmt: skip


def usage(snapshot: Snapshot, root: int, depth: int) -> list[dict[str, Any]]:
    """Return a line for a directory, or a file, and for each directory down to `depth` levels below it.

    A directory stands behind those in it, the root, with the path "", at the end. `logical_bytes` are the sizes of
    files, `stored_bytes` those of their payloads. A file with several names counts once; a block that several files
    share counts for each. Damaged directories and inodes are counted and passed over. Raises `UsageError` if there is
    no such inode.
    """
    tree, root = tree_of(snapshot, root)
    top = inode_in(tree, root)
    if top is None:
        raise UsageError(f"inode {root} is not in the store")
    if not stat.S_ISDIR(top.mode):
        return [_Directory(b"", 0, logical=_size(top), stored=top.stored).line()]
    lines: list[dict[str, Any]] = []
    open_ = [_Directory(b"", 0, _names(tree, top))]
    seen = {root}
    while open_:
        here = open_[-1]
        try:
            dentry = next(here.names, None)
        except RecordDamaged:
            here.damaged += 1
            here.names = iter(())
            continue
        inode = _sound(tree, dentry.ino) if dentry is not None else None
        if dentry is None:
            open_.pop()
            if here.depth <= depth:
                lines.append(here.line())
            if open_:
                open_[-1].add(here)
        elif inode is None:
            here.damaged += 1
        elif inode.ino in seen:
            continue
        elif stat.S_ISDIR(inode.mode):
            seen.add(inode.ino)  # a damaged store may have loops
            path = os.path.join(here.path, dentry.name)
            open_.append(_Directory(path, here.depth + 1, _names(tree, inode)))
        else:
            if inode.nlink > 1:
                seen.add(inode.ino)
            here.inodes += 1
            here.logical += _size(inode)
            here.stored += inode.stored
    return lines


def _names(tree: Tree, inode: Inode) -> Iterator[Dentry]:
    return (Dentry.unpack(key, record) for key, record in proved(tree, inode, "dentry"))


def _sound(tree: Tree, ino: int) -> Inode | None:
    """Return an inode, None for one that is damaged or missing."""
    try:
        return inode_in(tree, ino)
    except RecordDamaged:
        return None


def _size(inode: Inode) -> int:
    return inode.size if stat.S_ISREG(inode.mode) else 0
