"""The tree as `nnfs report` shows it: what takes the space, which codecs the files have, which policies are set."""

from __future__ import annotations

import os
import stat
from collections import Counter, defaultdict
from typing import Any

from nnfs.constants import ROOT_INO
from nnfs.errors import StoreDamaged
from nnfs.fs import policy
from nnfs.fs.diskusage import Directory, size_of, walk
from nnfs.fs.report import codec_name
from nnfs.fs.trees import inode_in, map_nodes
from nnfs.store.blocks import load_block
from nnfs.store.schema import Dentry, Inode, MapNode
from nnfs.store.txn import Snapshot

SHARE = 2000  # what takes less than one part in so many of the whole is not told by its name
POLICIES = 200  # directories with a policy of their own that are told

Node = dict[str, Any]


def tree_summary(snapshot: Snapshot, stored: int) -> dict[str, Any]:
    """Return what a report shows of the live tree. `stored` are the stored bytes of the whole store.

    `tree` is the root: a node has `name`, `is_directory`, `files`, `logical_bytes`, `stored_bytes` and, of a directory,
    `children`: those in it that take a part of the whole that can be seen. `files_by_codec` counts a file once for each
    codec that its chunks have. Every block is visited: call it in a thread. Raises `StoreDamaged` if there is no root.
    """
    top = inode_in(snapshot, ROOT_INO)
    if top is None:
        raise StoreDamaged("the root directory is missing: run nnfs fsck")
    summary = _Summary(snapshot, stored)
    summary.note_policy("", top)
    for directory in walk(snapshot, top, summary.visit):
        summary.close(directory)
    return summary.answer()


class _Summary:
    """Nodes of directories that are not closed yet, by path, and counts."""

    def __init__(self, snapshot: Snapshot, stored: int) -> None:
        self._snapshot, self._whole = snapshot, stored
        self._met = 0  # stored bytes of the files met so far: with shared blocks they may be more than the whole
        self._children: defaultdict[bytes, list[Node]] = defaultdict(list)
        self._files: Counter[bytes] = Counter()
        self._by_codec: Counter[int] = Counter()
        self._policies: list[dict[str, str]] = []
        self._damaged_files = 0
        self._root: Node = {}

    def visit(self, directory: Directory, dentry: Dentry, inode: Inode) -> None:
        """Note an inode of a directory."""
        if inode.xattrs:
            self.note_policy(os.fsdecode(os.path.join(directory.path, dentry.name)), inode)
        if not stat.S_ISREG(inode.mode):
            return
        self._files[directory.path] += 1
        self._met += inode.stored
        if inode.count:
            self._count_codecs(inode)
        if self._is_seen(inode.stored):
            self._children[directory.path].append(_node(dentry.name, 1, size_of(inode), inode.stored))

    def close(self, directory: Directory) -> None:
        """Make the node of a directory of which everything was visited."""
        path = directory.path
        parent, name = os.path.split(path)
        files = self._files.pop(path, 0)
        children = sorted(self._children.pop(path, ()), key=lambda node: -node["stored_bytes"])
        node = _node(name, files, directory.logical, directory.stored)
        node |= {"is_directory": True, "children": children}
        if not directory.depth:
            self._root = node | {"damaged": directory.damaged, "inodes": directory.inodes}
            return
        self._files[parent] += files
        if self._is_seen(directory.stored):
            self._children[parent].append(node)

    def _pruned(self, top: Node) -> Node:
        """Take out of a tree what looked large enough only as long as little had been met. Return the tree."""
        left = [top] if top else []
        while left:
            node = left.pop()
            node["children"] = [one for one in node["children"] if self._is_seen(one["stored_bytes"])]
            left += node["children"]
        return top

    def _is_seen(self, stored: int) -> bool:
        return stored * SHARE > max(self._whole, self._met)

    def _count_codecs(self, inode: Inode) -> None:
        """Count a file for each codec that its chunks have."""
        codecs = set()
        try:
            for key, record in map_nodes(self._snapshot, inode.ino):
                for number in MapNode.unpack(key, record).blocks.values():
                    block = load_block(self._snapshot, number)
                    if block is None:
                        raise StoreDamaged(f"block {number} is missing")
                    codecs.add(block.codec)
        except StoreDamaged:
            self._damaged_files += 1
        self._by_codec.update(codecs)

    def note_policy(self, path: str, inode: Inode) -> None:
        """Note that an inode has a policy of its own."""
        found = policy.own(self._snapshot, inode) if len(self._policies) <= POLICIES else None
        if found is not None:
            self._policies.append({"path": path, "policy": found.value})

    def answer(self) -> dict[str, Any]:
        """Return everything that was found."""
        return {
            "tree": self._pruned(self._root),
            "files_by_codec": {codec_name(number): count for number, count in sorted(self._by_codec.items())},
            "policies": self._policies[:POLICIES],
            "more_policies": len(self._policies) > POLICIES,
            "damaged_files": self._damaged_files,
        }


def _node(name: bytes, files: int, logical: int, stored: int) -> Node:
    return {
        "name": os.fsdecode(name), "is_directory": False, "files": files, "logical_bytes": logical,
        "stored_bytes": stored, "children": [],
    }  # fmt: skip
