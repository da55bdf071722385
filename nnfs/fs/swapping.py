"""Amendments of recompression: other stored bytes for the same content, and marks. They run in the commit thread."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nnfs.codec.base import FIRST_COLD
from nnfs.errors import ModelMissing, RecordDamaged, StoreDamaged, UsageError
from nnfs.fs.apply import Work
from nnfs.store import modelfiles, schema
from nnfs.store.blocks import Swap
from nnfs.store.schema import Inode, MapNode, State, Total
from nnfs.store.txn import Snapshot

log = logging.getLogger(__name__)

ALL_RUNGS = 5  # more than there are: the file is settled
SLOW = 0xFFFF  # of the state's settings: codecs that were too slow, or out; the rest is a digest


@dataclass(frozen=True, slots=True)
class Settled:
    """A file whose chunks have all been looked at, as they were when it had this proof and this ctime.

    `rung` is that of the slowest codec that they were tried with; `ALL_RUNGS`: no other codec has to try them.
    """

    ino: int
    proof: int
    ctime: int  # changes with a file's name, too, and with its place the policy
    stored: int  # bytes of its blocks' payloads
    rung: int = ALL_RUNGS  # 0: it is to be looked at again


def swap(work: Work, swaps: Sequence[Swap], fingerprints: Mapping[int, bytes] | None = None) -> list[int | None]:
    """Swap payloads. Return for each the bytes by which it has grown.

    That is None for a block that is not as it was, or whose new model has been dropped since it was encoded:
    `fingerprints` are those that models had then by number.
    """
    known = fingerprints or {}
    gone = {model for model in {one.model for one in swaps} if model and not _is_there(work, model, known.get(model))}
    changes: list[int | None] = []
    for one in swaps:
        change = None if one.model in gone else work.blocks.swap(one)
        changes.append(change)
        if change:
            _tell_owner(work, one, change)
    return changes


def _is_there(work: Work, model: int, fingerprint: bytes | None) -> bool:
    try:
        found = modelfiles.load_model(work.txn, model)
    except ModelMissing:
        return False
    return not found.gone and fingerprint in (None, found.fingerprint)


def _tell_owner(work: Work, one: Swap, change: int) -> None:
    """Update `stored` of the file through which the block was found; `settle` updates other files that share it."""
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


def settle(work: Work, files: Sequence[Settled], digest: int = 0, slow: int = 0) -> None:
    """Mark files so that later passes leave them alone until they change.

    `digest` covers all that recompression depended on; `slow` are the codecs, as bits, that were not used for them
    because they are too slow here.
    """
    work.state.settings = (work.state.settings or digest & ~SLOW) | slow & SLOW
    for file in files:
        try:
            inode = work.load(file.ino)
        except RecordDamaged:
            continue
        if inode is not None and (inode.proof, inode.ctime) == (file.proof, file.ctime):
            inode.flags &= ~Inode.LOOKED_AT
            inode.flags |= Inode.FLAG_SETTLED if file.rung == ALL_RUNGS else file.rung << 2
            inode.stored = file.stored
            work.note(inode)


def bit(codec_id: int) -> int:
    """Return the bit that stands for a cold codec in the state's settings."""
    return (1 << (codec_id - FIRST_COLD)) & SLOW


def has_changed(settings: int, digest: int, fast: int) -> bool:
    """Return whether marks made with these settings of the state do not count any more.

    They count as long as the digest is the same and no codec that was too slow is `fast`.
    """
    return bool(settings) and (settings & ~SLOW != digest & ~SLOW or bool(settings & fast))


def has_blocks(snapshot: Snapshot, codec_id: int) -> bool:
    """Return whether there are blocks of a codec without models, as far as the totals tell."""
    key = schema.TOTAL_KEY.pack(codec_id, 0)
    try:
        record = snapshot.get("total", key)
        return record is not None and bool(Total.unpack(key, record).blocks)
    except StoreDamaged:
        return True


