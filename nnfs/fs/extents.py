"""The parts of a file that are no holes, from its committed map: nothing of its content is read."""

from __future__ import annotations

import stat
from typing import Any

from nnfs.errors import UsageError
from nnfs.fs.trees import inode_in, proved, tree_of
from nnfs.store import schema
from nnfs.store.schema import MapNode
from nnfs.store.txn import Snapshot

LIMIT = 50_000  # extents in one answer


def extents(snapshot: Snapshot, ino: int, chunk_size: int, first: int = 0) -> dict[str, Any]:
    """Return the extents of a file from chunk `first` on, and the chunk with which the next answer has to begin.

    `extents` are pairs of offset and length in whole chunks, in order, cut at the end of the file; `next` is 0 after
    the last. Other inodes have none. Raises `UsageError` if there is no such inode, and `RecordDamaged`.
    """
    tree, number = tree_of(snapshot, ino)
    inode = inode_in(tree, number)
    if inode is None:
        raise UsageError(f"inode {ino} is not in the store")
    found: list[list[int]] = []
    answer = {"chunk_size": chunk_size, "size": inode.size, "extents": found, "next": 0}
    if not stat.S_ISREG(inode.mode):
        return answer
    for key, node in proved(tree, inode, "map"):
        number = schema.KEY2.unpack(key)[1]
        if (number + 1) * schema.NODE_SPAN <= first or answer["next"]:
            continue  # all records are visited: only together they prove that none is missing
        if len(found) >= LIMIT:
            answer["next"] = number * schema.NODE_SPAN
            continue
        for slot in sorted(MapNode.unpack(key, node).blocks):
            _add(found, (number * schema.NODE_SPAN + slot) * chunk_size, chunk_size, inode.size)
    return answer


def _add(found: list[list[int]], start: int, length: int, size: int) -> None:
    """Add a chunk to extents, as far as it lies within the file."""
    length = min(length, size - start)
    if length <= 0:
        return
    if found and found[-1][0] + found[-1][1] == start:
        found[-1][1] += length
    else:
        found.append([start, length])
