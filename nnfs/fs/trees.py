"""The live tree, or that of a snapshot, read through a txn: what reports ask of either."""

from __future__ import annotations

from collections.abc import Iterator

from nnfs.errors import UsageError
from nnfs.fs.keysets import proved_records
from nnfs.store import moments, schema
from nnfs.store.moments import INO_MASK, PAST, Past
from nnfs.store.schema import Inode
from nnfs.store.txn import Snapshot

Tree = Snapshot | Past


def tree_of(snapshot: Snapshot, ino: int) -> tuple[Tree, int]:
    """Return the tree that an inode number belongs to, and the number in it. Raises `UsageError`, `StoreDamaged`."""
    if ino < PAST:
        return snapshot, ino
    try:
        return Past(snapshot, moments.load(snapshot), ino >> schema.INO_BITS), ino & INO_MASK
    except KeyError:
        raise UsageError(f"inode {ino} is that of a snapshot that is not there") from None


def inode_in(tree: Tree, ino: int) -> Inode | None:
    """Return an inode, None when there is none. Raises `RecordDamaged`."""
    record = tree.get("inode", schema.inode_key(ino))
    return Inode.unpack(ino, record) if record is not None else None


def proved(tree: Tree, inode: Inode, table: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, record) of all that an inode has in a table. Raises `RecordDamaged` as `proved_records` does."""
    return tree.proved(table, inode) if isinstance(tree, Past) else proved_records(tree, inode, table)


def map_nodes(tree: Tree, ino: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, record) of a file's map nodes, which are proved by nobody."""
    return tree.range("map", ino) if isinstance(tree, Past) else tree.prefix("map", schema.inode_key(ino))
