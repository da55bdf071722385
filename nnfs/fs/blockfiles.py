"""The files that blocks belong to: a scan over the map and the names, in slices with read txns of their own."""

from __future__ import annotations

import os
import time
from collections.abc import Collection

from nnfs.errors import StoreDamaged
from nnfs.fs.pastpaths import shown_path
from nnfs.store import schema
from nnfs.store.env import Store
from nnfs.store.moments import INO_MASK, PAST
from nnfs.store.schema import Dentry, Inode, MapNode
from nnfs.store.txn import Snapshot

SLICE_S = 0.02  # seconds of one slice: the scan shares the interpreter with the event loop
PLACES = 20  # of one block that are named


class BlockFiles:
    """The files that some blocks belong to. Call `next` until it returns False, in threads if need be, then `paths`."""

    def __init__(self, store: Store, blocks: Collection[int]) -> None:
        self._store = store
        self._chunk_size = store.superblock.chunk_size
        self._places: dict[int, list[tuple[int, int]]] = {block: [] for block in blocks}  # (inode, chunk)
        self._files: set[int] = set()
        self._sought: set[int] = set()  # those of snapshots under their own numbers
        self._names: dict[int, tuple[int, bytes]] = {}  # inode to directory and name
        self._scans = [("map", self._see_node), ("dentry", self._see_name)]
        self._at = b""

    def next(self) -> bool:
        """Scan a slice. Return False when nothing is left to scan."""
        if not self._scans:
            return False
        table, see = self._scans[0]
        until = time.monotonic() + SLICE_S
        try:
            with self._store.read() as snapshot:
                for key, record in snapshot.range(table, self._at):
                    self._at = key + b"\0"
                    see(key, record)
                    if time.monotonic() >= until:
                        return True
        except StoreDamaged:
            pass  # records behind a damaged page have no name
        self._scans.pop(0)
        self._at = b""
        return True

    def _see_node(self, key: bytes, record: bytes) -> None:
        try:
            node, (ino, number) = MapNode.unpack(key, record), schema.KEY2.unpack(key)
        except StoreDamaged:
            return
        if self._places.keys().isdisjoint(node.blocks.values()):
            return
        for slot, block in node.blocks.items():
            places = self._places.get(block)
            if places is not None and len(places) < PLACES:
                places.append((ino, number * schema.NODE_SPAN + slot))
                self._files.add(ino)
                self._sought.add(ino & INO_MASK)

    def _see_name(self, key: bytes, record: bytes) -> None:
        try:
            dentry = Dentry.unpack(key, record)
        except StoreDamaged:
            return
        if dentry.ino in self._sought:  # a name in the live tree, which comes first, is told before others
            self._names.setdefault(dentry.ino, (schema.KEY2.unpack(key)[0] & INO_MASK, dentry.name))

    def paths(self) -> dict[int, list[str]]:
        """Return for each block "PATH at OFFSET" of its chunks; a file without a name is shown by its inode number."""
        with self._store.read() as snapshot:
            names = {ino: self._path(snapshot, ino) for ino in self._files}
        return {
            block: [f"{names[ino]} at {chunk * self._chunk_size}" for ino, chunk in places]
            for block, places in self._places.items()
        }

    def _path(self, snapshot: Snapshot, ino: int) -> str:
        if ino >= PAST:
            return shown_path(snapshot, ino, self._names)
        parts: list[bytes] = []
        seen: set[int] = set()
        while ino != schema.ROOT_INO:
            found = self._names.get(ino) or _directory_name(snapshot, ino)
            if found is None or ino in seen:
                parts.append(b"<inode %d>" % ino)
                return os.fsdecode(b"/".join(reversed(parts)))
            seen.add(ino)
            ino, name = found
            parts.append(name)
        return os.fsdecode(b"/" + b"/".join(reversed(parts)))


def _directory_name(snapshot: Snapshot, ino: int) -> tuple[int, bytes] | None:
    """Return a directory's parent and its name there."""
    try:
        record = snapshot.get("inode", schema.inode_key(ino))
        inode = Inode.unpack(ino, record) if record is not None else None
        if inode is None or not inode.is_directory:
            return None
        for key, entry in snapshot.prefix("dentry", schema.inode_key(inode.aux)):
            dentry = Dentry.unpack(key, entry)
            if dentry.ino == ino:
                return inode.aux, dentry.name
    except StoreDamaged:
        pass
    return None
