"""Keeping: records that a commit is about to change are put under the number of the snapshot that shares them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

from nnfs.errors import RecordDamaged
from nnfs.store import moments as past
from nnfs.store import schema
from nnfs.store.blocks import BlockWriter
from nnfs.store.moments import Moment
from nnfs.store.schema import MapNode
from nnfs.store.txn import Snapshot, WriteTxn

log = logging.getLogger(__name__)

NODE = 16  # kept records that a kept map node counts for, when a snapshot is deleted


class Keeper:
    """Keeps records within one write txn, for the snapshots that there were before it."""

    def __init__(self, txn: WriteTxn, moments: Sequence[Moment]) -> None:
        self._txn = txn
        self._moments = [moment for moment in moments if not moment.deleting]  # oldest first
        self._newest = self._moments[-1] if self._moments else None

    @property
    def active(self) -> bool:
        """Whether there is a snapshot to keep anything for."""
        return self._newest is not None

    def may_share(self, ino: int) -> bool:
        """Return whether any snapshot may have records of an inode: it is no younger than the newest of them."""
        return self._newest is not None and ino < self._newest.next_ino

    def holder(self, table: str, record: bytes, orphaned: int | None = None) -> Moment | None:
        """Return the snapshot for which a live record is to be kept, None when none shows it.

        `orphaned` is the commit that took the last name of its inode: later snapshots do not show it.
        """
        commit = past.commit_of(table, record)
        for moment in reversed(self._moments):
            if orphaned is None or moment.taken < orphaned:
                return moment if commit <= moment.taken else None
        return None

    def keep(self, table: str, key: bytes, record: bytes, orphaned: int | None = None) -> bool:
        """Keep a live record that is about to be changed or deleted, if a snapshot shares it; return whether.

        A damaged record is not kept: no snapshot can show it.
        """
        holder = self.holder(table, record, orphaned)
        if holder is None:
            return False
        place = past.at(holder.number, key)
        try:
            self._txn.put(table, place, past.resealed(table, key, record, place))
        except RecordDamaged as error:
            log.warning("snapshot %d loses a record that is changed now: %s", holder.number, error)
            return False
        return True


def reap(txn: WriteTxn, blocks: BlockWriter, moments: Sequence[Moment], number: int, budget: int) -> int:
    """Move or drop some kept records of a snapshot that is being deleted. Return how many; 0: none is left.

    A map node counts for `NODE` of the `budget`.
    """
    place = next(n for n, moment in enumerate(moments) if moment.number == number)
    older = moments[place - 1] if place else None
    low = schema.KEY.pack(number << schema.INO_BITS)
    high = schema.KEY.pack((number + 1) << schema.INO_BITS) if number + 1 < 1 << 16 else None
    budget, done, spent = max(budget, NODE), 0, 0
    for table in past.TABLES:
        cost = NODE if table == "map" else 1
        for key, record in list(itertools.islice(txn.range(table, low, high), max(0, budget - spent) // cost)):
            if older is None or not _moved(txn, table, key, record, older):
                _drop(blocks, table, key, record)
            txn.delete(table, key)
            done += 1
            spent += cost
        if spent + cost > budget:
            break
    return done


def is_needed(txn: Snapshot, table: str, key: bytes, record: bytes, older: Moment | None) -> bool:
    """Return whether the next earlier snapshot shows a kept record that it does not keep itself."""
    if older is None or past.commit_of(table, record) > older.taken:
        return False
    return txn.get(table, past.at(older.number, key)) is None


def _moved(txn: WriteTxn, table: str, key: bytes, record: bytes, older: Moment) -> bool:
    """Give a kept record to the next earlier snapshot, if that shows it. Return whether it is there."""
    if not is_needed(txn, table, key, record, older):
        return False
    place = past.at(older.number, key)
    try:
        txn.put(table, place, past.resealed(table, key, record, place))
    except RecordDamaged as error:
        log.warning("snapshot %d loses a damaged record: %s", older.number, error)
    return True  # a damaged map node's references are fsck's to find


def _drop(blocks: BlockWriter, table: str, key: bytes, record: bytes) -> None:
    """Give back the references of a kept map node."""
    if table != "map":
        return
    try:
        node = MapNode.unpack(key, record)
    except RecordDamaged as error:
        log.warning("a damaged map node of a snapshot is dropped, fsck will find its blocks: %s", error)
        return
    for number in node.blocks.values():
        try:
            blocks.unref(number)
        except RecordDamaged as error:
            log.warning("a block of a snapshot is damaged: %s", error)
