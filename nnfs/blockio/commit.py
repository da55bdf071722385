"""Group commit: one epoch at a time from memory to disk (DESIGN.md, "Commit")."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import trio

from nnfs.blockio.admission import Admission
from nnfs.blockio.amendments import Amend, Amendment
from nnfs.blockio.backlog import Backlog
from nnfs.blockio.bases import Bases
from nnfs.blockio.dirty import DirtyData
from nnfs.blockio.encoding import ENCODERS, Changes, Encoding
from nnfs.blockio.interfaces import Metadata
from nnfs.blockio.nursery import Nursery
from nnfs.blockio.punching import Puncher
from nnfs.blockio.reader import Reader
from nnfs.blockio.space import Space
from nnfs.blockio.threads import run_fairly
from nnfs.constants import DATA_FILE
from nnfs.errors import NnfsError, OutOfSpace, StoreDamaged, StoreGone, WriteFailed, again, kept
from nnfs.store.env import Store

log = logging.getLogger(__name__)

INTERVAL = 5.0  # seconds, after which changes are durable without a sync
PUNCH_AFTER = 1.0  # seconds without a commit, then free pages go back to the filesystem below
KEEP_IDLE, KEEP_BUSY = 64, 8192  # free pages left for the next commits
TRIES = 4  # of a commit that cannot be written
LAST_TRIES, LAST_PAUSE = 20, 0.5  # of the last commits, which find no room; seconds between them
BUSY_COMMITS = 32  # commits in a row, then free pages are punched without waiting for a pause

Apply = Callable[[Any, Changes, int, int, Sequence[Amend]], tuple[Any, int]]  # epoch, changes, now, room, amendments

T = TypeVar("T")


def _nobody(_taken: int) -> None:
    """Do nothing."""


class Committer:
    """Begins commits and lets others wait for them. `inode_errors` has the errors of files until a sync raises them."""

    def __init__(
        self, store: Store, meta: Metadata, data: DirtyData, reader: Reader, space: Space, apply: Apply
    ) -> None:
        self.store, self.meta, self.data, self.reader, self.space = store, meta, data, reader, space
        self._apply = apply
        store.reserve = space.reserve
        self.backlog = Backlog(meta, data)
        self.admission = Admission(self.backlog, space, self.make_room)
        self.bases = Bases(store, meta, data)
        self.encoding = Encoding(reader, self.bases, meta.inode)
        self.inode_errors: dict[int, NnfsError] = {}
        self.commits = 0
        self.on_commit: Callable[[int], None] = _nobody  # called with the nanoseconds that a commit took
        self.last_commit = time.time()  # or the beginning of the mount
        self._room = 0  # bytes left in the payload table's last page
        self._puncher = Puncher(store, space, self.backlog)
        self._unpunched = 0  # commits since free pages were punched
        self._commit_thread = trio.CapacityLimiter(1)
        self._last = 0.0  # time of the last commit
        self._lock = trio.Lock()  # commits and punching: the write txn is one, and punching must not meet it
        self._room_lock = trio.Lock()
        self._finished = False

    @property
    def failure(self) -> NnfsError | None:
        """The error because of which nothing can be committed any more."""
        return self.backlog.failure

    # -- requests

    async def sync(self) -> None:
        """Return when everything requested so far is durable. Raises the reason why it cannot be."""
        backlog, epoch = self.backlog, self.meta.active
        backlog.raise_failure()
        if not (epoch.empty and self.data.active.empty):
            target = epoch.commit
        elif self.meta.frozen is not None:
            target = self.meta.frozen.commit
        else:
            return
        attempt = backlog.attempts
        backlog.want(target)
        while backlog.durable < target:
            await backlog.commit_ended()
            if backlog.attempts > attempt:
                backlog.raise_trouble()

    async def sync_inode(self, ino: int) -> None:
        """Do as `sync`, and raise also the error that the file has had since the last call."""
        await self.sync()
        error = self.inode_errors.pop(ino, None)
        if error is not None:
            raise again(error)

    async def amend(self, change: Callable[[Any], T], size: int = 0, *, frees: int = 0) -> T:
        """Run `change(work)` in the commit thread, in the next commit's txn; return its result once it is durable.

        It adds `size` bytes and then frees `frees` bytes: a change that makes the store smaller may run on a full disk.
        Raises `OutOfSpace`, with nothing changed, and the errors of `change`, which may raise them only before it
        changes anything.
        """
        self.backlog.raise_failure()
        if self._finished:
            raise OutOfSpace("the store is being closed")
        if is_tight := not await self.admission.hold(size):
            if not self._bears(size, frees):  # space that earlier commits have freed may not be given back yet
                await self.punch()
            if not self._bears(size, frees):
                raise self.space.refused()
        amendment = self.backlog.amendments.add(change)
        self.backlog.want_commit()
        result = await amendment.wait()
        if is_tight and frees:
            await self.punch()
        return result

    def _bears(self, size: int, frees: int) -> bool:
        return frees >= size and self.space.bears(self.data.size + size)

    async def make_room(self) -> None:
        """Make room for a writer: drop copies of thawed blocks, and give deleted space back at once."""
        async with self._room_lock:
            await self._drop_copies()
            self.space.refresh()
            if not (self._unpunched or self.meta.active.release or self.space.may_try()):
                return  # nothing has been deleted since the last try
            with contextlib.suppress(OutOfSpace):  # the caller looks again and finds out
                await self.sync()
                await self.punch()

    async def _drop_copies(self) -> None:
        """Drop copies of thawed blocks: they are the first that a full disk can do without."""
        copies = self.reader.thawed
        if copies is not None and copies.bytes:
            await trio.to_thread.run_sync(copies.clear)

    async def save(self) -> None:
        """Do as `sync`, for a backup. If the data file is gone, commit everything to the file that is still open.

        Raises the reason why that cannot be done.
        """
        gone = self.failure
        if not isinstance(gone, StoreGone):
            await self.sync()
            return
        await self._commit(rescue=True)
        if self.failure is not gone:
            self.backlog.raise_trouble()

    async def finish(self) -> None:
        """Do the last commits, releases included, and mark the store as closed cleanly. Raises why they fail."""
        await self._last_syncs()
        await self.punch()
        async with self._lock:
            self._finished = True
            await trio.to_thread.run_sync(self.store.mark_clean)
        self.look_after_store()
        self.backlog.raise_failure()
        await trio.to_thread.run_sync(self.space.close)

    async def _last_syncs(self) -> None:
        """Commit everything. A commit that finds no room is tried again for a while, since others may make some."""
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

    # -- tasks

    async def run(self, nursery: Nursery) -> None:
        """Commit whenever it is time, until cancelled."""
        for _ in range(ENCODERS):
            nursery.start_soon(self._survive, self.encoding.early)
        await self._survive(self._commit_in_time)

    async def _survive(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task whose bug must not end the mount: nothing more is committed then, and all who wait are told."""
        try:
            await task()
        except Exception as bug:
            log.exception("a bug in %s, the mount turns read-only", task.__name__)
            self.backlog.fail(StoreDamaged(f"a bug in {task.__name__}: {bug!r}; see the log"))

    async def _commit_in_time(self) -> None:
        backlog = self.backlog
        while True:
            backlog.woken = trio.Event()
            if backlog.wanted <= backlog.durable or backlog.failure:
                with trio.move_on_after(PUNCH_AFTER if self._unpunched else INTERVAL):
                    await backlog.woken.wait()
            dirty = not backlog.empty
            if not dirty:
                self.look_after_store()  # idle: else a commit will
            if backlog.failure:
                continue
            if not dirty:
                backlog.wanted = backlog.durable  # everything wanted is committed, or came to nothing
            if backlog.wanted > backlog.durable or (dirty and self._due()):
                await self._commit()
                if backlog.no_space:
                    await self._pause()
            elif self._unpunched and not backlog.woken.is_set():
                await self.punch()
            if self._unpunched > BUSY_COMMITS and not backlog.failure:
                await self._punch(KEEP_BUSY)

    def _due(self) -> bool:
        return time.monotonic() - self._last >= INTERVAL - 0.01

    async def _pause(self) -> None:
        """Wait after a commit that found no space, until somebody syncs or a second has passed."""
        self.backlog.wanted = self.backlog.durable
        await self._punch(0)  # space that it has written to comes back to the reserve
        with trio.move_on_after(1.0):
            await self.backlog.woken.wait()

    def look_after_store(self) -> None:
        """Accept nothing more when the data file has lost its name: its content would be gone after the mount."""
        lost = self.store.place.lost()
        if not lost or self.failure is not None:
            return
        why = f"{self.store.place.opened / DATA_FILE} {lost} while it was mounted"
        log.critical(
            "%s: nothing is accepted any more. Its content is lost with the unmount: "
            "before it, save it with nnfs backup, given the mount point and a file elsewhere", why
        )  # fmt: skip
        self.backlog.fail(StoreGone(f"{why}: save it with nnfs backup before the unmount"))

    # -- free pages

    async def punch(self) -> None:
        """Punch free pages after an empty commit: before that, pages just freed belong to the previous meta page."""
        await self._commit()  # otherwise the commit that should be empty has the deletions, and their pages stay
        await self._commit(empty=True)
        await self._punch(KEEP_IDLE)

    async def _punch(self, keep: int) -> None:
        async with self._lock:
            if self._finished:
                return
            try:
                everything = self.backlog.no_space is not None
                await run_fairly(self._puncher.punch, keep, everything, limiter=self._commit_thread)
            except (NnfsError, OSError) as error:
                log.warning("free pages are not given back: %s", error)
        self._unpunched = 0
        self.space.follow(self.store)

    # -- one commit

    async def _commit(self, *, empty: bool = False, rescue: bool = False) -> None:
        async with self._lock:
            backlog = self.backlog
            if (backlog.failure and not rescue) or self._finished or (backlog.empty and not empty):
                if backlog.failure is not None:
                    backlog.amendments.fail(backlog.failure)
                return
            began = time.monotonic_ns()
            epoch, layer, amendments = self.meta.freeze(), self.data.freeze(), backlog.amendments.take()
            try:
                changes = await self.encoding.changes(layer, epoch.release, self.inode_errors)
                applied, self._room = await self._write(epoch, changes, amendments)
                self._finish(epoch.commit, applied)
                self.on_commit(time.monotonic_ns() - began)
                self.look_after_store()
            except (OutOfSpace, MemoryError) as error:
                self._keep(epoch.commit, error)
            except NnfsError as error:
                log.error("commit %d failed, the mount turns read-only: %s", epoch.commit, error)
                backlog.failure = kept(error)
            except Exception as error:
                if isinstance(error, ExceptionGroup) and error.split(MemoryError)[1] is None:
                    self._keep(epoch.commit, MemoryError("while encoding"))
                else:
                    log.exception("commit %d failed by a bug, the mount turns read-only", epoch.commit)
                    backlog.failure = StoreDamaged(f"a bug in a commit: {error!r}; see the log")
            backlog.attempts += 1
            self._last = time.monotonic()
            self._answer(amendments)
            backlog.end_commit()

    async def _write(self, epoch: Any, changes: Changes, amendments: Sequence[Amend]) -> tuple[Any, int]:
        """Apply an epoch. A try that found no room is repeated with all that is held, another failure as it was."""
        for left in reversed(range(TRIES)):
            try:
                return await run_fairly(
                    self._apply, epoch, changes, int(time.time()), self._room, amendments, limiter=self._commit_thread
                )
            except OutOfSpace:
                if not left or not self.space.lends:
                    raise
                with contextlib.suppress(NnfsError, OSError):  # space that it has written to comes back to the reserve
                    await run_fairly(self._puncher.punch, 0, True, limiter=self._commit_thread)
            except WriteFailed as error:
                if not left:
                    raise
                log.warning("commit %d: %s; trying again", epoch.commit, error)
        raise AssertionError("not reached")

    def _answer(self, amendments: Sequence[Amendment[Any]]) -> None:
        """Tell the owners of amendments the outcome of the commit. Failed amendments are not tried again."""
        error: Exception | None = None
        if self.backlog.durable < self.meta.active.commit - 1:
            error = self.backlog.failure or self.backlog.no_space or OutOfSpace("the commit failed")
        for amendment in amendments:
            amendment.finish(error)

    def _keep(self, commit: int, error: Exception) -> None:
        """Note a commit that failed for lack of something: its epoch is kept, and tried again."""
        if self.backlog.no_space is None:
            log.error("commit %d: %s: kept in memory until there is space", commit, error)
            log.info("up to %d B are to be written, %d B are held", self.store.write_cost.total, self.space.held)
        kept(error)
        no_space = error if isinstance(error, OutOfSpace) else OutOfSpace(f"no memory for a commit ({error})")
        self.backlog.no_space = no_space

    def _finish(self, commit: int, applied: Any) -> None:
        """Drop an epoch that is durable: it must not be tried again, whatever happens now."""
        try:
            self._take_over(commit, applied)
        except (OutOfSpace, MemoryError) as error:
            why = f"commit {commit} is stored, but nothing can follow it ({error!r}): mount again"
            raise StoreDamaged(why) from error

    def _take_over(self, commit: int, applied: Any) -> None:
        """Take over the store as a commit has left it."""
        for number, plain in self.encoding.merged():
            self.reader.cache.put(number, plain)
        self.data.committed()
        self.meta.committed(applied)
        self.backlog.no_space = None
        self.backlog.durable = commit
        self.commits += 1
        self.last_commit = time.time()
        self._unpunched += 1
        for number in applied.repaired:
            self.reader.damaged.remove(number)
        for ino, error in applied.failed.items():
            log.error("inode %d: not all of its chunks could be stored: %s", ino, error)
            self.inode_errors[ino] = kept(error)
        if applied.unfinished:
            self.backlog.wanted = max(self.backlog.wanted, commit + 1)
        self.space.follow(self.store)
