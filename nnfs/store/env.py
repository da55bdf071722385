"""The LMDB environment of a store: create, open, lock, commit, give space back.

Engine errors leave it as errors of `nnfs.errors`. One write txn at a time, begun and ended in one thread. Commits are
durable (LMDB's defaults: data pages, fdatasync, meta page through an O_DSYNC descriptor): simulated power cuts broke
every other setting (19 of 40 with metasync=False).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from nnfs import errors
from nnfs.constants import DATA_FILE, DRAFT_FOLDER, RESERVE_FILE
from nnfs.store import (
    btrfs,
    claims,
    freepages,
    locktable,
    mapsize,
    moments,
    privacy,
    quotas,
    reserve,
    room,
    schema,
    sealing,
    whereabouts,
)
from nnfs.store.schema import Inode, State, Superblock
from nnfs.store.txn import Snapshot, WriteTxn, load_twice, not_opened, open_tables, translate

LET_GO = 4  # tries of a commit that finds no room: the last of them may have all that is held
IGNORED_IN_EMPTY = {"lost+found", DRAFT_FOLDER}  # of a freshly made ext4; of a creation that was cut short


class Store:
    """An open store, locked against every other process. Use `Store.open` or `Store.create`."""

    def __init__(
        self, path: Path, lock: int, locks: locktable.LockTable | None, env: lmdb.Environment,
        tables: dict[str, Any],
    ) -> None:  # fmt: skip
        self.path = path  # at the time of opening: see `place`
        self.writable = locks is not None
        self._lock = lock
        self.place = whereabouts.Whereabouts(path, lock)
        self._locks = locks
        self._before: list[lmdb.Environment] = []  # environments that can only be read
        self._env = env
        self._current = env, tables  # for other threads, which must not see one of them changed
        self._tables = tables
        self.superblock = Superblock(b"", 0, 0, 0)
        self.state = State()
        self.moments: tuple[moments.Moment, ...] = ()  # all snapshots as of the last commit, oldest first
        self.moments_lost = ""  # why not all of them are known
        self.reserve: reserve.Reserve | None = None  # lent to commits
        self.claims = claims.Claims()
        self.write_cost = claims.Cost(0, 0)  # of the last commit
        self._last_txn = int(env.info()["last_txnid"])
        self._punched: dict[int, int] = {}  # freed pages that have been given back
        self.problems: list[str] = []  # of the copies of superblock and state, found at opening

    @classmethod
    def create(cls, path: Path, chunk_size: int = schema.DEFAULT_CHUNK_SIZE) -> Store:
        """Make an empty store in a new or empty directory and open it.

        Raises `UsageError` for a bad chunk size, `NotAStore` when the directory holds something, `StoreBusy`.
        """
        if not schema.MIN_CHUNK_SIZE <= chunk_size <= schema.MAX_CHUNK_SIZE or chunk_size & (chunk_size - 1):
            raise errors.UsageError(f"chunk size {chunk_size}: must be a power of two from 16384 to 1048576")
        with contextlib.suppress(FileExistsError):
            path.mkdir(privacy.FOLDER)
        if not is_empty(path):
            raise errors.NotAStore(f"{path} is not empty and holds no nnfs store: choose an empty directory")
        lock = lock_directory(path)
        try:
            privacy.close_up(path)
            cls._create_beside(path, lock, chunk_size)
        finally:
            os.close(lock)
        return cls.open(path)

    @classmethod
    def _create_beside(cls, path: Path, lock: int, chunk_size: int) -> None:
        """Make the data file in a directory of its own and move it when it is complete: no half-made store is left."""
        draft = path / DRAFT_FOLDER
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(privacy.FOLDER)
        btrfs.overwrite_in_place(draft)
        store = cls._open_env(draft, os.dup(lock), create=True)
        try:
            now = time.time_ns()
            seed = int.from_bytes(os.urandom(8), "big")
            root = Inode(schema.ROOT_INO, 0o040755, os.geteuid(), os.getegid(), now)  # theirs who made it
            root.nlink, root.aux = 2, schema.ROOT_INO
            with store.write() as txn:
                txn.put_superblock(Superblock(uuid.uuid4().bytes, chunk_size, now, seed))
                txn.put("inode", schema.inode_key(root.ino), root.pack())
                txn.put_state(State(inodes=1))
        finally:
            store.close()
        os.rename(draft / DATA_FILE, path / DATA_FILE)
        os.fsync(lock)
        shutil.rmtree(draft)

    @classmethod
    def open(cls, path: Path, *, readonly: bool = False) -> Store:
        """Open an existing store. With `readonly` nothing is written, no lock file either: the medium may be read-only.

        Raises `NotAStore`, `StoreBusy`, `StoreTooNew`, `StoreDamaged`, and `StoreError` for a store that cannot be
        written.
        """
        data = path / DATA_FILE
        if not path.is_dir():
            raise errors.NotAStore(f"{path} is not a directory")
        if not data.exists():
            raise errors.NotAStore(
                f"{path} holds no nnfs store (no {DATA_FILE}); nnfs mkfs makes one in an empty directory"
            )
        lock = lock_directory(path)
        try:
            freepages.check_data_file(data)
            if not readonly:
                whereabouts.check_writable(path)
            store = cls._open_env(path, lock, create=False, readonly=readonly)
            store._load()
        except BaseException:
            os.close(lock)
            raise
        return store

    @classmethod
    def _open_env(cls, path: Path, lock: int, *, create: bool, readonly: bool = False) -> Store:
        locks = None if readonly else locktable.LockTable()
        try:
            with contextlib.nullcontext(path) if locks is None else locks.beside(path, path / DATA_FILE) as folder:
                env = _mapped(path, folder, create=create, readonly=readonly)
            tables = open_tables(env, create=create)
        except BaseException as error:
            if locks is not None:
                locks.close()
            if isinstance(error, lmdb.Error):
                raise not_opened(path, error) from error
            raise
        return cls(path, lock, locks, env, tables)

    def _load(self) -> None:
        with self.read() as snapshot:
            self.superblock, wrong = load_twice(snapshot, schema.SUPER_KEY, Superblock.unpack)
            self.state, more = load_twice(snapshot, schema.STATE_KEY, State.unpack)
            try:
                self.moments = moments.load(snapshot)
            except errors.StoreDamaged as error:  # what is overwritten could not be kept
                self.moments_lost = str(error)
        self.problems = wrong + more
        if self.superblock.version > schema.FORMAT_VERSION or self.superblock.incompat:
            raise errors.StoreTooNew(
                f"{self.path}: format {self.superblock.version}, features {self.superblock.incompat:#x}: "
                f"this nnfs knows format {schema.FORMAT_VERSION} without features; use a newer nnfs"
            )

    @property
    def read_only(self) -> bool:
        """Whether the store may only be read: it has unknown features, or a snapshot's record is lost."""
        return bool(self.superblock.ro_compat & ~(moments.RO_SNAPSHOTS | quotas.RO_QUOTAS) or self.moments_lost)

    def read(self) -> Snapshot:
        """Begin a read txn. Close it soon: it keeps pages from being used again."""
        try:
            env, tables = self._current
            return Snapshot(env.begin(), tables)
        except lmdb.Error as error:
            raise translate(error) from error

    @contextmanager
    def write(self) -> Iterator[WriteTxn]:
        """Begin the write txn: durable at the end of the body, aborted when the body raises.

        Raises `OutOfSpace`, and `WriteFailed` when the data file could not be written though there is room; nothing has
        changed then, and the caller may try again. Raises `StoreDamaged` when another program has written to it.
        """
        self.place.check_own(self._last_txn)
        try:
            txn = WriteTxn(self._env.begin(write=True), self._tables, self._env)
        except lmdb.Error as error:
            raise translate(error) from error
        try:
            yield txn
            self.write_cost = txn.cost(self._env.info()["last_pgno"])
        except BaseException:
            txn.close()
            raise
        self._write(txn)
        self._tables.update(txn.created)

    def _write(self, txn: WriteTxn) -> None:
        """Commit a txn, with the room that the reserve lends."""
        if self.reserve is None or not self.reserve.works:
            self._commit(txn)
            return
        self._lend(self.reserve)
        try:
            self._commit(txn)
        except errors.OutOfSpace:
            self.reserve.failures += 1
            raise
        else:
            self.reserve.failures = 0
        finally:
            self.reserve.take_back()

    def _lend(self, lender: reserve.Reserve) -> None:
        """Provide room for the commit that is about to be written, as far as the reserve goes.

        The first try claims the places where LMDB will most likely write; if that was wrong, the next claims all it
        can. The last try gives the whole reserve back, which works unless another program fills the disk at that
        moment.
        """
        cost = self.write_cost
        if lender.failures % LET_GO == LET_GO - 1:
            lender.spend(lender.held)
            return
        if not lender.failures and lender.may_rely(cost.total):
            return
        with contextlib.suppress(OSError, errors.NnfsError):  # a damaged list of free pages
            fd = claims.open_data(self.place.data)
            try:
                free_db, oldest = freepages.FreeDb(fd), freepages.oldest_reader(self._env)
                wanted = claims.places(free_db, oldest, cost)
                if lender.failures:
                    wanted = claims.all_places(free_db, oldest, 4 * cost.total + lender.held, cost)
                self.claims.claim(fd, free_db.meta.page_size, wanted, lender)
            finally:
                os.close(fd)

    def _commit(self, txn: WriteTxn) -> None:
        """Commit a txn. LMDB reports a full and a broken disk as EIO: ask the filesystem below which it is."""
        number = txn.number()
        try:
            txn.commit()
            self._last_txn = int(self._env.info()["last_txnid"])  # `number`, unless nothing changed
        except lmdb.Error as error:
            code = getattr(error, "code", 0)
            if (code in reserve.NO_ROOM or code == errno.EIO) and self._reopen() >= number:
                self._last_txn = number
                return  # it was the meta page that could not be synced at first
            if code in reserve.NO_ROOM:
                raise reserve.no_room(code) from error
            if code != errno.EIO:
                raise translate(error) from error
            code = reserve.refuses(self.place.here, self.write_cost.total)
            if code:
                raise reserve.no_room(code) from error
            raise errors.WriteFailed(f"the store cannot be written ({error})") from error

    def _reopen(self) -> int:
        """Go on after a meta page that could not be written. Return the number of the last durable txn.

        LMDB writes nothing more with that environment. Open read txns go on with it; new ones use another
        environment, which knows the readers of both.
        """
        assert self._locks is not None
        try:
            self._env.begin(write=True).abort()
        except lmdb.PanicError:
            with self._locks.once_more(), self._locks.beside(self.place.here, self.place.data) as folder:
                env = _mapped(self.place.here, folder, create=False)
            self._before.append(self._env)
            self._env, self._tables = self._current = env, open_tables(env, create=False)
            env.sync(True)
            return int(env.info()["last_txnid"])
        return 0

    def mark_clean(self) -> None:
        """Note that the store is being closed in order."""
        self.state.clean_commit = self.state.commit
        with self.write() as txn:
            txn.put_state(self.state)

    @property
    def map_size(self) -> int:
        """Bytes to which the data file can grow while it is open."""
        return int(self._env.info()["map_size"])

    @property
    def is_limited(self) -> bool:
        """Whether `map_size` is smaller than usual: see `nnfs.store.mapsize`."""
        return self.map_size < mapsize.FULL

    def entries(self, table: str) -> int:
        """Return the number of records in a table."""
        with self.read() as snapshot:
            return snapshot.entries(table)

    def physical_bytes(self) -> int:
        """Return the bytes that the store's files occupy on disk (st_blocks x 512), the reserve excluded."""
        files = (entry for entry in os.scandir(self.place.here) if entry.name != RESERVE_FILE)
        return sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in files)

    def punch(self, keep: int, budget: int) -> int:
        """Give free pages back to the filesystem below. Return the bytes given back.

        `keep` pages stay for the next commits, at most `budget` holes are punched. Only the thread that
        commits may call it, without an open write txn.
        """
        try:
            return freepages.give_back(self._env, self.place.data, keep=keep, budget=budget, seen=self._punched)
        except lmdb.Error as error:
            raise translate(error) from error

    def in_place(self, shortest: int) -> int:
        """Return the bytes of free pages, in runs of `shortest` or more, that commits can write without new blocks."""
        return room.in_place(self._env, self.place.data, shortest)

    def map_left(self, shortest: int) -> int:
        """Return the bytes that commits can write before the map is full: free pages only in runs of `shortest`."""
        return room.map_left(self._env, self.place.data, shortest)

    def unclaim(self, budget: int) -> int:
        """Give back at most `budget` bytes allocated for commits and not used; return how many. Call it as `punch`."""
        if not self.claims:
            return 0
        fd = claims.open_data(self.place.data)
        try:
            return self.claims.give_up(self._env, fd, budget)
        except lmdb.Error as error:
            raise translate(error) from error
        finally:
            os.close(fd)

    def backup(self, descriptor: int) -> None:
        """Write a compact, consistent copy of the data file to an open file."""
        try:
            self._env.copyfd(descriptor, compact=True)
        except lmdb.Error as error:
            raise translate(error) from error

    def close(self) -> None:
        """Close the environment and give up the lock. Further calls do nothing."""
        if self._lock >= 0:
            for env in (self._env, *self._before):
                env.close()
            if self._locks is not None:
                self._locks.close()
            if self.reserve is not None:
                self.reserve.close()
            self.place.close()
            os.close(self._lock)
            self._lock = -1


