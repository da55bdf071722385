"""Amendments of a commit that recompression makes: other stored bytes for the same content. For the commit thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nnfs.errors import RecordDamaged
from nnfs.fs.apply import Work
from nnfs.store import models, schema
from nnfs.store.blocks import Recode
from nnfs.store.schema import Inode, MapNode, State


@dataclass(frozen=True, slots=True)
class Settled:
    """A file whose chunks have all been looked at, as they were when its map had this proof."""

    ino: int
    proof: int
    stored: int  # bytes of its blocks' payloads


def recode(work: Work, recodes: Sequence[Recode]) -> list[int | None]:
    """Swap payloads; return for each by how many bytes it has grown, None for a block that is not as it was."""
    changes = []
    for one in recodes:
        change = work.blocks.recode(one)
        changes.append(change)
        if change:
            _tell_owner(work, one, change)
    return changes


def _tell_owner(work: Work, one: Recode, change: int) -> None:
    """Keep `stored` of the file true that the block was found through; others that share it are told by `settle`."""
    ino, chunk = one.owner
    number, slot = divmod(chunk, schema.NODE_SPAN)
    key = schema.KEY2.pack(ino, number)
    try:
        inode, record = work.load(ino), work.txn.get("map", key)
        if inode is None or record is None or MapNode.unpack(key, record).blocks.get(slot) != one.number:
            return
    except RecordDamaged:
        return
    inode.stored = max(0, inode.stored + change)
    work.note(inode)


def settle(work: Work, files: Sequence[Settled]) -> None:
    """Mark files so that later passes leave them alone until they change."""
    for file in files:
        try:
            inode = work.load(file.ino)
        except RecordDamaged:
            continue
        if inode is not None and inode.proof == file.proof:
            inode.flags |= Inode.FLAG_SETTLED
            inode.stored = file.stored
            work.note(inode)


def unsettle(work: Work, *, stale: bool) -> None:
    """Note in the store that marks of settled files do not count (a policy or model has changed), or that they do."""
    flags = work.state.flags & ~State.FLAG_UNSETTLED
    work.state.flags = flags | State.FLAG_UNSETTLED if stale else flags


def keep_model(work: Work, fingerprint: bytes, data: bytes, base: bytes | None, now: int) -> int:
    """Store a model and return its number. `base` is the fingerprint of the model that `data` is a delta over.

    Raises `UsageError` when the base is not in the store.
    """
    over = 0
    if base is not None:
        found = models.by_fingerprint(work.txn, base)
        if found is None:
            raise models.base_missing(base)
        over = found
    return models.add_model(
        work.txn, work.blocks, fingerprint, data, base=over, added=now, commit=work.epoch.commit
    )


def retire_model(work: Work, number: int) -> None:
    """Encode nothing with a model any more."""
    models.retire_model(work.txn, number, work.epoch.commit)


def drop_models(work: Work) -> list[int]:
    """Delete the retired models that no block needs any more, nor a model that is a delta over them."""
    known = models.models(work.txn)
    dropped = []
    for number, model in sorted(known.items(), reverse=True):  # a delta has a greater number than its base
        needed = any(other.base == number for n, other in known.items() if n not in dropped)
        if model.retired and not needed and not work.blocks.uses_model(number):
            models.drop_model(work.txn, number)
            dropped.append(number)
    return dropped
