"""Checks of snapshots and of the records that are kept for them."""

from __future__ import annotations

import stat
from functools import partial

from nnfs.errors import RecordDamaged, StoreDamaged
from nnfs.fs.fsck.context import MASK, Context
from nnfs.fs.fsck.fixer import Fixer
from nnfs.fs.fsck.tree import DIR, FILE
from nnfs.store import moments, schema, sealing
from nnfs.store.moments import INO_MASK, Moment, Past
from nnfs.store.schema import Dentry, Inode, MapNode

ADVICE = "nnfs snapshot delete removes it"


def check_moments(c: Context) -> None:
    """Check the records of snapshots, and the bit of the superblock that says that there are any."""
    numbers = moments.numbers(c.snapshot)
    for number in numbers:
        copies = moments.copies(c.snapshot, number)
        moment = next((copy for copy in copies if copy is not None), None)
        if moment is None:
            c.problem("snapshot", f"both copies of the record of snapshot {number} are damaged; restore a backup")
            c.lost_moments = True
            continue
        if copies[0] != copies[1]:
            fix = partial(Fixer.put_moment, moment=moment)
            c.problem("copies", f"a copy of the record of snapshot {number} is damaged or missing", fix=fix)
        c.check_commit(f"snapshot {number}", max(moment.taken, moment.commit))
        c.moments.append(moment)
    c.moments.sort(key=lambda moment: moment.taken)
    is_set = bool(c.store.superblock.ro_compat & moments.RO_SNAPSHOTS)
    if is_set != bool(numbers):
        fix = partial(Fixer.mark_snapshots, present=bool(numbers))
        c.problem("snapshot", f"the superblock says that there are {'' if is_set else 'no '}snapshots", fix=fix)


