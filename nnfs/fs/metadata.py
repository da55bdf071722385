"""Writing the metadata of an epoch within its commit; what snapshots share with the live tree is kept before."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from nnfs.errors import RecordDamaged, StoreDamaged
from nnfs.store import quotas, schema
from nnfs.store.moments import PAST, commit_of
from nnfs.store.schema import Inode

if TYPE_CHECKING:
    from nnfs.fs.apply import Work

log = logging.getLogger(__name__)

PASSING = ("atime", "stored", "commit")  # fields whose changes are none of the tree, as marks and quota
_FIELDS = tuple(name for name in Inode.__slots__ if name not in PASSING and name != "flags")


def write_metadata(work: Work) -> None:
    """Write the inodes, dentries, attributes and orphans of `work.epoch`."""
    txn, epoch, fresh = work.txn, work.epoch, schema.KEY.pack(work.stored_below)
    for ino in epoch.inodes:
        _check_inode(work, ino)
    if work.keeper.active:
        keep_metadata(work)
    inodes = [(schema.KEY.pack(ino), epoch.inodes[ino].pack()) for ino in sorted(epoch.inodes)]
    txn.put_many("inode", inodes, fresh)
    dentries = [(key, record) for key, record in epoch.dentries.items() if record is not None]
    txn.put_many("dentry", dentries, fresh)
    for key, record in epoch.dentries.items():
        if record is None:
            txn.delete("dentry", key)
    for ino, names in epoch.xattrs.items():
        for name, record in names.items():
            key = schema.KEY.pack(ino) + name
            if record is None:
                txn.delete("xattr", key)
            else:
                txn.put("xattr", key, record)
    for ino in epoch.orphans:
        key = schema.KEY.pack(ino)
        if not work.keeper.active or txn.get("orphan", key) is None:  # else it says since when it is one
            txn.put("orphan", key, schema.pack_orphan(key, epoch.commit))
    if epoch.quotas:
        _write_quotas(work)


def _write_quotas(work: Work) -> None:
    """Write the records of quotas, and have the superblock say whether there are any."""
    for number, quota in work.epoch.quotas.items():
        if quota is None:
            quotas.drop(work.txn, number)
        else:
            quotas.put(work.txn, quota)
    before = work.superblock.ro_compat
    there = quotas.RO_QUOTAS if quotas.numbers(work.txn) else 0
    work.superblock.ro_compat = before & ~quotas.RO_QUOTAS | there
    if work.superblock.ro_compat != before:
        work.txn.put_superblock(work.superblock)


def _check_inode(work: Work, ino: int) -> None:
    """Check an inode that is about to be replaced: if a stored one is not found, an old record may return."""
    if ino >= work.stored_below or ino in work.spares:
        return
    key = schema.KEY.pack(ino)
    try:
        is_lost = work.txn.get("inode", key) is None
    except StoreDamaged:
        is_lost = True
    if is_lost:
        work.done.failed.setdefault(ino, RecordDamaged("inode", key, "missing"))


def keep_metadata(work: Work) -> None:
    """Keep the inodes, dentries and attributes that `work.epoch` is about to overwrite or delete.

    An inode in which only `PASSING` fields and marks of recompression change stays that of the snapshot, with its
    commit.
    """
    for ino, inode in work.epoch.inodes.items():
        if ino < PAST and work.keeper.may_share(ino):
            _keep_inode(work, inode)
    for key in work.epoch.dentries:
        if work.keeper.may_share(schema.KEY2.unpack(key)[0]):
            _keep(work, "dentry", key, None)
    for ino, names in work.epoch.xattrs.items():
        if work.keeper.may_share(ino):
            changed = work.epoch.inodes.get(ino)
            orphaned = None if changed is None else work.orphaned(changed)
            for name in names:
                _keep(work, "xattr", schema.KEY.pack(ino) + name, orphaned)


def _keep(work: Work, table: str, key: bytes, orphaned: int | None) -> None:
    try:
        record = work.txn.get(table, key)
    except StoreDamaged as error:
        log.warning("a record of a snapshot is lost: %s", error)
        return
    if record is not None:
        work.keeper.keep(table, key, record, orphaned)


def _keep_inode(work: Work, inode: Inode) -> None:
    key = schema.KEY.pack(inode.ino)
    try:
        record = work.txn.get("inode", key)
        if record is None:
            return
        old = Inode.unpack(inode.ino, record)
    except StoreDamaged:
        return  # `Applied.failed` has it
    if work.keeper.holder("inode", record, work.orphaned(inode)) is None:
        if inode.commit <= old.commit and not is_same(old, inode):
            inode.commit = work.epoch.commit
        return
    if is_same(old, inode):
        inode.commit = commit_of("inode", record)
        return
    work.keeper.keep("inode", key, record, work.orphaned(inode))
    inode.commit = work.epoch.commit


def is_same(one: Inode, other: Inode) -> bool:
    """Return whether two records of an inode say the same of the tree."""
    if (one.flags ^ other.flags) & ~(Inode.LOOKED_AT | Inode.QUOTA_BITS):
        return False
    return all(getattr(one, name) == getattr(other, name) for name in _FIELDS)
