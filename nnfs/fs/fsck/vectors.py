"""Checks of the vectors for search: derived records, of which a damaged one is deleted and made anew by a mount."""

from __future__ import annotations

from functools import partial

from nnfs.errors import RecordDamaged
from nnfs.fs.fsck.context import Context
from nnfs.fs.fsck.fixer import Fixer
from nnfs.store import schema, vectors
from nnfs.store.vectors import PROGRESS_KEY, TABLE, Vector


def check_vectors(c: Context) -> None:
    """Check each vector by itself. One that was made of another block than its file begins with now is legal."""
    if not c.snapshot.has(TABLE):
        return
    old = 0
    for key, record in c.scan(TABLE):
        drop = partial(Fixer.delete, table=TABLE, key=key)
        if len(key) != schema.KEY.size:
            c.problem("key", f"vector table has a key {key.hex()}", fix=drop)
            continue
        ino: int = schema.KEY.unpack(key)[0]
        try:
            if key == PROGRESS_KEY:
                c.check_commit("progress of vectors", vectors.unpack_progress(record))
                continue
            vector = Vector.unpack(key, record)
        except RecordDamaged as error:
            c.problem("vector", f"{error}: it is made anew by a mount", fix=drop)
            continue
        c.check_commit(f"vector of inode {ino}", vector.commit)
        old += vectors.valid(key, record, vectors.first_block(c.snapshot, ino)) is None
    if old:
        c.note(f"{old} vectors for search are of files that have changed or gone: they do not count")