def begin_pass(work: Work, digest: int = 0, fast: int = 0) -> None:
    """Make the marks of settled files and of tried blocks void: a policy, a model or a setting has changed.

    Marks of files are void until a pass over all of them has ended, marks of blocks if they are of an earlier round. A
    change while a pass is under way begins another round; a crash begins only another pass.
    """
    work.state.next_round()
    settings = work.state.settings
    slow = 0 if has_changed(settings, digest, 0) else settings & SLOW & ~fast
    work.state.settings = digest & ~SLOW | slow
    work.state.flags &= ~State.FLAG_UNSETTLED
    work.state.flags |= State.FLAG_UNSETTLING


def end_pass(work: Work) -> None:
    """Note that the pass has looked at everything."""
    work.state.flags &= ~State.FLAG_UNSETTLING


def keep_model(
    work: Work, fingerprint: bytes, data: bytes, base: bytes | None, now: int,
    *, wanted: bool = False, number: int | None = None,
) -> int:  # fmt: skip
    """Store a model and return its number. `base` is the fingerprint of the model that `data` is a delta over.

    `wanted`: a user asks for it, so it is not retired any longer, and files that have been waiting for it are looked at
    again. `number` is the number of a lost record, if the model is known to be that one.
    Raises `UsageError` when the base is not in the store.
    """
    over = 0
    if base is not None:
        found = modelfiles.by_fingerprint(work.txn, base)
        if found is None:
            raise UsageError(f"the model is a delta over {base.hex()[:16]}, which is not in the store: add that first")
        over = found
    old = modelfiles.by_fingerprint(work.txn, fingerprint)
    was_there = old is not None and not modelfiles.load_model(work.txn, old).retired
    commit = work.epoch.commit
    number = modelfiles.add_model(
        work.txn, work.blocks, fingerprint, data, base=over, added=now, commit=commit, number=number
    )
    if wanted and not was_there:
        modelfiles.retire_model(work.txn, number, commit, retired=False)
        work.state.flags |= State.FLAG_UNSETTLED
    return number


def retire_model(work: Work, number: int) -> None:
    """Retire a model: nothing more is encoded with it, and its blocks are recompressed. Raises `ModelMissing`."""
    modelfiles.retire_model(work.txn, number, work.epoch.commit)
    work.state.flags |= State.FLAG_UNSETTLED


def repair_model(work: Work, number: int) -> bool:
    """Write a model's damaged copy anew; return whether there was one. Raises `ModelMissing` without a sound one."""
    return modelfiles.repair_copies(work.txn, number)


def idle_models(snapshot: Snapshot) -> set[int]:
    """Return the retired models that neither a block nor a delta over them needs.

    The totals only tell whether looking is worth it, since a damaged total begins again at 0. The headers of all blocks
    decide. As long as a header or a model's record cannot be read, no model is idle: it may be the one needed. Reads
    every header, 9 s for a TB: call it in a thread, and not within a write txn.
    """
    known = modelfiles.models(snapshot)
    if modelfiles.records(snapshot).keys() != set(modelfiles.numbers(snapshot)):
        return set()
    try:
        counted = modelfiles.counted(snapshot)
        idle = {number for number, model in known.items() if model.retired and not counted[number]}
        idle -= {model.base for number, model in known.items() if number not in idle}
        return idle - modelfiles.needed(snapshot) if idle else idle
    except StoreDamaged as error:
        log.warning("no model is dropped, fsck can tell more: %s", error)
        return set()


def drop_models(work: Work, idle: set[int]) -> list[int]:
    """Delete models that were idle, except those that have been used or wanted since, as the totals tell."""

    def is_used(number: int) -> bool:
        try:
            return number in work.blocks.models() or work.blocks.uses_model(number)  # the first: headers of this txn
        except StoreDamaged:
            return True

    known = modelfiles.models(work.txn)
    dropped: list[int] = []
    for number in sorted(idle & known.keys(), key=lambda n: known[n].base == 0):  # deltas first, then their bases
        bases = {model.base for n, model in known.items() if n not in dropped}
        if known[number].retired and number not in bases and not is_used(number):
            modelfiles.drop_model(work.txn, number, work.epoch.commit)
            dropped.append(number)
    return dropped
