"""Facts about quotas as of one commit: the answer of `nnfs quota show`, and what a check of them finds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nnfs.errors import RecordDamaged, StoreDamaged
from nnfs.store import quotas, schema
from nnfs.store.moments import PAST
from nnfs.store.quotas import Quota
from nnfs.store.schema import Dentry, Inode
from nnfs.store.txn import Snapshot

MISPLACED_MAX = 100_000  # inodes that one check names


def lines(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return the facts of each quota, in the order of their paths."""
    known, _ = quotas.load(snapshot)
    sums = quotas.totals(known)
    found = [line(snapshot, quota, *sums[number]) for number, quota in known.items()]
    return sorted(found, key=lambda one: one["path"])


def line(snapshot: Snapshot, quota: Quota, size: int, inodes: int) -> dict[str, Any]:
    """Return the facts of one quota, which limits `size` bytes and `inodes` inodes now."""
    return {
        "path": os.fsdecode(path_of(snapshot, quota.root)), "number": quota.number, "ino": quota.root,
        "max_bytes": quota.max_bytes, "bytes": size, "max_inodes": quota.max_inodes, "inodes": inodes,
        "counting": quota.counting, "removing": quota.removing,
    }  # fmt: skip


def path_of(snapshot: Snapshot, ino: int) -> bytes:
    """Return the path of a directory below the root, or `<inode N>` for one that cannot be found."""
    parts: list[bytes] = []
    start = ino
    try:
        while ino != schema.ROOT_INO:
            record = snapshot.get("inode", schema.KEY.pack(ino))
            if record is None or len(parts) > 10_000:
                return b"<inode %d>" % start
            parent = Inode.unpack(ino, record).aux
            entries = (Dentry.unpack(*item) for item in snapshot.prefix("dentry", schema.KEY.pack(parent)))
            name = next((dentry.name for dentry in entries if dentry.ino == ino), None)
            if name is None:
                return b"<inode %d>" % start
            parts.append(name)
            ino = parent
    except StoreDamaged:
        return b"<inode %d>" % start
    return b"/" + b"/".join(reversed(parts))


@dataclass(slots=True)
class Found:
    """The result of a check. `missing` is by number what the sums of a quota lack: bytes and inodes."""

    missing: dict[int, tuple[int, int]] = field(default_factory=dict)
    misplaced: dict[int, int] = field(default_factory=dict)  # inode to its directory, which another quota counts
    unknown: int = 0  # inodes that name a quota that is not there


def check(snapshot: Snapshot) -> Found:
    """Count all inodes anew, and compare them with the quotas and with the directories that they lie in.

    Takes seconds for a million inodes. Damaged records are passed over: they are fsck's.
    """
    known, _ = quotas.load(snapshot)
    found = Found()
    members = _count(snapshot, known, found)
    if members:
        _place(snapshot, known, members, found)
    return found


def _count(snapshot: Snapshot, known: Mapping[int, Quota], found: Found) -> dict[int, int]:
    """Compare the sums. Return the quota of each inode that has one."""
    members: dict[int, int] = {}
    sizes, inodes = dict.fromkeys(known, 0), dict.fromkeys(known, 0)
    for key, record in snapshot.range("inode", b"", schema.KEY.pack(PAST)):
        try:
            inode = Inode.unpack(schema.KEY.unpack(key)[0], record)
        except RecordDamaged:
            continue
        if inode.quota in known:
            sizes[inode.quota] += inode.size
            inodes[inode.quota] += 1
        elif inode.quota:
            found.unknown += 1
        if inode.quota:
            members[inode.ino] = inode.quota
    for number, quota in known.items():
        lack = sizes[number] - quota.size, inodes[number] - quota.inodes
        if lack != (0, 0):
            found.missing[number] = lack
    return members


def _place(snapshot: Snapshot, known: Mapping[int, Quota], members: Mapping[int, int], found: Found) -> None:
    """Find inodes whose quota is that of none of the directories that name them."""
    roots = {quota.root: quota for quota in known.values()}
    busy = {number for number, quota in known.items() if quota.counting or quota.removing}
    wrong: dict[int, int] = {}
    right: set[int] = set()
    for key, record in snapshot.range("dentry", b"", schema.KEY.pack(PAST)):
        directory = schema.KEY2.unpack(key)[0]
        try:
            child = Dentry.unpack(key, record).ino
        except RecordDamaged:
            continue
        root = roots.get(child)
        has = members.get(child, 0) if root is None else root.above
        wanted = members.get(directory, 0)
        if has == wanted:
            right.add(child) if child in wrong else None
        elif has not in busy and wanted not in busy and len(wrong) < MISPLACED_MAX:
            wrong[child] = directory
    right |= _named_rightly(snapshot, members, wrong)
    found.misplaced = {ino: directory for ino, directory in wrong.items() if ino not in right}


def _named_rightly(snapshot: Snapshot, members: Mapping[int, int], wrong: Mapping[int, int]) -> set[int]:
    """Return those inodes of which some other name lies in a directory of their quota."""
    several: set[int] = set()
    for ino in wrong:
        record = snapshot.get("inode", schema.KEY.pack(ino))
        if record is not None and Inode.unpack(ino, record).nlink > 1:
            several.add(ino)
    right: set[int] = set()
    for key, record in snapshot.range("dentry", b"", schema.KEY.pack(PAST)) if several else ():
        ino = Dentry.unpack(key, record).ino
        if ino in several and members.get(ino, 0) == members.get(schema.KEY2.unpack(key)[0], 0):
            right.add(ino)
    return right
