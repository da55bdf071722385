"""The daemon of one mount: opens the store, mounts, serves until it is unmounted, commits, closes."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyfuse3
import trio

from nnfs.background.blockrepair import RepairedBlocks
from nnfs.background.interfaces import Parts
from nnfs.background.modelchanges import ModelChanges
from nnfs.background.modelreader import ModelReader
from nnfs.background.service import Service
from nnfs.blockio.cache import BlockCache
from nnfs.blockio.cold import Cold, specs
from nnfs.blockio.commit import Committer
from nnfs.blockio.damagelist import DamageList
from nnfs.blockio.dirty import DirtyData
from nnfs.blockio.fetch import Fetcher
from nnfs.blockio.nursery import Guarded
from nnfs.blockio.patience import Patience
from nnfs.blockio.readahead import ReadAhead
from nnfs.blockio.reader import Reader
from nnfs.blockio.space import Space
from nnfs.blockio.thawcache import Thawed
from nnfs.config import Options, load_options
from nnfs.constants import DATA_FILE, SOCKET_NAME, THAWED_FOLDER
from nnfs.errors import MountError, NnfsError, StoreDamaged
from nnfs.fs.accesstimes import AccessTimes
from nnfs.fs.apply import RELEASE_NODES, apply
from nnfs.fs.filesystem import Filesystem
from nnfs.mount import control, limits, logs, memory, metrics, notify, reloading, rendezvous
from nnfs.mount.answers import Answers
from nnfs.mount.connection import Connection, connect
from nnfs.mount.ending import Ending
from nnfs.mount.ops import Operations
from nnfs.mount.options import MountOptions, atime_of, parse_options, words
from nnfs.mount.searching import Searching
from nnfs.mount.signals import Signals, name_of
from nnfs.mount.snapshots import Snapshots
from nnfs.mount.table import MountInfo, resolve
from nnfs.store import privacy, verify
from nnfs.store.env import Store
from nnfs.workers.pool import Pool

log = logging.getLogger(__name__)

SWITCH_INTERVAL = 0.0005  # seconds that a thread may keep the GIL from the loop: Python's 5 ms shows in requests
VERIFY_MAX = 64 << 20  # bytes of a data file that is verified page by page after an unclean stop; see `_check`
MIN_TASKS = 32  # idle ones kept: starting and ending tasks all the time shows in profiles
READ_AHEAD_KB = 1024  # requests of up to 1 MiB in place of 128 KiB: sequential reads x 1.5
MAX_DIRTY_PAGES = 32 << 20  # bytes of writes that the kernel has in flight
LAST_COMMIT = 300.0  # seconds that a service manager is asked for at the end
GIVE_BACK_EVERY = 2.0  # seconds between looks for memory to give back, where it is short
MAX_TASKS = 4000  # requests in flight; the kernel allows 1,024 background ones, and as many processes as wait


def run(store_path: Path, mountpoint: Path, options: list[str], ready: Callable[[], None]) -> int:
    """Serve a store on a mount point until it is unmounted.

    Return the exit code. Raises `NnfsError` when the mount cannot be made.
    """
    os.umask(privacy.UMASK)
    mount_options = parse_options(options, fsname=os.fspath(store_path))
    given = load_options(store_path, mount_options.own, words(), resolve=resolve)
    own = memory.within(given)
    memory.tell(given, own)
    if mount_options.ignored:
        log.warning("options that mean nothing to nnfs are ignored: %s", ", ".join(mount_options.ignored))
    limits.lift()
    sys.setswitchinterval(SWITCH_INTERVAL)
    limits.keep_buffers(own.memory)
    store = open_store(store_path, read_only=mount_options.read_only)
    try:
        daemon = Daemon(store, mountpoint, mount_options, own, ready)
        trio.run(daemon.main)
        return daemon.exit_code
    finally:
        store.close()


def open_store(path: Path, *, read_only: bool = False) -> Store:
    """Open a store. Check it when it was not closed cleanly, and close it to other users."""
    unclean_file = path / DATA_FILE
    store = Store.open(path, readonly=read_only)
    try:
        _check(store, unclean_file, read_only=read_only)
        if not read_only:
            _close_up(path)
    except BaseException:
        store.close()
        raise
    return store


def _close_up(path: Path) -> None:
    """Close a store to other users if an earlier version, or a user, has left it open."""
    closed, left = privacy.close_up(path)
    if closed:
        log.warning("closed to other users, who could read what is stored: %s", ", ".join(closed))
    if left:
        log.warning("%s", "; ".join(left))


def _check(store: Store, data_file: Path, *, read_only: bool) -> None:
    """Check LMDB's own pages after an unclean stop, if that takes seconds; fsck does it for any size."""
    for problem in store.problems:
        log.warning("%s: the other copy is used; nnfs fsck --repair renews it", problem)
    if store.is_limited:
        log.warning(
            "address space or file sizes are limited (ulimit -v, -f): the store can grow to %d MiB in this mount",
            store.map_size >> 20,
        )
    if store.state.clean_commit == store.state.commit:
        return
    log.info("%s was not cleanly unmounted: nothing is lost that was acknowledged", store.path)
    if data_file.stat().st_size <= VERIFY_MAX:
        problems = verify.page_damage(data_file)
        if problems and read_only:
            log.error("%s: damaged pages (%s); what can be read is read", store.path, problems[0])
        elif problems:
            raise StoreDamaged(f"{store.path}: damaged pages after an unclean stop ({problems[0]}); run nnfs fsck")


