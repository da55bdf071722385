"""Transactions: they read and write the tables, and translate the engine's errors to those of `nnfs.errors`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import lmdb

from nnfs import errors
from nnfs.store import claims, schema, sealing
from nnfs.store.fragments import PAGE, PAGE_HEADER
from nnfs.store.mapsize import MAP_FULL
from nnfs.store.schema import State, Superblock

SLACK = 64 << 10  # bytes of a commit: roots, meta page, and what was counted wrongly


def translate(error: lmdb.Error) -> errors.NnfsError:
    """Return the error of `nnfs.errors` for an error of the engine."""
    if isinstance(error, lmdb.MapFullError):
        return errors.OutOfSpace(f"{MAP_FULL} ({error})")
    if isinstance(error, lmdb.DiskError | lmdb.TxnFullError):
        return errors.OutOfSpace(f"no space left for the store ({error})")
    if isinstance(error, lmdb.MemoryError):
        return errors.OutOfSpace(f"no memory left for a commit ({error})")
    if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.PanicError | lmdb.InvalidError):
        return errors.StoreDamaged(f"LMDB finds damaged pages ({error}); unmount and run nnfs fsck")
    return errors.StoreError(f"LMDB: {error}")


def not_opened(path: Path, error: lmdb.Error) -> errors.NnfsError:
    """Return the error of `nnfs.errors` for an environment that cannot be opened."""
    if isinstance(error, lmdb.NotFoundError):
        return errors.NotAStore(f"{path} is an LMDB environment, but not an nnfs store ({error})")
    if isinstance(error, lmdb.VersionMismatchError | lmdb.IncompatibleError):
        return errors.StoreTooNew(f"{path}: written by another engine ({error})")
    return translate(error)


def open_tables(env: Any, *, create: bool) -> dict[str, Any]:
    """Return the tables of an environment, without those that not every store has and this one lacks."""
    tables: dict[str, Any] = {"main": None}
    for name in sealing.TABLES:
        if name not in sealing.OPTIONAL:
            tables[name] = env.open_db(name.encode(), create=create)
            continue
        with contextlib.suppress(lmdb.NotFoundError):
            tables[name] = env.open_db(name.encode(), create=False)
    return tables


class _Ended:
    """The stand-in for a transaction that has ended: any use raises the engine's error."""

    def __getattr__(self, name: str) -> Any:
        raise lmdb.Error("the transaction has ended")


_ENDED: Any = _Ended()


