"""Incremental backups: the records in which a store differs from an earlier one (FORMAT.md, "Increments").

Keys are grouped, and each group has a digest over its records. An increment holds the groups whose digest has changed,
whole, the payloads that are new, and the digests of all groups: the next increment needs nothing else of it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import BinaryIO

from nnfs.errors import ArchiveDamaged, RecordDamaged
from nnfs.store import schema
from nnfs.store.schema import Block, Model
from nnfs.store.sealing import seal
from nnfs.store.txn import Snapshot, WriteTxn

MAGIC = b"nnfsinc1"
GROUP_BITS = 6  # keys whose first numbers differ in the lower bits only belong together
TABLES = ("main", "meta", "inode", "dentry", "xattr", "map", "block", "model", "orphan", "queue", "total")
PREFIX = b"nnfs."  # of keys in main that are records
HASH_BYTES = 64
PIECE = 1 << 20

_HEAD = Struct(">8s16sQQQQ")  # magic uuid base commit fresh next
_GROUP = Struct(">BQI")  # table, group, records
_RECORD = Struct(">HI")  # bytes of key and record
_DIGEST = Struct(">BQQ")  # table, group, digest
_PAYLOAD, _END = 0xFE, 0xFF  # in place of a table

Group = tuple[int, int]  # table, group
Digests = dict[Group, int]
Records = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Head:
    """The begin of an increment: of which store, from which commit to which. Payloads from `fresh` on are new.

    `next` is the number of the next payload, with which an increment after this one begins.
    """

    uuid: bytes
    base: int
    commit: int
    fresh: int
    next: int


# -- groups


def groups(snapshot: Snapshot) -> Iterator[tuple[Group, Records]]:
    """Yield the records of each group, but for payloads and the hash index, which follow from the headers."""
    for table, name in enumerate(TABLES):
        low, high = (PREFIX, b"nnfs/") if name == "main" else (b"", None)
        for group, some in itertools.groupby(snapshot.range(name, low, high), lambda item: _group_of(item[0])):
            yield (table, group), list(some)


def _group_of(key: bytes) -> int:
    return int.from_bytes(key[:8].ljust(8, b"\0"), "big") >> GROUP_BITS


def _bounds(group: int) -> tuple[bytes, bytes | None]:
    """Return the first key that can be in a group, and the first behind it."""
    low, high = group << GROUP_BITS, (group + 1) << GROUP_BITS
    return low.to_bytes(8, "big").rstrip(b"\0"), high.to_bytes(8, "big").rstrip(b"\0") if high >> 64 == 0 else None


def _packed(records: Records) -> bytes:
    return b"".join(_RECORD.pack(len(key), len(record)) + key + record for key, record in records)


def digests(snapshot: Snapshot) -> Digests:
    """Return the digests of all groups of a store."""
    return {group: _digest(records) for group, records in groups(snapshot)}


def _digest(records: Records) -> int:
    return int.from_bytes(seal("payload", b"", _packed(records))[-8:], "big")


# -- writing


class _Hashed:
    """A file that is written, and the hash of what was."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.hash = file, hashlib.blake2b()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.hash.update(data)


def write(snapshot: Snapshot, head: Head, base: Mapping[Group, int], file: BinaryIO) -> None:
    """Write the increment from a store with these digests to `snapshot`."""
    out, now = _Hashed(file), Digests()
    out.write(_HEAD.pack(MAGIC, head.uuid, head.base, head.commit, head.fresh, head.next))
    for group, records in groups(snapshot):
        now[group] = _digest(records)
        if base.get(group) != now[group]:
            out.write(_GROUP.pack(*group, len(records)) + _packed(records))
            for number in sorted(_payloads(group, records)):
                if number >= head.fresh:
                    pieces = list(snapshot.prefix("payload", schema.KEY.pack(number)))
                    out.write(_GROUP.pack(_PAYLOAD, number, len(pieces)) + _packed(pieces))
    for group in base.keys() - now.keys():
        out.write(_GROUP.pack(*group, 0))
    out.write(_GROUP.pack(_END, 0, len(now)))
    for group, digest in now.items():
        out.write(_DIGEST.pack(*group, digest))
    file.write(out.hash.digest())


