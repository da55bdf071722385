"""The answer of `nnfs du`: what the directories of a tree hold, and what that takes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from nnfs.errors import RecordDamaged, UsageError
from nnfs.fs.trees import Tree, inode_in, proved, tree_of
from nnfs.store import quotas
from nnfs.store.schema import Dentry, Inode
from nnfs.store.txn import Snapshot


@dataclass(slots=True)
class Directory:
    """Sums over a directory and all below it; `names` are those that have not been looked at yet."""

    path: bytes  # below the root of the tree
    depth: int
    names: Iterator[Dentry] = field(default_factory=lambda: iter(()))
    ino: int = 0
    inodes: int = 1
    logical: int = 0
    stored: int = 0
    damaged: int = 0  # inodes and directories that cannot be read

    def add(self, other: Directory) -> None:
        """Add the sums of a directory in this one."""
        self.inodes += other.inodes
        self.logical += other.logical
        self.stored += other.stored
        self.damaged += other.damaged

    def line(self) -> dict[str, Any]:
        """Return the directory as the control socket's answer."""
        return {
            "path": os.fsdecode(self.path), "inodes": self.inodes, "logical_bytes": self.logical,
            "stored_bytes": self.stored, "damaged": self.damaged,
        }  # fmt: skip


Visit = Callable[[Directory, Dentry, Inode], None]


def usage(snapshot: Snapshot, root: int, depth: int) -> list[dict[str, Any]]:
    """Return a line for a directory, or a file, and for each directory down to `depth` levels below it.

    A directory stands behind those in it, the root, with the path "", at the end. `logical_bytes` are the sizes of
    files, `stored_bytes` those of their payloads. A file with several names counts once; a block that several files
    share counts for each. A directory with a quota has its limits, too. Damaged directories and inodes are counted and
    passed over. Raises `UsageError` if there is no such inode.
    """
    tree, root = tree_of(snapshot, root)
    top = inode_in(tree, root)
    if top is None:
        raise UsageError(f"inode {root} is not in the store")
    if not stat.S_ISDIR(top.mode):
        return [Directory(b"", 0, logical=size_of(top), stored=top.stored).line()]
    limits = _limits(snapshot) if tree is snapshot else {}
    return [
        directory.line() | limits.get(directory.ino, {}) for directory in walk(tree, top) if directory.depth <= depth
    ]


def _limits(snapshot: Snapshot) -> dict[int, dict[str, int]]:
    """Return the limits of directories that have some, by inode."""
    return {
        quota.root: {"max_bytes": quota.max_bytes, "max_inodes": quota.max_inodes}
        for quota in quotas.load(snapshot)[0].values()
    }


def _nothing(_directory: Directory, _dentry: Dentry, _inode: Inode) -> None:
    pass


def walk(tree: Tree, top: Inode, visit: Visit = _nothing) -> Iterator[Directory]:
    """Yield each directory at and below `top` when all in it was looked at, those in it first.

    Inodes are visited once, files and directories, with the directory and name by which they are met.
    """
    open_ = [Directory(b"", 0, _names(tree, top), top.ino)]
    seen = {top.ino}
    while open_:
        here = open_[-1]
        try:
            dentry = next(here.names, None)
        except RecordDamaged:
            here.damaged += 1
            here.names = iter(())
            continue
        if dentry is None:
            open_.pop()
            yield here
            if open_:
                open_[-1].add(here)
            continue
        inode = _sound(tree, dentry.ino)
        if inode is None:
            here.damaged += 1
        elif inode.ino not in seen:
            visit(here, dentry, inode)
            if inode.nlink > 1 or stat.S_ISDIR(inode.mode):
                seen.add(inode.ino)  # a damaged store may have loops
            if stat.S_ISDIR(inode.mode):
                path = os.path.join(here.path, dentry.name)
                open_.append(Directory(path, here.depth + 1, _names(tree, inode), inode.ino))
            else:
                here.inodes += 1
                here.logical += size_of(inode)
                here.stored += inode.stored


def _names(tree: Tree, inode: Inode) -> Iterator[Dentry]:
    return (Dentry.unpack(key, record) for key, record in proved(tree, inode, "dentry"))


def _sound(tree: Tree, ino: int) -> Inode | None:
    """Return an inode, None for one that is damaged or missing."""
    try:
        return inode_in(tree, ino)
    except RecordDamaged:
        return None


def size_of(inode: Inode) -> int:
    """Return the size of a file, 0 of anything else."""
    return inode.size if stat.S_ISREG(inode.mode) else 0
