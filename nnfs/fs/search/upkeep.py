"""Upkeep of the vectors: which files lack one, making it of bytes that are at hand, storing it in a commit."""

from __future__ import annotations

import contextlib
import stat
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from nnfs.codec.base import FIRST_COLD
from nnfs.errors import NnfsError
from nnfs.store import moments, schema, sealing, vectors
from nnfs.store.blocks import load_block
from nnfs.store.env import Store
from nnfs.store.moments import PAST
from nnfs.store.schema import Block
from nnfs.store.txn import Snapshot, WriteTxn
from nnfs.store.vectors import TABLE, Vector
from nnfs.workers.ladder import decode_hot

SLICE_S = 0.02  # seconds of one slice: it shares the interpreter with the event loop
TOGETHER = 100_000  # vectors that are deleted by one commit at most

_MODE = struct.Struct(">I")  # with which an inode's record begins
_END = schema.KEY.pack(PAST)


class Made(NamedTuple):
    """The vector of a file; "" to delete the one that is stored."""

    ino: int
    block: int
    values: bytes


class ColdFile(NamedTuple):
    """A file that lacks a vector, and whose first block a worker has to decode."""

    ino: int
    number: int
    block: Block
    payload: bytes


@dataclass(slots=True)
class Found:
    """The result of a slice."""

    made: list[Made] = field(default_factory=list)
    cold: list[ColdFile] = field(default_factory=list)
    seconds: float = 0.0


class Committing(Protocol):
    """The part of a commit under way that is needed here."""

    txn: WriteTxn
    epoch: Any  # the one that is committed


def look_at(snapshot: Snapshot, ino: int, found: Found) -> None:
    """Add to `found` what a file lacks: a vector, or one to be deleted. Raises `NnfsError` for what is damaged."""
    key = schema.KEY.pack(ino)
    record = snapshot.hint(TABLE, key) if snapshot.has(TABLE) else None
    number = vectors.first_block(snapshot, ino) if snapshot.hint("inode", key) is not None else 0
    if number and vectors.valid(key, record, number) is not None:
        return
    block = load_block(snapshot, number) if number else None
    if block is None:
        if record is not None:
            found.made.append(Made(ino, 0, b""))
        return
    payload = snapshot.payload(block.payload, block.stored)
    if block.codec >= FIRST_COLD:
        found.cold.append(ColdFile(ino, number, block, payload))
        return
    made = Made(ino, number, _vector(decode_hot(number, block, payload)))
    if made.values or record is not None:
        found.made.append(made)


def _vector(plain: bytes) -> bytes:
    from nnfs.fs.search import content  # late: numpy takes 17 MB of the daemon's memory

    return content.vector(plain)


def look_at_some(store: Store, inos: list[int]) -> Found:
    """Look at files, the last of the list first, and take those that were looked at from it."""
    found, began = Found(), time.monotonic()
    with store.read() as snapshot:
        while inos and time.monotonic() < began + SLICE_S:
            with contextlib.suppress(NnfsError):
                look_at(snapshot, inos.pop(), found)
    found.seconds = time.monotonic() - began
    return found


class Walk:
    """A walk over all files that have changed after a commit, then over all vectors, whose files may be gone."""

    def __init__(self, store: Store, since: int) -> None:
        self._store, self._since = store, since
        self._low, self._table = b"", "inode"

    def next(self) -> Found | None:
        """Return what a slice has found, None at the end. Raises `StoreDamaged` for damaged pages."""
        if not self._table:
            return None
        found, began = Found(), time.monotonic()
        with self._store.read() as snapshot:
            if not snapshot.has(self._table):
                self._table = ""
                return found
            wanted = self._changed if self._table == "inode" else _is_lost
            for count, (key, record) in enumerate(snapshot.range(self._table, self._low, _END)):
                if count % 64 == 0 and time.monotonic() > began + SLICE_S:
                    self._low = key
                    break
                if wanted(snapshot, key, record):
                    with contextlib.suppress(NnfsError):
                        look_at(snapshot, schema.KEY.unpack(key)[0], found)
            else:
                self._low, self._table = b"", TABLE if self._table == "inode" else ""
        found.seconds = time.monotonic() - began
        return found

    def _changed(self, _snapshot: Snapshot, key: bytes, record: bytes) -> bool:
        if len(key) != schema.KEY.size or not sealing.is_sealed("inode", key, record):
            return False
        is_file = stat.S_ISREG(_MODE.unpack_from(record)[0])
        return is_file and moments.commit_of("inode", record) > self._since


def _is_lost(snapshot: Snapshot, key: bytes, _record: bytes) -> bool:
    return len(key) == schema.KEY.size and key != vectors.PROGRESS_KEY and snapshot.hint("inode", key) is None


def check_pages(store: Store, made: Iterable[Made]) -> None:
    """Read what is about to be changed. Raises `StoreDamaged`: a write txn that meets damaged pages would be lost."""
    with store.read() as snapshot:
        if snapshot.has(TABLE):
            for key in (vectors.PROGRESS_KEY, *(schema.KEY.pack(one.ino) for one in made)):
                snapshot.hint(TABLE, key)
            snapshot.last(TABLE)


def size_of(made: Sequence[Made]) -> int:
    """Return the bytes that vectors add to the store, at most."""
    return 4096 + 2 * vectors.RECORD_SIZE * len(made)


def store_vectors(work: Committing, made: Sequence[Made], done: int) -> list[int]:
    """Store vectors within a commit, but for files that have changed since. Return the files that have others now.

    `done` is the commit up to which every file has been looked at, 0 if that is not known.
    """
    txn = work.txn
    txn.create(TABLE)
    items: dict[bytes, bytes] = {}
    for ino, block, values in sorted(made):
        key = schema.KEY.pack(ino)
        if not values:
            txn.delete(TABLE, key)
        elif vectors.first_block(txn, ino) == block:
            items[key] = Vector(block, values, work.epoch.commit).pack(key)
    if done:
        txn.put(TABLE, vectors.PROGRESS_KEY, vectors.pack_progress(done))
    txn.put_many(TABLE, list(items.items()))
    return [one.ino for one in made]


def stored(store: Store) -> int:
    """Return the number of vectors."""
    with store.read() as snapshot:
        if not snapshot.has(TABLE):
            return 0
        return snapshot.entries(TABLE) - (snapshot.hint(TABLE, vectors.PROGRESS_KEY) is not None)


def drop_some(work: Committing, most: int = TOGETHER) -> bool:
    """Delete vectors within a commit. Return whether any are left."""
    if not work.txn.has(TABLE):
        return False
    keys = list(_first_keys(work.txn, most))
    for key in keys:
        work.txn.delete(TABLE, key)
    return bool(work.txn.entries(TABLE))


def _first_keys(txn: Snapshot, most: int) -> Iterator[bytes]:
    for count, (key, _) in enumerate(txn.range(TABLE, b"")):
        if count >= most:
            return
        yield key


def renewable(store: Store, offered: Iterable[tuple[int, int, bytes]]) -> list[Made]:
    """Return vectors of files whose first blocks' beginnings are at hand, as far as they lack one.

    `offered` has inode, block number, and bytes.
    """
    made = []
    with store.read() as snapshot:
        for ino, number, head in offered:
            key = schema.KEY.pack(ino)
            record = snapshot.hint(TABLE, key) if snapshot.has(TABLE) else None
            if vectors.valid(key, record, number) is None and (values := _vector(head)):
                made.append(Made(ino, number, values))
    return made