def _payloads(group: Group, records: Records) -> set[int]:
    """Return the numbers of the payloads that records name. Damaged records name none."""
    found: set[int] = set()
    for key, record in records:
        try:
            if TABLES[group[0]] == "block":
                found.add(Block.unpack(key, record).payload)
            elif TABLES[group[0]] == "model":
                found.update(Model.unpack(key, record).payloads)
        except RecordDamaged:
            continue
    return found - {0}


# -- reading


def is_increment(file: BinaryIO) -> bool:
    """Return whether a file is an increment, and go back to its begin."""
    file.seek(0)
    magic = file.read(len(MAGIC))
    file.seek(0)
    return magic == MAGIC


def prove(file: BinaryIO) -> None:
    """Read a whole increment and compare its hash. Raises `ArchiveDamaged`."""
    left, digest = file.seek(0, 2) - HASH_BYTES, hashlib.blake2b()
    file.seek(0)
    while left > 0 and (piece := file.read(min(PIECE, left))):
        digest.update(piece)
        left -= len(piece)
    if left or file.read(HASH_BYTES + 1) != digest.digest():
        raise ArchiveDamaged("it is cut off or damaged")
    file.seek(0)


def head_of(file: BinaryIO) -> Head:
    """Read the begin of an increment that is proved."""
    return Head(*_HEAD.unpack(file.read(_HEAD.size))[1:])


def parts(file: BinaryIO) -> Iterator[tuple[int, int, Records]]:
    """Yield table, group and records of each group. Raises `ArchiveDamaged`.

    Behind the last one the digests follow: see `digests_of`.
    """
    while True:
        table, group, count = _GROUP.unpack(_read(file, _GROUP.size))
        if table == _END:
            file.seek(-_GROUP.size, 1)
            return
        records = []
        for _ in range(count):
            key, record = _RECORD.unpack(_read(file, _RECORD.size))
            records.append((_read(file, key), _read(file, record)))
        yield table, group, records


def digests_of(file: BinaryIO) -> Digests:
    """Read the digests at the end of an increment, behind all of `parts`."""
    _, _, count = _GROUP.unpack(_read(file, _GROUP.size))
    found = (_DIGEST.unpack(_read(file, _DIGEST.size)) for _ in range(count))
    return {(table, group): digest for table, group, digest in found}


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ArchiveDamaged("it ends too early")
    return data


# -- applying


def apply(txn: WriteTxn, table: int, group: int, records: Records) -> None:
    """Put a group of an increment in the place of what a store has there."""
    if table == _PAYLOAD:
        for key, record in records:
            txn.put("payload", key, record)
        return
    name, (low, high) = TABLES[table], _bounds(group)
    old = list(txn.range(name, low, high))
    for number in _payloads((table, group), old) - _payloads((table, group), records):
        txn.delete_prefix("payload", schema.KEY.pack(number))
    if name == "block":
        _index(txn, old, records)
    for key in {key for key, _ in old} - {key for key, _ in records}:
        txn.delete(name, key)
    for key, record in records:
        txn.put(name, key, record)


def _index(txn: WriteTxn, old: Records, new: Records) -> None:
    """Keep the hash index true to the headers."""
    for key, record in old:
        if (place := _place(key, record)) is not None and txn.get("hash", place) == key:
            txn.delete("hash", place)
    for key, record in new:
        if (place := _place(key, record)) is not None and txn.get("hash", place) is None:
            txn.put("hash", place, key)


def _place(key: bytes, record: bytes) -> bytes | None:
    try:
        return Block.unpack(key, record).hash[: schema.INDEX_SIZE]
    except RecordDamaged:
        return None