class Daemon:
    """The parts of a running mount."""

    def __init__(
        self, store: Store, mountpoint: Path, mount_options: MountOptions, own: Options, ready: Callable[[], None]
    ) -> None:
        self.store, self.mountpoint, self.ready = store, mountpoint, ready
        self.started = time.time()
        self.exit_code = 0
        self.own = own
        self.words = dict(mount_options.own)  # those of -o and of `nnfs set`: they precede the configuration
        self.data = DirtyData(store.superblock.chunk_size)
        self.fs = Filesystem(store, on_release=self.data.drop)
        self.read_only = read_only = mount_options.read_only or store.read_only
        models, self.repaired = ModelReader(store), RepairedBlocks(read_only=read_only)
        self.pool = Pool(specs(own), models.find)
        self.cold = Cold(self.pool, models.fingerprint, own.read_timeout, self.repaired.put)
        self.thawed = Thawed(store.place.here / THAWED_FOLDER, own.thawed if store.writable else 0)
        fetcher = Fetcher(
            store, BlockCache(own.cache), DamageList(), Patience(own.read_timeout), self.cold, self.thawed
        )  # fmt: skip
        self.reader = Reader(self.fs, self.data, fetcher, ReadAhead(store, self.fs, fetcher))
        self.space = Space(store.place.here, own.dirty, read_only=read_only)
        self.space.follow(store)
        self.committer = Committer(store, self.fs, self.data, self.reader, self.space, self._apply)
        changes = ModelChanges(store, models, self.committer, self.cold)
        if read_only:
            self.fs.active.release.clear()  # orphans are for a mount that may write
        self.times = AccessTimes(self.fs, mount_options.atime, own.read_age)
        self.ops = Operations(self.fs, self.data, self.reader, self.committer, self.times, read_only=read_only)
        self.committer.on_commit = self.ops.meter.committed
        self.mount_options = mount_options
        self.connection: Connection | None = None
        parts = Parts(store, self.committer, self.reader, self.cold, read_only)
        self.background = Service(
            parts, self.fs, changes, own, changed=self._note_stored, last_read=self.times.last_read
        )  # fmt: skip
        self.fs.on_commit = self.background.indexer.note
        self.searching = Searching(store, self.committer, self.background.indexer)
        self.answers = Answers(self)
        self.snapshots = Snapshots(store, self.fs, self.committer, read_only=read_only)
        self._stored_changed: set[int] = set()
        self._tell = trio.Event()
        self._serving = trio.CancelScope()

    def _note_stored(self, inodes: list[int]) -> None:
        """Invalidate the kernel's attributes of files that occupy fewer bytes now, where it knows them."""
        self._stored_changed.update(ino for ino in inodes if ino in self.fs.lookups)
        self._tell.set()

    async def _scan_thawed(self) -> None:
        try:
            await trio.to_thread.run_sync(self.thawed.scan)
        except Exception:
            log.exception("copies of thawed blocks are not found again")

    async def _tell_kernel(self) -> None:
        while True:
            await self._tell.wait()
            self._tell = trio.Event()
            inodes, self._stored_changed = self._stored_changed, set()
            for ino in inodes:
                try:
                    await trio.to_thread.run_sync(functools.partial(pyfuse3.invalidate_inode, ino, attr_only=True))
                except Exception as error:  # noqa: BLE001 - an old st_blocks for a while, no more
                    log.debug("inode %d: %s", ino, error)  # forgotten meanwhile, most likely

    def _apply(self, epoch: Any, changes: Any, now: int, room: int, amendments: Any) -> Any:
        nodes, budget = self.fs.nodes, self.space.release_nodes(RELEASE_NODES)
        return apply(self.store, epoch, changes, now, room, amendments, self.reader.damaged, nodes, budget)

    async def main(self) -> None:
        """Mount, serve, unmount, commit. Raises the reason why there is nothing to serve."""
        # Before there is a mount that a signal could leave behind, until nothing is left to lose.
        with Signals(self.answers.status_now, logs.dump_descriptor()) as signals:
            await self._main(signals)

    async def _main(self, signals: Signals) -> None:
        with self._metrics():
            await self._mounted(signals)

    @contextlib.contextmanager
    def _metrics(self) -> Iterator[None]:
        """Serve metrics over HTTP meanwhile, if that is wanted. Raises `MountError`."""
        if self.own.metrics is None:
            yield
            return
        token = trio.lowlevel.current_trio_token()
        close = metrics.serve(self.own.metrics, functools.partial(self.answers.figures_from_thread, token))
        try:
            yield
        finally:
            close()

    async def _mounted(self, signals: Signals) -> None:
        self.connection = connect(self.ops, os.fspath(self.mountpoint), self.mount_options)
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                try:
                    await self._start(nursery, Guarded(nursery), signals)
                    await self._serve_and_save()
                except Exception as error:  # noqa: BLE001 - raised below: a nursery would wrap it
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            self.connection.close()
            self.fs.close()
            await trio.to_thread.run_sync(self.pool.close)
        if failure is not None:
            try:
                raise failure
            finally:
                del failure
        log.info("unmounted %s", self.mountpoint)

    async def _start(self, nursery: trio.Nursery, guarded: Guarded, signals: Signals) -> None:
        """Start the tasks that go on until the last commit is done. Tasks in `nursery` guard themselves."""
        assert self.connection is not None
        await self.connection.handshake()
        self.ops.quotas.may_bypass = self.connection.may_bypass_cache
        self.connection.tune(read_ahead_kb=READ_AHEAD_KB, max_bytes=MAX_DIRTY_PAGES)
        self.reader.start(guarded)
        if self.store.writable:
            guarded.start_soon(self._scan_thawed)
        if not self.read_only:
            guarded.start_soon(self.committer.run, guarded)
            guarded.start_soon(self._tell_kernel)
            guarded.start_soon(self.repaired.run, self.committer)
            guarded.start_soon(self.snapshots.run)
            guarded.start_soon(self.ops.quotas.run)
        guarded.start_soon(self.background.run)
        if self.own.is_short_of_memory:
            guarded.start_soon(self._give_back_memory)
        guarded.start_soon(self.background.indexer.run)
        parts = self.background, self.answers, self.snapshots, self.searching, self.ops.quotas
        handlers = {name: handler for part in parts for name, handler in part.handlers.items()}
        found = rendezvous.address(self.connection.mount.device, self.connection.mount.source)
        socket_path = self.store.place.here / SOCKET_NAME if self.store.writable else None
        room = self.space.lend_a_name
        await nursery.start(functools.partial(control.serve, socket_path, handlers, address=found, make_room=room))
        ending = Ending(self.connection, self.committer.sync, self._serving.cancel, self._remounted)
        nursery.start_soon(self._on_signals, signals, ending, guarded)
        guarded.start_soon(ending.watch)
        if notify.watchdog_interval() is not None:
            guarded.start_soon(self._watchdog)

    async def _serve_and_save(self) -> None:
        """Serve until unmounted. Then, also after an error, save the changes that are in memory."""
        try:
            await self._serve()
        except Exception:
            # The connection was aborted, or there is a bug below the handlers.
            log.exception("requests are not served any more; unmounting")
            self.exit_code = MountError.exit_code
        notify.stopping("writing what is left")
        self.background.stop()
        await self._finish()

    async def _serve(self) -> None:
        assert self.connection is not None
        gc.freeze()  # objects of the start-up stay: collections need not look at them again
        gc.set_threshold(50_000, 20, 50)  # requests leave no cycles behind but for errors
        with self._serving:
            async with trio.open_nursery() as serving:
                serving.start_soon(self.connection.serve, MIN_TASKS, MAX_TASKS)
                log.info("mounted %s on %s", self.store.path, self.mountpoint)
                self.ready()

    async def _on_signals(self, signals: Signals, ending: Ending, guarded: Guarded) -> None:
        async for number in signals.received:
            if number == signal.SIGHUP:
                guarded.start_soon(self._reload)
            elif number != signal.SIGABRT or notify.watchdog_interval():  # whose owner kills what does not end now
                guarded.start_soon(ending.ask, name_of(number))

    async def _reload(self) -> None:
        """Open the log again, and take over the options that may change while mounted."""
        notify.reloading()
        try:
            await trio.to_thread.run_sync(reloading.reopen_log, self.store.path, self._mountpoints())
            await reloading.reload(self)
        finally:
            notify.ready(f"{self.store.path} mounted on {self.mountpoint}")

    def _mountpoints(self) -> list[str]:
        return [mount.mountpoint for mount in self.connection.mounted()] if self.connection is not None else []

    def _remounted(self, mount: MountInfo) -> None:
        """Follow `mount -o remount`: FUSE leaves access times to us, and the kernel does not tell."""
        atime = atime_of(mount.options)
        if atime != self.times.option:
            log.info("remounted with %s", atime)
            self.times.option = atime

    async def _watchdog(self) -> None:
        pause = notify.watchdog_interval() or 1.0
        while True:
            notify.watchdog()
            # A loop that stands still is told of in the log before the service manager kills it.
            faulthandler.dump_traceback_later(1.8 * pause, file=logs.dump_descriptor())
            await trio.sleep(pause)

    async def _give_back_memory(self) -> None:
        """Give memory back that requests and commits have freed, when there are none."""
        seen = 0
        while True:
            await trio.sleep(GIVE_BACK_EVERY)
            if self.committer.commits != seen and not self.data.size:
                seen = self.committer.commits
                await trio.to_thread.run_sync(limits.give_back)

    async def _finish(self) -> None:
        """Make the last commits, and mark the store as closed cleanly."""
        if self.read_only:
            return
        notify.extend_timeout(LAST_COMMIT)
        with trio.CancelScope(shield=True):
            try:
                await self.committer.finish()
            except NnfsError as error:
                log.critical("the last commit failed, what was not synced is lost: %s", error)
                self.exit_code = error.exit_code
            except Exception:
                log.exception("the last commit failed by a bug, what was not synced is lost")
                self.exit_code = NnfsError.exit_code
