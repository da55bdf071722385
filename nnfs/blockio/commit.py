"""Group commit: one epoch at a time from memory to disk (DESIGN.md, "Commit")."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import trio

from nnfs.blockio.bases import Bases
from nnfs.blockio.dirty import DirtyData
from nnfs.blockio.encoding import ENCODERS, Changes, Encoding
from nnfs.blockio.guard import Nursery
from nnfs.blockio.interfaces import Metadata
from nnfs.blockio.reader import Reader
from nnfs.blockio.space import PAGE, Space
from nnfs.blockio.threads import run_fairly
from nnfs.constants import DATA_FILE
from nnfs.errors import (
    NnfsError,
    OutOfSpace,
    StoreDamaged,
    StoreGone,
    WriteFailed,
    again,
    kept,
)
from nnfs.store.env import Store

log = logging.getLogger(__name__)

INTERVAL = 5.0  # seconds: what nobody synced is durable after so long
COMMIT_BYTES = 12 << 20  # of dirty chunks begin a commit; LMDB holds about as much again in dirty pages meanwhile
RECORD_BYTES = 1024  # of memory that a changed inode or dentry takes, about
PUNCH_AFTER = 1.0  # seconds without a commit, then free pages go back to the filesystem below
PUNCH_BUDGET = 4096  # holes per turn
KEEP_IDLE, KEEP_BUSY = 64, 8192  # free pages left for the next commits
PUNCH_STEP_BYTES = 1 << 20
PUNCH_STEP = 64  # holes at a time while others could take what they give
TRIES = 4  # of a commit that cannot be written
LAST_TRIES, LAST_PAUSE = 20, 0.5  # of the last commits, which find no room; seconds between them
SPARE = 8  # one of so many free pages is taken to be of no use: those around it may be too few
BUSY_COMMITS = 32  # commits in a row, then free pages are punched without waiting for a pause


Amend = Callable[[Any], None]  # changes the store in a commit's txn, after what was requested
Apply = Callable[[Any, Changes, int, int, Sequence[Amend]], tuple[Any, int]]  # epoch, changes, now, room, amendments

T = TypeVar("T")


class _Amendment(Generic[T]):
    """A change that waits for the next commit, and its result."""

    def __init__(self, change: Callable[[Any], T]) -> None:
        self._change = change
        self.done = trio.Event()
        self.result: list[T] = []
        self.error: Exception | None = None

    def __call__(self, work: Any) -> None:
        try:
            self.result = [self._change(work)]
        except (OutOfSpace, MemoryError):
            raise  # half a change must not be committed
        except Exception as error:  # noqa: BLE001 - its owner's to know; changes fail before they change anything
            self.error = kept(error)


class Committer:
    """Begins commits and lets others wait for them.

    `failure` is the error because of which nothing can be committed any more (anything but a lack of space): the mount
    turns read-only then. `inode_errors` holds what went wrong with single files, until a sync of that file reports it.
    """

    def __init__(
        self, store: Store, meta: Metadata, data: DirtyData, reader: Reader, space: Space, apply: Apply
    ) -> None:
        self.store, self.meta, self.data, self.reader, self.space = store, meta, data, reader, space
        self._apply = apply
        store.reserve = space.reserve
        self.failure: NnfsError | None = None
        self.no_space: OutOfSpace | None = None
        self.inode_errors: dict[int, NnfsError] = {}
        self.commits = 0
        self.durable = meta.active.commit - 1
        self._wanted = self.durable
        self._wake = trio.Event()
        self._changed = trio.Event()
        self._room = 0
        self._commit_thread = trio.CapacityLimiter(1)
        self._unpunched = 0  # commits since free pages were punched
        self._attempts = 0
        self._last = 0.0  # time of the last commit
        self._lock = trio.Lock()  # commits and punching: the write txn is one, and punching must not meet it
        self._room_lock = trio.Lock()
        self._finished = False
        self._amendments: list[_Amendment[Any]] = []
        self.bases = Bases(store, meta, data)
        self.encoding = Encoding(reader, self.bases, meta.inode)

    # -- requests

    async def sync(self) -> None:
        """Return when everything requested so far is durable. Raises why it cannot be."""
        if self.failure is not None:
            raise again(self.failure)
        epoch = self.meta.active
        if not (epoch.empty and self.data.active.empty):
            target = epoch.commit
        elif self.meta.frozen is not None:
            target = self.meta.frozen.commit
        else:
            return
        attempt = self._attempts
        self._wanted = max(self._wanted, target)
        self._wake.set()
        while self.durable < target:
            await self._changed.wait()
            if self.failure is not None:
                raise again(self.failure)
            if self.no_space is not None and self._attempts > attempt:
                raise again(self.no_space)

    async def sync_inode(self, ino: int) -> None:
        """`sync`. Raises what has gone wrong with the file since that was last asked, too."""
        await self.sync()
        error = self.inode_errors.pop(ino, None)
        if error is not None:
            raise again(error)

    async def amend(self, change: Callable[[Any], T], size: int = 0, *, frees: int = 0) -> T:
        """Have `change(work)` run in the commit thread, within the next commit's txn; return its result, durable.

        `size` is how many bytes it adds, `frees` how many it takes away afterwards: what makes the store smaller may
        do so on a full disk, too. Raises `OutOfSpace`, with nothing changed, and whatever `change` raises: it must do
        so before it changes anything.
        """
        if self.failure is not None:
            raise again(self.failure)
        if self._finished:
            raise OutOfSpace("the store is being closed")
        if is_tight := not await self._held(size):
            if not self._bears(size, frees):  # what commits before have freed may not have been given back yet
                await self.settle()
            if not self._bears(size, frees):
                raise self.space.refused()
        amendment = _Amendment(change)
        self._amendments.append(amendment)
        self._want_commit()
        await amendment.done.wait()
        if amendment.error is not None:
            raise again(amendment.error)
        if is_tight and frees:
            await self.settle()
        return amendment.result[0]

    def _bears(self, size: int, frees: int) -> bool:
        return frees >= size and self.space.bears(self.data.size + size)

    async def admit(self, size: int) -> None:
        """Wait until `size` more dirty bytes may be taken in. Raises `OutOfSpace` when they would not fit the disk."""
        if self.failure is not None:
            raise again(self.failure)
        await self.throttle(size)
        if not await self._held(size):
            await self.make_room()
            if not await self._held(size):
                raise self.space.refused()

    async def _held(self, size: int) -> bool:
        """Whether all that is dirty, and `size` bytes and a record more, will find room. Asks for what is missing."""
        while not self.space.fits(self.data.size + size, self._records() + 1):
            if not await trio.to_thread.run_sync(self.space.hold, self.data.size + size, self._records() + 1):
                return self.space.fits(self.data.size + size, self._records() + 1)
            # It holds what was asked for; but others were admitted meanwhile, or it was given back after a commit.
        return True

    def _records(self) -> int:
        """Records that the next commits change, about."""
        epochs = [epoch for epoch in (self.meta.active, self.meta.frozen) if epoch is not None]
        return sum(
            len(epoch.inodes) + len(epoch.dentries) + epoch.xattr_bytes // RECORD_BYTES + 4 * len(epoch.release)
            for epoch in epochs
        )

    def spares(self) -> bool:
        """Whether there is room for a change that nobody asked for, such as a new atime."""
        if not self.space.is_tight:
            return True
        return self.no_space is None and self.space.may_remove(self.data.size, self._records() + 1)

    async def _bounded(self) -> None:
        """On a full disk, wait before a removal while what is not committed is as much as can be copied at once."""
        while self.no_space is None and not self.space.may_remove(self.data.size, self._records() + 1):
            hold = functools.partial(self.space.hold, removing=True)
            await trio.to_thread.run_sync(hold, self.data.size, self._records() + 1)
            if self.space.may_remove(self.data.size, self._records() + 1) or self._nothing():
                return
            self._want_commit()
            await self._changed.wait()
            if self.failure is not None:
                raise again(self.failure)

    async def throttle(self, size: int = 0) -> None:
        """Wait while memory is full of what is not committed: the bound of all that requests leave behind.

        Raises `failure`, and `OutOfSpace` while nothing can be committed for want of it.
        """
        if self.failure is not None:
            raise again(self.failure)
        await self._bounded()
        if self._active_size() + size <= min(COMMIT_BYTES, self.space.dirty_limit // 2):
            return
        self._want_commit()
        while self.data.size + self._metadata_size() + size > self.space.dirty_limit:
            self._raise_trouble()
            if self.data.size + self._metadata_size() == 0:
                return
            self._want_commit()
            await self._changed.wait()

    def _metadata_size(self) -> int:
        epochs = [epoch for epoch in (self.meta.active, self.meta.frozen) if epoch is not None]
        return sum(self._epoch_size(epoch) for epoch in epochs)

    @staticmethod
    def _epoch_size(epoch: Any) -> int:
        size: int = epoch.xattr_bytes + RECORD_BYTES * (len(epoch.inodes) + len(epoch.dentries))
        return size

    def _active_size(self) -> int:
        return self.data.active.size + self._epoch_size(self.meta.active)

    def _want_commit(self) -> None:
        self._wanted = max(self._wanted, self.meta.active.commit)
        self._wake.set()

    def _raise_trouble(self) -> None:
        if self.failure is not None:
            raise again(self.failure)
        if self.no_space is not None:
            raise again(self.no_space)

    async def make_room(self) -> None:
        """Make room for a writer: copies of what was thawed go, and deleted space is given back at once."""
        async with self._room_lock:
            await self._drop_copies()
            self.space.refresh()
            if not (self._unpunched or self.meta.active.release or self.space.may_try()):
                return  # nothing was deleted since the last try
            with contextlib.suppress(OutOfSpace):  # the caller asks `fits` again and finds out
                await self.sync()
                await self.settle()

    async def finish(self) -> None:
        """The last commits, releases included, and the mark that nothing came after them. Raises why they fail."""
        await self._last_syncs()
        await self.settle()
        async with self._lock:
            self._finished = True
            await trio.to_thread.run_sync(self.store.mark_clean)
        self.look_after_store()
        if self.failure is not None:
            raise again(self.failure)
        await trio.to_thread.run_sync(self.space.close)

    async def _last_syncs(self) -> None:
        """Commit all there is. Nobody else will: what finds no room is tried for a while, others may make some."""
        for left in reversed(range(LAST_TRIES)):
            try:
                await self.sync()
                while not self.meta.active.empty:
                    await self.sync()  # a release that did not fit into one commit
            except OutOfSpace:
                if not left:
                    raise
                await self._drop_copies()
                await self._punch(0)
                await trio.sleep(LAST_PAUSE)
            else:
                return

    async def _drop_copies(self) -> None:
        """Copies of what was thawed go: they are the first that a full disk can do without."""
        copies = self.reader.thawed
        if copies is not None and copies.bytes:
            await trio.to_thread.run_sync(copies.clear)

    # -- tasks

    async def run(self, nursery: Nursery) -> None:
        """Commit whenever it is time, until cancelled."""
        for _ in range(ENCODERS):
            nursery.start_soon(self._survive, self.encoding.early)
        await self._survive(self._commit_in_time)

    async def _survive(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task whose bug must not end the mount: everybody is told that nothing can be committed any more."""
        try:
            await task()
        except Exception as bug:
            log.exception("a bug in %s, the mount turns read-only", task.__name__)
            self.failure = StoreDamaged(f"a bug in {task.__name__}: {bug!r}; see the log")
            self._give_up_amendments()
            self._changed.set()
            self._changed = trio.Event()

    async def _commit_in_time(self) -> None:
        while True:
            self._wake = trio.Event()
            if self._wanted <= self.durable or self.failure:
                with trio.move_on_after(PUNCH_AFTER if self._unpunched else INTERVAL):
                    await self._wake.wait()
            dirty = not self._nothing()
            if not dirty:
                self.look_after_store()  # idle: else a commit will
            if self.failure:
                continue
            if not dirty:
                self._wanted = self.durable  # what was to be committed has been, or came to nothing
            if self._wanted > self.durable or (dirty and self._due()):
                await self._commit()
                if self.no_space:
                    await self._pause()
            elif self._unpunched and not self._wake.is_set():
                await self.settle()
            if self._unpunched > BUSY_COMMITS and not self.failure:
                await self._punch(KEEP_BUSY)

    def _due(self) -> bool:
        return time.monotonic() - self._last >= INTERVAL - 0.01

    async def _pause(self) -> None:
        """After a commit that found no space: try again when somebody syncs, or in a second."""
        self._wanted = self.durable
        await self._punch(0)  # what it could write comes back to the reserve
        with trio.move_on_after(1.0):
            await self._wake.wait()

    async def settle(self) -> None:
        """Punch free pages, after an empty commit: what the last one freed still belongs to the previous meta page."""
        await self._commit()  # else the one that is to be empty has the deletions, and their pages stay
        await self._commit(empty=True)
        await self._punch(KEEP_IDLE)

    async def _punch(self, keep: int) -> None:
        async with self._lock:
            if self._finished:
                return
            try:
                await run_fairly(self._give_back, keep, self.no_space is not None, limiter=self._commit_thread)
            except (NnfsError, OSError) as error:
                log.warning("free pages are not given back: %s", error)
        self._unpunched = 0
        self._look_at_space()

    def _give_back(self, keep: int, everything: bool) -> None:
        """Punch free pages. What is kept for removals is held again first: in small steps, before others take it.

        While space is short the pages that the next commits take stay: what is given up and taken again gets less.
        `everything`: they do not, since they turned out to be the wrong ones.
        """
        if self.space.keeps_pages:
            self.space.settle()
            self.space.refill()
            return
        short = self.space.is_tight and not everything
        if short:
            keep = max(keep, 2 * self.store.write_cost.total // PAGE)
        while not self.space.refill(at_once=True):
            if not self.space.helping(self.store.punch, keep, PUNCH_STEP):
                break
        if not (short and self.space.is_low):
            while self.space.helping(self.store.unclaim, PUNCH_STEP_BYTES):
                self.space.take_back()
        self.space.helping(self.store.punch, keep, PUNCH_BUDGET)
        if short:
            self.space.settle()
        self.space.refill()
        if self._nothing():
            self.space.relax()

    def look_after_store(self) -> None:
        """Accept nothing more when the data file has lost its name: it would be written, and end with the mount."""
        lost = self.store.place.lost()
        if not lost or self.failure is not None:
            return
        why = f"{self.store.place.opened / DATA_FILE} {lost} while it was mounted"
        log.critical(
            "%s: nothing is accepted any more. What is stored is lost with the unmount: "
            "before it, save it with nnfs backup, given the mount point and a file elsewhere", why
        )  # fmt: skip
        self.failure = StoreGone(f"{why}: save it with nnfs backup before the unmount")
        self._give_up_amendments()
        self._changed.set()
        self._changed = trio.Event()

    async def save(self) -> None:
        """`sync`, for a backup: what was accepted before a store was found gone goes into the file that is still open.

        Raises why that cannot be done.
        """
        gone = self.failure
        if not isinstance(gone, StoreGone):
            await self.sync()
            return
        await self._commit(rescue=True)
        if self.failure is not gone:
            self._raise_trouble()

    async def _commit(self, *, empty: bool = False, rescue: bool = False) -> None:
        async with self._lock:
            if (self.failure and not rescue) or self._finished or (self._nothing() and not empty):
                self._give_up_amendments()
                return
            epoch, layer = self.meta.freeze(), self.data.freeze()
            amendments, self._amendments = self._amendments, []
            try:
                changes = await self.encoding.changes(layer, epoch.release, self.inode_errors)
                applied, self._room = await self._write(epoch, changes, amendments)
                self._finished_well(epoch.commit, applied)
                self.look_after_store()
            except (OutOfSpace, MemoryError) as error:
                self._keep(epoch.commit, error)
            except ExceptionGroup as group:
                if group.split(MemoryError)[1] is None:
                    self._keep(epoch.commit, MemoryError("while encoding"))
                else:
                    log.exception("commit %d failed by a bug, the mount turns read-only", epoch.commit)
                    self.failure = StoreDamaged(f"a bug in a commit: {group!r}; see the log")
            except NnfsError as error:
                log.error("commit %d failed, the mount turns read-only: %s", epoch.commit, error)
                self.failure = kept(error)
            except Exception as error:
                log.exception("commit %d failed by a bug, the mount turns read-only", epoch.commit)
                self.failure = StoreDamaged(f"a bug in a commit: {error!r}; see the log")
            self._attempts += 1
            self._last = time.monotonic()
            self._settle_amendments(amendments)
            self._give_up_amendments()
            self._changed.set()
            self._changed = trio.Event()

    async def _write(self, epoch: Any, changes: Changes, amendments: Sequence[Amend]) -> tuple[Any, int]:
        """Apply an epoch. A try that found no room is done again with all that is held, one that failed as it is."""
        for left in reversed(range(TRIES)):
            try:
                return await run_fairly(
                    self._apply, epoch, changes, int(time.time()), self._room, amendments, limiter=self._commit_thread
                )
            except OutOfSpace:
                if not left or not self.space.lends:
                    raise
                with contextlib.suppress(NnfsError, OSError):  # what it could write comes back to the reserve
                    await run_fairly(self._give_back, 0, True, limiter=self._commit_thread)
            except WriteFailed as error:
                if not left:
                    raise
                log.warning("commit %d: %s; trying again", epoch.commit, error)
        raise AssertionError("not reached")

    def _nothing(self) -> bool:
        clean = self.meta.active.empty and self.data.active.empty and self.meta.frozen is None
        return clean and not self._amendments

    def _give_up_amendments(self) -> None:
        """Nothing will be committed any more: tell those who wait for it."""
        if self.failure is not None:
            amendments, self._amendments = self._amendments, []
            for amendment in amendments:
                amendment.error = self.failure
                amendment.done.set()

    def _settle_amendments(self, amendments: Sequence[_Amendment[Any]]) -> None:
        """Tell the owners of amendments how the commit went: a failed one is not tried again for them."""
        for amendment in amendments:
            if amendment.error is None and self.durable < self.meta.active.commit - 1:
                amendment.error = self.failure or self.no_space or OutOfSpace("the commit failed")
            amendment.done.set()

    def _keep(self, commit: int, error: Exception) -> None:
        """Note a commit that failed for want of something: its epoch stays, and is tried again."""
        if self.no_space is None:
            log.error("commit %d: %s: kept in memory until there is space", commit, error)
            log.info("up to %d B are to be written, %d B are held", self.store.write_cost.total, self.space.held)
        kept(error)
        self.no_space = error if isinstance(error, OutOfSpace) else OutOfSpace(f"no memory for a commit ({error})")

    def _finished_well(self, commit: int, applied: Any) -> None:
        """What is durable must not be tried again, whatever happens now."""
        try:
            self._finish(commit, applied)
        except (OutOfSpace, MemoryError) as error:
            why = f"commit {commit} is stored, but nothing can follow it ({error!r}): mount again"
            raise StoreDamaged(why) from error

    def _finish(self, commit: int, applied: Any) -> None:
        for number, plain in self.encoding.merged():
            self.reader.cache.put(number, plain)
        self.data.committed()
        self.meta.committed(applied)
        self.no_space = None
        self.durable = commit
        self.commits += 1
        self._unpunched += 1
        for number in applied.healed:
            self.reader.damaged.remove(number)
        for ino, error in applied.failed.items():
            log.error("inode %d: not all of its chunks could be stored: %s", ino, error)
            self.inode_errors[ino] = kept(error)
        if applied.unfinished:
            self._wanted = max(self._wanted, commit + 1)
        self._look_at_space()

    def _look_at_space(self) -> None:
        self.space.tree, self.space.overhead = self.store.write_cost[:2]
        self.space.refresh()
        self.space.in_place = 0
        if self.space.keeps_pages:
            with contextlib.suppress(NnfsError, OSError):
                pages = self.store.superblock.chunk_size // PAGE + 1
                self.space.in_place = self.store.in_place(pages) // SPARE * (SPARE - 1)
