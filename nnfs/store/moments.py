"""Snapshots of the tree: their records, and the records of the tree that each of them shows (FORMAT.md, "Snapshots").

They are called moments in code, where a `Snapshot` is a read txn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from struct import Struct
from typing import ClassVar

from nnfs.errors import RecordDamaged, StoreDamaged
from nnfs.store import schema
from nnfs.store.schema import Inode
from nnfs.store.sealing import fields_of, is_sealed, seal, unseal
from nnfs.store.txn import Snapshot, WriteTxn

MOMENT_KEY = b"nnfs.snap"  # followed by the number, u16
RO_SNAPSHOTS = 1  # bit of the superblock's ro_compat: there are snapshots
LAST_NUMBER = (1 << 15) - 1  # that is given: programs may take inode numbers as signed
PAST = 1 << schema.INO_BITS  # inode numbers in keys from here on belong to kept records
INO_MASK = PAST - 1
TABLES = ("map", "inode", "dentry", "xattr")  # whose records are kept

_MOMENT = Struct(">QQqQQBQ")  # taken next_ino created inodes logical flags commit
_COMMIT = Struct(">Q")
_COMMIT_AT = {"inode": 100, "dentry": 9, "xattr": 0, "map": 8}  # offset in the record


@dataclass(frozen=True, slots=True)
class Moment:
    """One snapshot: the tree as commit `taken` has left it."""

    FLAG_DELETING: ClassVar[int] = 1

    number: int
    name: bytes
    taken: int
    next_ino: int
    created: int  # ns
    inodes: int
    logical: int  # bytes
    flags: int = 0
    commit: int = 0

    @property
    def deleting(self) -> bool:
        return bool(self.flags & self.FLAG_DELETING)

    def pack(self) -> bytes:
        body = _MOMENT.pack(
            self.taken, self.next_ino, self.created, self.inodes, self.logical, self.flags, self.commit
        )  # fmt: skip
        return seal("meta", key_of(self.number), body + self.name)

    @classmethod
    def unpack(cls, number: int, record: bytes) -> Moment:
        fields, name = fields_of("meta", key_of(number), record, _MOMENT)
        return cls(number, name, *fields)


def key_of(number: int) -> bytes:
    """Return the key of a snapshot's record in the tables meta and main."""
    return MOMENT_KEY + number.to_bytes(2, "big")


def numbers(snapshot: Snapshot) -> list[int]:
    """Return the numbers of all snapshots in order, those with damaged records included."""
    found = set()
    for table in ("meta", "main"):
        for key, _ in snapshot.prefix(table, MOMENT_KEY):
            if len(key) == len(MOMENT_KEY) + 2:
                found.add(int.from_bytes(key[-2:], "big"))
    return sorted(found)


def copies(snapshot: Snapshot, number: int) -> list[Moment | None]:
    """Return both copies of a snapshot's record, None for one that is missing or damaged."""
    found: list[Moment | None] = []
    for table in ("meta", "main"):
        moment = None
        with contextlib.suppress(StoreDamaged):
            record = snapshot.get(table, key_of(number))
            moment = None if record is None else Moment.unpack(number, record)
        found.append(moment)
    return found


def load(snapshot: Snapshot) -> tuple[Moment, ...]:
    """Return all snapshots, oldest first. Raises `StoreDamaged` when both copies of one are damaged."""
    found = []
    for number in numbers(snapshot):
        moment = next((copy for copy in copies(snapshot, number) if copy is not None), None)
        if moment is None:
            raise StoreDamaged(f"both copies of the record of snapshot {number} are damaged; restore a backup")
        found.append(moment)
    return tuple(sorted(found, key=attrgetter("taken")))


def put(txn: WriteTxn, moment: Moment) -> None:
    """Store both copies of a snapshot's record."""
    for table in ("meta", "main"):
        txn.put(table, key_of(moment.number), moment.pack())


def drop(txn: WriteTxn, moment: Moment) -> None:
    """Delete both copies of a snapshot's record."""
    for table in ("meta", "main"):
        txn.delete(table, key_of(moment.number))


def commit_of(table: str, record: bytes) -> int:
    """Return the commit that has last changed a record of the tree. The record may be damaged."""
    at = _COMMIT_AT[table]
    return int(_COMMIT.unpack_from(record, at)[0]) if len(record) >= at + 8 else 0


def at(number: int, key: bytes) -> bytes:
    """Return the key under which a snapshot keeps the record of a live key (number 0: the live key of any)."""
    return number.to_bytes(2, "big") + key[2:]


def resealed(table: str, key: bytes, record: bytes, other: bytes) -> bytes:
    """Return a record of `key` as one of `other`. Raises `RecordDamaged`."""
    return seal(table, other, unseal(table, key, record))


class Past:
    """The tree of one snapshot, read through a txn. Inode numbers here are those of the tree, below 2^48.

    Records are returned as they were under their live keys. Raises `KeyError` when there is no such snapshot.
    """

    def __init__(self, snapshot: Snapshot, moments: Sequence[Moment], number: int) -> None:
        place = next((n for n, moment in enumerate(moments) if moment.number == number), None)
        if place is None:
            raise KeyError(number)
        self.moment = moments[place]
        self._snapshot = snapshot
        self._levels = [*(moment.number for moment in moments[place:]), 0]

    @classmethod
    def live(cls, snapshot: Snapshot) -> Past:
        """Return the live tree as of the last commit."""
        now = Moment(0, b"", (1 << 64) - 1, PAST, 0, 0, 0)
        past = cls(snapshot, [now], 0)
        past._levels = [0]
        return past

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the record of a live key, None when there is none. Raises `RecordDamaged`."""
        for level in self._levels:
            found = at(level, key)
            record = self._snapshot.get(table, found)
            if record is not None:
                return self._seen(table, found, record)
        return None

    def _seen(self, table: str, found: bytes, record: bytes) -> bytes | None:
        """Return a record, the first that was found, as that of its live key; None when it is younger."""
        if not is_sealed(table, found, record):
            raise RecordDamaged(table, found, "checksum mismatch")
        if commit_of(table, record) > self.moment.taken:
            return None
        key = at(0, found)
        return record if found == key else seal(table, key, record[:-8])

    def range(self, table: str, ino: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield (live key, record) of all that an inode has in a table, in order. Raises `RecordDamaged`."""
        found: dict[bytes, tuple[int, bytes]] = {}
        prefix = schema.KEY.pack(ino)
        for level in reversed(self._levels):
            for key, record in self._snapshot.prefix(table, at(level, prefix)):
                found[key[8:]] = level, record
        for rest in sorted(found):
            level, record = found[rest]
            seen = self._seen(table, at(level, prefix) + rest, record)
            if seen is not None:
                yield prefix + rest, seen

    def inode(self, ino: int) -> Inode | None:
        """Return an inode, None when the snapshot has none. Raises `RecordDamaged`."""
        record = self.get("inode", schema.KEY.pack(ino))
        return None if record is None else Inode.unpack(ino, record)

    def proved(self, table: str, inode: Inode) -> Iterator[tuple[bytes, bytes]]:
        """Yield (live key, record) of all that an inode has in a table.

        Raises `RecordDamaged` at the first that is damaged, or at the end when they are not those that it proves.
        """
        total = 0
        for key, record in self.range(table, inode.ino):
            total += int.from_bytes(record[-8:], "big")
            yield key, record
        if total % (1 << 64) != (inode.xattrs if table == "xattr" else inode.proof):
            why = f"snapshot {self.moment.number}: the inode proves other {table} records than there are"
            raise RecordDamaged(table, schema.KEY.pack(inode.ino), why)
