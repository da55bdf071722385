"""Quotas: their records, and the sums over those that lie within each other (FORMAT.md, "Quotas")."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import ClassVar

from nnfs.errors import StoreDamaged
from nnfs.store.sealing import fields_of, seal
from nnfs.store.txn import Snapshot, WriteTxn

QUOTA_KEY = b"nnfs.quota"  # followed by the number, u16
RO_QUOTAS = 2  # bit of the superblock's ro_compat: there are quotas
LAST_NUMBER = (1 << 16) - 1
LARGEST = (1 << 64) - 1  # limit

_QUOTA = Struct(">QHBQQQQQ")  # root above flags max_bytes max_inodes size inodes commit


@dataclass(slots=True)
class Quota:
    """The limits of one directory, and what counts for it alone: not for a quota that lies within it."""

    FLAG_COUNTING: ClassVar[int] = 1  # some inodes below the directory may not be counted yet
    FLAG_REMOVING: ClassVar[int] = 2  # inodes are given to the quota above, then it goes

    number: int
    root: int  # inode number of the directory
    above: int  # number of the quota that it lies within, 0: none
    flags: int = 0
    max_bytes: int = 0  # 0: no limit
    max_inodes: int = 0
    size: int = 0  # bytes: the sum of the sizes of its inodes
    inodes: int = 0
    commit: int = 0

    @property
    def counting(self) -> bool:
        return bool(self.flags & self.FLAG_COUNTING)

    @property
    def removing(self) -> bool:
        return bool(self.flags & self.FLAG_REMOVING)

    def pack(self) -> bytes:
        return seal("meta", key_of(self.number), _QUOTA.pack(
            self.root, self.above, self.flags, self.max_bytes, self.max_inodes, self.size, self.inodes, self.commit,
        ))  # fmt: skip

    @classmethod
    def unpack(cls, number: int, record: bytes) -> Quota:
        return cls(number, *fields_of("meta", key_of(number), record, _QUOTA)[0])


def key_of(number: int) -> bytes:
    """Return the key of a quota's record in the tables meta and main."""
    return QUOTA_KEY + number.to_bytes(2, "big")


def numbers(snapshot: Snapshot) -> list[int]:
    """Return the numbers of all quotas in order, those with damaged records included."""
    found = set()
    for table in ("meta", "main"):
        for key, _ in snapshot.prefix(table, QUOTA_KEY):
            if len(key) == len(QUOTA_KEY) + 2:
                found.add(int.from_bytes(key[-2:], "big"))
    return sorted(found)


def copies(snapshot: Snapshot, number: int) -> list[Quota | None]:
    """Return both copies of a quota's record, None for one that is missing or damaged."""
    found: list[Quota | None] = []
    for table in ("meta", "main"):
        quota = None
        with contextlib.suppress(StoreDamaged):
            record = snapshot.get(table, key_of(number))
            quota = None if record is None else Quota.unpack(number, record)
        found.append(quota)
    return found


def load(snapshot: Snapshot) -> tuple[dict[int, Quota], list[int]]:
    """Return all quotas by number, and the numbers of those of which both copies are damaged."""
    found: dict[int, Quota] = {}
    lost = []
    for number in numbers(snapshot):
        quota = next((copy for copy in copies(snapshot, number) if copy is not None), None)
        if quota is None:
            lost.append(number)
        else:
            found[number] = quota
    return found, lost


def put(txn: WriteTxn, quota: Quota) -> None:
    """Store both copies of a quota's record."""
    record = quota.pack()
    for table in ("meta", "main"):
        txn.put(table, key_of(quota.number), record)


def drop(txn: WriteTxn, number: int) -> None:
    """Delete both copies of a quota's record."""
    for table in ("meta", "main"):
        txn.delete(table, key_of(number))


def chain(known: Mapping[int, Quota], number: int) -> tuple[int, ...]:
    """Return a quota's number and those of all that it lies within, innermost first. Unknown ones end it."""
    found: list[int] = []
    while number in known and number not in found:
        found.append(number)
        number = known[number].above
    return tuple(found)


def totals(known: Mapping[int, Quota]) -> dict[int, tuple[int, int]]:
    """Return by number the bytes and inodes that each quota limits: its own, and those of all within it."""
    sums = {number: [0, 0] for number in known}
    for quota in known.values():
        for number in chain(known, quota.number):
            sums[number][0] += quota.size
            sums[number][1] += quota.inodes
    return {number: (size, inodes) for number, (size, inodes) in sums.items()}
