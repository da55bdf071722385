"""The table of vectors: for each file 256 small integers by which it is found. FORMAT.md, "Vectors", is normative.

They are derived: a vector counts only while the file's first chunk is the block that it was made of. So nothing that
changes a file needs to know of them, a crash leaves none that lies, and any of them may be dropped.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from struct import Struct

from nnfs.errors import RecordDamaged, StoreDamaged
from nnfs.store import schema
from nnfs.store.sealing import fields_of, is_sealed, seal
from nnfs.store.txn import Snapshot

TABLE = "vector"
DIMENSIONS = 256
HEAD = 1024  # bytes of a file of which they are made
RECIPE = 1  # by which vectors are made of content: `nnfs/fs/search/content.py`
PROGRESS_KEY = schema.KEY.pack(0)  # no inode has this number

_VECTOR = Struct(">BQQ")  # recipe block commit
_NODE = Struct(">QQQ")  # bitmap commit number: how a map node begins
_PROGRESS = Struct(">BQ")  # recipe commit
RECORD_SIZE = _VECTOR.size + DIMENSIONS + 8  # with its seal


@dataclass(slots=True)
class Vector:
    """The vector of one file, under its inode number. `block` is the file's first block, of which it was made."""

    block: int
    values: bytes  # DIMENSIONS signed bytes
    commit: int = 0
    recipe: int = RECIPE

    def pack(self, key: bytes) -> bytes:
        return seal(TABLE, key, _VECTOR.pack(self.recipe, self.block, self.commit) + self.values)

    @classmethod
    def unpack(cls, key: bytes, record: bytes) -> Vector:
        (recipe, block, commit), values = fields_of(TABLE, key, record, _VECTOR)
        if len(values) != DIMENSIONS:
            raise RecordDamaged(TABLE, key, "wrong length")
        return cls(block, values, commit, recipe)


def pack_progress(commit: int) -> bytes:
    """Seal the number of the commit up to which every file has been looked at."""
    return seal(TABLE, PROGRESS_KEY, _PROGRESS.pack(RECIPE, commit))


def unpack_progress(record: bytes) -> int:
    """Return the commit up to which every file has been looked at by the present recipe. Raises `RecordDamaged`."""
    recipe, commit = fields_of(TABLE, PROGRESS_KEY, record, _PROGRESS)[0]
    return commit if recipe == RECIPE else 0


def progress(snapshot: Snapshot) -> int:
    """Return the commit up to which every file has been looked at, 0 if that is not known."""
    if not snapshot.has(TABLE):
        return 0
    record = snapshot.hint(TABLE, PROGRESS_KEY)
    with contextlib.suppress(RecordDamaged):
        return unpack_progress(record) if record is not None else 0
    return 0


def some(snapshot: Snapshot, keys: list[bytes]) -> dict[bytes, bytes]:
    """Return the records of files, of those that have one; none where pages are damaged: names are found all the same.

    Nothing in them is proved.
    """
    try:
        return snapshot.some(TABLE, keys) if snapshot.has(TABLE) else {}
    except StoreDamaged:
        return {}


def valid(key: bytes, record: bytes | None, block: int) -> Vector | None:
    """Return the vector of a record if it is sound, of the present recipe, and made of this block."""
    if record is None:
        return None
    try:
        vector = Vector.unpack(key, record)
    except RecordDamaged:
        return None
    return vector if vector.block == block and vector.recipe == RECIPE else None


def first_block(snapshot: Snapshot, ino: int) -> int:
    """Return the number of a file's first block, 0 where there is a hole, or where that cannot be known."""
    key = schema.KEY2.pack(ino, 0)
    record = snapshot.hint("map", key)
    if record is None or not is_sealed("map", key, record) or len(record) < _NODE.size + 8:
        return 0
    bitmap, _, number = _NODE.unpack_from(record)  # of map nodes that have a chunk at all: this is asked for thousands
    return number if bitmap & 1 else 0