def _mapped(path: Path, folder: Path, *, create: bool, readonly: bool = False) -> lmdb.Environment:
    """Open the environment in `folder` with as large a map as possible.

    Raises `StoreError` when that is too small for the store.
    """
    for size in mapsize.candidates(path / DATA_FILE, writes=not readonly):
        try:
            # meminit=False: the pages are ours alone.
            return lmdb.open(
                os.fsencode(folder), map_size=size, max_dbs=len(sealing.TABLES), lib_version=schema.ENGINE,
                meminit=False, create=create, mode=privacy.FILE, readonly=readonly, lock=not readonly,
            )  # fmt: skip
        except lmdb.MemoryError:
            continue
        except lmdb.Error as error:
            error.args = tuple(str(arg).replace(os.fspath(folder), os.fspath(path)) for arg in error.args)
            raise
    raise mapsize.too_little(path / DATA_FILE)


def is_empty(path: Path) -> bool:
    """Return whether a directory holds nothing that a user could miss."""
    return all(name in IGNORED_IN_EMPTY for name in os.listdir(path))


def lock_directory(path: Path) -> int:
    """Lock a store's directory until the returned descriptor is closed. Raises `StoreBusy`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise errors.StoreBusy(f"{path} is in use: it is mounted or being checked (see nnfs status)") from error
    return descriptor