class Snapshot:
    """A read transaction: every table as one commit left it."""

    def __init__(self, txn: Any, tables: dict[str, Any]) -> None:
        self._txn = txn
        self._tables = tables

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the record, or None. Raises `StoreDamaged`."""
        try:
            value: bytes | None = self._txn.get(key, db=self._tables[table])
            if value is None:
                with self._txn.cursor(self._tables[table]) as cursor:
                    self._seek(cursor, table, key, absent=True)
        except lmdb.Error as error:
            raise translate(error) from error
        return value

    def hint(self, table: str, key: bytes) -> bytes | None:
        """Return a record of a derived table, or None, which proves nothing."""
        try:
            value: bytes | None = self._txn.get(key, db=self._tables[table])
        except lmdb.Error as error:
            raise translate(error) from error
        return value

    @staticmethod
    def _seek(cursor: Any, table: str, low: bytes, *, absent: bool = False) -> bool:
        """Set a cursor on the first key from `low` on. Return False when there is none.

        A damaged branch page leads to a leaf beside the right one, which the engine does not notice. So the neighbours
        must lie on both sides of `low`. Raises `RecordDamaged`.
        """
        found: bool = cursor.set_range(low)
        if found:
            sound = cursor.key() > low if absent else cursor.key() >= low
            if cursor.prev():
                sound = sound and cursor.key() < low
                cursor.next()
            else:
                cursor.first()
        else:
            sound = not cursor.last() or cursor.key() < low
        if not sound:
            raise errors.RecordDamaged(table, low, "the tree leads elsewhere")
        return found

    def range(self, table: str, low: bytes, high: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, record) for low <= key < high in order. The txn must not be changed meanwhile."""
        try:
            with self._txn.cursor(self._tables[table]) as cursor:
                if not self._seek(cursor, table, low):
                    return
                for key, value in cursor:
                    if high is not None and key >= high:
                        return
                    yield key, value
        except lmdb.Error as error:
            raise translate(error) from error

    def prefix(self, table: str, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, record) of all keys that begin with `prefix` (an inode number, say)."""
        return self.range(table, prefix, _successor(prefix))

    def last(self, table: str) -> bytes | None:
        """Return the greatest key of a table, or None."""
        try:
            with self._txn.cursor(self._tables[table]) as cursor:
                return cursor.key() if cursor.last() else None
        except lmdb.Error as error:
            raise translate(error) from error

    def has(self, table: str) -> bool:
        """Return whether the store has one of the tables that not every store has."""
        return table in self._tables

    def some(self, table: str, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return those of many records of a derived table that are there: in one call, without any proof."""
        try:
            with self._txn.cursor(self._tables[table]) as cursor:
                return dict(cursor.getmulti(keys))
        except lmdb.Error as error:
            raise translate(error) from error

    def entries(self, table: str) -> int:
        """Return the number of records in a table."""
        try:
            return int(self._txn.stat(self._tables[table])["entries"])
        except lmdb.Error as error:
            raise translate(error) from error

    def payload(self, number: int, stored: int) -> bytes:
        """Return the stored bytes of payload `number`, its fragments joined; fewer than `stored` if some are lost."""
        prefix, parts, length = schema.KEY.pack(number), [], 0
        try:
            with self._txn.cursor(self._tables["payload"]) as cursor:
                if cursor.set_range(prefix):
                    for key, value in cursor:
                        if key[:8] != prefix:
                            break
                        parts.append(value)
                        length += len(value)
                        if length >= stored:
                            break
        except lmdb.Error as error:
            raise translate(error) from error
        return b"".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the transaction. Further calls do nothing.

        The engine's object goes, too, since it keeps one of LMDB's 126 reader slots until it is freed, and whatever
        holds this object (a traceback, an iterator that was left half-way) would keep that.
        """
        txn, self._txn = self._txn, _ENDED
        if txn is not _ENDED:
            txn.abort()


def _successor(prefix: bytes) -> bytes | None:
    number = int.from_bytes(prefix, "big") + 1
    return number.to_bytes(len(prefix), "big") if number >> 8 * len(prefix) == 0 else None


class WriteTxn(Snapshot):
    """The one write transaction. Reads see what it wrote."""

    def __init__(self, txn: Any, tables: dict[str, Any], env: Any) -> None:
        super().__init__(txn, tables)
        self._env = env
        self.created: dict[str, Any] = {}  # tables that the store has once this txn is durable
        self._changes = 0  # records changed
        self._joined = self._longest = 0  # pages of their own that values have got, and the most of one

    def cost(self, last_page: int) -> claims.Cost:
        """Return the most that a commit now may write. `last_page` is the last page of the last commit.

        A page that LMDB writes is a page of a tree, of a large value, or of the list of free pages, which holds 8 bytes
        for each page that is none of these.
        """
        stats = [self._txn.stat(db) if db is not None else self._txn.stat() for db in self._tables.values()]
        tree = sum(stat["branch_pages"] + stat["leaf_pages"] for stat in stats)
        large = sum(stat["overflow_pages"] for stat in stats)
        free = max(0, last_page - tree - large) + self._changes * 2 + self._joined
        single = min(self._changes * 3, tree)
        return claims.Cost(tree * PAGE, 8 * free + SLACK, single * PAGE, self._joined * PAGE, self._longest * PAGE)

    def create(self, table: str) -> None:
        """Make a table that the store lacks. Other transactions have it after this one."""
        if self.has(table):
            return
        try:
            self.created[table] = self._env.open_db(table.encode(), txn=self._txn, create=True)
        except lmdb.Error as error:
            raise translate(error) from error
        self._tables = self._tables | self.created

    def _note(self, size: int) -> None:
        self._changes += 1
        if size >= PAGE // 2 - 64:
            pages = (size + PAGE_HEADER + PAGE - 1) // PAGE
            self._joined += pages
            self._longest = max(self._longest, pages)

    def put(self, table: str, key: bytes, record: bytes) -> None:
        self._note(len(record))
        try:
            self._txn.put(key, record, db=self._tables[table])
        except lmdb.Error as error:
            raise translate(error) from error

    def put_many(self, table: str, items: Sequence[tuple[bytes, bytes]], fresh: bytes = b"") -> None:
        """Store sorted items. Those behind the last key are appended, which fills pages instead of halving them.

        Keys from `fresh` on are certainly new. Others are never appended: behind a last key that is damaged the same
        record would be there twice.
        """
        if not items:
            return
        last = self.last(table)
        for _, value in items:
            self._note(len(value))
        first_new = len(items)
        while first_new and items[first_new - 1][0] >= fresh and (last is None or items[first_new - 1][0] > last):
            first_new -= 1
        try:
            with self._txn.cursor(self._tables[table]) as cursor:
                cursor.putmulti(items[:first_new])
                cursor.putmulti(items[first_new:], append=True)
        except lmdb.Error as error:
            raise translate(error) from error

    def delete(self, table: str, key: bytes) -> bool:
        """Delete a record; return whether it was there."""
        self._note(0)
        try:
            return bool(self._txn.delete(key, db=self._tables[table]))
        except lmdb.Error as error:
            raise translate(error) from error

    def delete_prefix(self, table: str, prefix: bytes) -> int:
        """Delete all keys that begin with `prefix`; return how many there were."""
        count = 0
        try:
            with self._txn.cursor(self._tables[table]) as cursor:
                found = cursor.set_range(prefix)
                while found and cursor.key().startswith(prefix):
                    found = cursor.delete() and bool(cursor.key())
                    count += 1
                    self._note(0)
        except lmdb.Error as error:
            raise translate(error) from error
        return count

    def put_state(self, state: State) -> None:
        """Store both copies of the state."""
        record = state.pack()
        self.put("meta", schema.STATE_KEY, record)
        self.put("main", schema.STATE_KEY, record)

    def put_superblock(self, superblock: Superblock) -> None:
        """Store both copies of the superblock."""
        record = superblock.pack()
        self.put("meta", schema.SUPER_KEY, record)
        self.put("main", schema.SUPER_KEY, record)

    def commit(self) -> None:
        """Commit the transaction, durably. Raises the engine's own errors, which the caller has to interpret."""
        txn, self._txn = self._txn, _ENDED
        txn.commit()

    def number(self) -> int:
        """Return the engine's number of this transaction."""
        return int(self._txn.id())


def load_twice(snapshot: Snapshot, key: bytes, unpack: Any) -> tuple[Any, list[str]]:
    """Return the first sound copy of a record that is kept twice, and the faults of the others.

    Raises `StoreDamaged` when no copy is sound.
    """
    good: dict[str, bytes] = {}
    problems = []
    for table in ("meta", "main"):
        try:
            record = snapshot.get(table, key)
            if record is None:
                raise errors.RecordDamaged(table, key, "missing")
            unpack(record)
            good[table] = record
        except errors.StoreDamaged as error:
            problems.append(f"copy in {table}: {error}")
    if not good:
        raise errors.StoreDamaged(f"both copies of {key.decode()} are damaged: {'; '.join(problems)}; restore a backup")
    if len(set(good.values())) > 1:
        problems.append(f"copies of {key.decode()} differ")
    return unpack(next(iter(good.values()))), problems