class Kept:
    """Checks kept records while the tables are scanned, and then what each snapshot shows."""

    def __init__(self, c: Context) -> None:
        self.c = c
        self.by_number = {moment.number: moment for moment in c.moments}
        self.inodes: list[tuple[int, int]] = []  # number of the snapshot, inode
        self.owners: set[tuple[int, int]] = set()  # the same, of names, attributes and chunks
        self.dentries: list[tuple[int, int, int]] = []  # number of the snapshot, directory, inode

    def sees(self, table: str, key: bytes, record: bytes) -> bool:
        """Return whether a record is a kept one, which has been checked by itself then."""
        if len(key) < 8 or key[:2] == b"\0\0":
            return False
        number = int.from_bytes(key[:2], "big")
        moment = self.by_number.get(number)
        if moment is None:
            fix = None if self.c.lost_moments else partial(Fixer.delete, table=table, key=key)
            self.c.problem("kept", f"record {key.hex()} of table {table} is kept for no snapshot", fix=fix)
            return True
        what = f"snapshot {_name(moment)}, table {table}, record {key.hex()}"
        if not sealing.is_sealed(table, key, record):
            self.c.problem("kept", f"{what}: it is damaged ({ADVICE})")
            if table == "map":
                self.c.uncertain.add(schema.KEY.unpack(key[:8])[0])
            return True
        if moments.commit_of(table, record) > moment.taken:
            self.c.problem("kept", f"{what}: it is younger than its snapshot ({ADVICE})")
        try:
            self._note(table, key, record, number)
        except RecordDamaged as error:
            self.c.problem("kept", f"{what}: {error} ({ADVICE})")
        return True

    def _note(self, table: str, key: bytes, record: bytes, number: int) -> None:
        ino = schema.KEY.unpack(key[:8])[0] & INO_MASK
        if table != "inode":
            self.owners.add((number, ino))
        if table == "inode":
            Inode.unpack(schema.KEY.unpack(key)[0], record)
            self.inodes.append((number, ino))
        elif table == "dentry":
            self.dentries.append((number, ino, Dentry.unpack(key, record).ino))
        elif table == "map":
            MapNode.unpack(key, record)

    # -- the trees of snapshots

    def check_trees(self, *, whole: bool) -> None:
        """Check that each kept inode proves what its snapshot has of it, and that kept names lead to inodes.

        All else is that of a later snapshot or of the live tree, and checked there. With `whole` each tree is walked.
        """
        if self.c.unreadable or self.c.lost_moments:
            return
        pasts = {number: Past(self.c.snapshot, self.c.moments, number) for number in self.by_number}
        for number, ino in self.inodes:
            if not self.by_number[number].deleting:
                self._check_inode(pasts[number], ino)
        for number, ino in sorted(self.owners):
            if not self.by_number[number].deleting:
                self._check_there(pasts[number], ino, f"what it has of inode {ino} is kept, and the inode is missing")
        for number, directory, ino in self.dentries:
            if not self.by_number[number].deleting:
                self._check_there(
                    pasts[number], ino, f"a name in directory {directory} leads to inode {ino}, which it has not"
                )
        for number, past in pasts.items():
            if self.by_number[number].deleting:
                self.c.note(f"snapshot {_name(past.moment)} is being deleted: the next mount goes on")
            elif whole:
                self._walk(past)

    def _check_there(self, past: Past, ino: int, otherwise: str) -> None:
        """Tell a problem where a snapshot lacks an inode that something in it belongs or leads to."""
        try:
            is_there = past.inode(ino) is not None
        except StoreDamaged:
            return  # told already
        if not is_there:
            self.c.problem("kept", f"snapshot {_name(past.moment)}: {otherwise} ({ADVICE})")

    def _check_inode(self, past: Past, ino: int) -> None:
        what = f"snapshot {_name(past.moment)}, inode {ino}"
        try:
            inode = past.inode(ino)
        except StoreDamaged:
            return
        if inode is None:
            return  # younger than its snapshot
        if _sum(past, "xattr", ino)[1] != inode.xattrs:
            fix = partial(recount_kept, moment=past.moment, ino=ino)
            self.c.problem("kept", f"{what}: its extended attributes are not those that it proves", fix=fix)
        kind = inode.mode >> 12
        if kind == DIR and _sum(past, "dentry", ino) != (inode.count, inode.proof):
            fix = partial(recount_kept, moment=past.moment, ino=ino)
            self.c.problem("kept", f"{what}: its names are not those that it proves", fix=fix)
        if kind == FILE and _sum(past, "map", ino) != (inode.count, inode.proof):
            self.c.problem("kept", f"{what}: its chunks are not those that it proves ({ADVICE})")

    def _walk(self, past: Past) -> None:
        """Check that every name of a tree leads to an inode, and every directory proves its names."""
        pending, seen = [schema.ROOT_INO], {schema.ROOT_INO}
        while pending:
            ino = pending.pop()
            try:
                inode = past.inode(ino)
                if inode is None:
                    what = f"snapshot {_name(past.moment)}: inode {ino} has a name there, and is missing ({ADVICE})"
                    self.c.problem("kept", what)
                    continue
                if not stat.S_ISDIR(inode.mode):
                    continue
                for key, record in past.proved("dentry", inode):
                    target = Dentry.unpack(key, record).ino
                    if target not in seen:
                        seen.add(target)
                        pending.append(target)
            except StoreDamaged as error:
                self.c.problem("kept", f"snapshot {_name(past.moment)}, inode {ino}: {error} ({ADVICE})")


def _name(moment: Moment) -> str:
    return repr(moment.name.decode(errors="backslashreplace"))


def _sum(past: Past, table: str, ino: int) -> tuple[int, int]:
    """Return how many records of an inode a snapshot has (of the map: chunks), and the sum of their checksums."""
    count = total = 0
    try:
        for key, record in past.range(table, ino):
            count += len(MapNode.unpack(key, record).blocks) if table == "map" else 1
            total += sealing.checksum_of(record)
    except StoreDamaged:
        return -1, -1
    return count, total & MASK


def recount_kept(fixer: Fixer, moment: Moment, ino: int) -> None:
    """Have a kept inode prove the names and attributes that its snapshot has."""
    past = Past(fixer.txn, fixer.context.moments, moment.number)
    key = moments.at(moment.number, schema.inode_key(ino))
    record = fixer.txn.get("inode", key)
    if record is None:
        return
    inode = Inode.unpack(schema.KEY.unpack(key)[0], record)
    found, xattrs = _sum(past, "xattr", ino)
    if found >= 0:
        inode.xattrs = xattrs
    if inode.is_directory:
        count, proof = _sum(past, "dentry", ino)
        if count < 0:
            return  # a record is damaged, and stays
        inode.count, inode.proof = count, proof
    fixer.put("inode", key, inode.pack())
    fixer.notes.append(f"snapshot {_name(moment)}: inode {ino} has lost names or attributes")
