"""Sets of the keys that inodes have in the store: a look-up of such a key must find a record (DESIGN.md, "Damage")."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from nnfs.errors import RecordDamaged
from nnfs.store import schema, sealing
from nnfs.store.schema import Inode
from nnfs.store.txn import Snapshot

LIMIT = 4 << 20  # keys kept, 8 bytes each
LEAST = 2  # sets that are kept whatever their size: a rename needs those of two directories
RUN = 1024  # keys of an array, which is changed by moving all that lies behind
_OVERHEAD = 32  # keys that an empty set counts for

Changes = list[tuple[int, bool]]  # key, whether it is there from then on


class KeySet:
    """A sorted set of 64-bit keys (the cookies of a directory, the map nodes of a file), 8 bytes each."""

    def __init__(self, keys: Iterable[int] = ()) -> None:
        ordered = array("Q", sorted(keys))
        self._runs = [ordered[at : at + RUN] for at in range(0, len(ordered), RUN)]  # none is empty
        self._lasts = [run[-1] for run in self._runs]
        self._size = len(ordered)

    def __len__(self) -> int:
        return self._size

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self._lasts, number)
        if at == len(self._runs):
            return False
        run = self._runs[at]
        return run[bisect_left(run, number)] == number

    def change(self, changes: Iterable[tuple[int, bool]]) -> None:
        """Add keys, or remove them."""
        for key, present in changes:
            (self.add if present else self.discard)(key)

    def above(self, number: int, limit: int) -> list[int]:
        """Return at most `limit` keys above one, in order."""
        found: list[int] = []
        at = bisect_right(self._lasts, number)
        while at < len(self._runs) and len(found) < limit:
            start = bisect_right(self._runs[at], number)
            found += self._runs[at][start : start + limit - len(found)]
            at += 1
        return found

    def between(self, first: int, last: int) -> Iterator[int]:
        """Yield the keys from `first` to `last`."""
        place = first - 1
        while found := self.above(place, 1):
            place = found[0]
            if place > last:
                return
            yield place

    def add(self, number: int) -> bool:
        """Add a key. Return whether it is new."""
        if not self._runs:
            self._runs, self._lasts = [array("Q")], [0]
        at = min(bisect_left(self._lasts, number), len(self._runs) - 1)
        run = self._runs[at]
        place = bisect_left(run, number)
        if place < len(run) and run[place] == number:
            return False
        run.insert(place, number)
        self._size += 1
        self._lasts[at] = run[-1]
        if len(run) > 2 * RUN:
            self._runs[at : at + 1] = [run[:RUN], run[RUN:]]
            self._lasts[at : at + 1] = [run[RUN - 1], run[-1]]
        return True

    def discard(self, number: int) -> bool:
        """Remove a key. Return whether it was there."""
        at = bisect_left(self._lasts, number)
        if at == len(self._runs):
            return False
        run = self._runs[at]
        place = bisect_left(run, number)
        if run[place] != number:
            return False
        del run[place]
        self._size -= 1
        if run:
            self._lasts[at] = run[-1]
        else:
            del self._runs[at], self._lasts[at]
        return True


class KeySets:
    """The key sets of the inodes that were used last. `note` keeps them up to date."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._sets: OrderedDict[int, KeySet] = OrderedDict()
        self._size = 0  # of all, in keys
        self._loading: list[tuple[int, Changes]] = []  # what changes in sets while they are being loaded

    def get(self, ino: int) -> KeySet | None:
        """Return the set of an inode, None when it is not loaded."""
        found = self._sets.get(ino)
        if found is not None:
            self._sets.move_to_end(ino)
        return found

    def peek(self, ino: int) -> KeySet | None:
        """Do as `get`, in another thread than the one that changes the sets."""
        return self._sets.get(ino)

    def put(self, ino: int, numbers: KeySet) -> None:
        """Keep an inode's set."""
        self.drop(ino)
        self._sets[ino] = numbers
        self._size += len(numbers) + _OVERHEAD
        while self._size > self._limit and len(self._sets) > LEAST:
            self.drop(next(iter(self._sets)))

    def note(self, ino: int, number: int, present: bool) -> None:
        """Note that an inode has gained or lost a record."""
        numbers = self._sets.get(ino)
        if numbers is not None:
            self._size += numbers.add(number) if present else -numbers.discard(number)
        for loading, changes in self._loading:
            if loading == ino:
                changes.append((number, present))

    def drop(self, ino: int) -> None:
        """Forget an inode's set."""
        numbers = self._sets.pop(ino, None)
        if numbers is not None:
            self._size -= len(numbers) + _OVERHEAD

    @contextmanager
    def loading(self, ino: int, changes: Changes) -> Iterator[None]:
        """Record in `changes` the changes that happen while the body loads a set from a snapshot."""
        entry = (ino, changes)
        self._loading.append(entry)
        try:
            yield
        finally:
            self._loading = [one for one in self._loading if one is not entry]


def load_inode(snapshot: Snapshot, ino: int) -> Inode:
    """Return the record of an inode that must be there. Raises `RecordDamaged`."""
    key = schema.KEY.pack(ino)
    record = snapshot.get("inode", key)
    if record is None:
        raise RecordDamaged("inode", key, "missing")
    return Inode.unpack(ino, record)


def proved_records(snapshot: Snapshot, inode: Inode, table: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, record) of all that an inode has in a table; 1.5 us each.

    Raises `RecordDamaged` at the first record that does not fit its key, or at the end when the records are not those
    that the inode proves.
    """
    key, total = schema.KEY.pack(inode.ino), 0
    for found, record in snapshot.prefix(table, key):
        sealing.unseal(table, found, record)  # a record under another key would keep the sum and lose the name
        total += sealing.checksum_of(record)
        yield found, record
    if total % (1 << 64) != (inode.xattrs if table == "xattr" else inode.proof):
        raise RecordDamaged(table, key, f"inode {inode.ino} proves other {table} records than there are")


def load_keys(snapshot: Snapshot, inode: Inode, table: str) -> KeySet:
    """Return the cookies (table dentry) or nodes (table map) that an inode has. Raises `RecordDamaged`."""
    return KeySet(schema.KEY2.unpack(key)[1] for key, _ in proved_records(snapshot, inode, table))
