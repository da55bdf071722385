"""The end of a mount: by a signal or by umount(8), and the wait for processes that still hold the filesystem.

The kernel ends the connection when the last mount and the last open file are gone. Until then requests come, so:

* A process in this or another mount namespace *uses* the filesystem (an open file, its working directory): it is still
  served; after a signal for `USED_S` at most, so that a service manager need not kill a daemon with data to write.
* Another mount namespace (a container, `unshare -m`) *shows* it and no process uses it: it ends after `SHOWN_S`. A copy
  of the mount table that another program happened to make must not keep the store in use.

A second signal ends it at once. Before the connection is cut, the kernel writes back, and everything is committed.
"""

from __future__ import annotations

import logging
import math
import os
import select
from collections.abc import Awaitable, Callable

import trio

from nnfs.errors import NnfsError
from nnfs.mount import holders, notify
from nnfs.mount.connection import Connection
from nnfs.mount.holders import Held
from nnfs.mount.table import MountInfo

log = logging.getLogger(__name__)

SETTLE_S = 1.0  # the kernel says within this that the last user is gone, if it is
SHOWN_S, USED_S = 5.0, 60.0
LOOK_S = 5.0  # between two looks at who holds it
SYNC_S = 60.0  # for the kernel to write back, before the connection is cut all the same


class Ending:
    """Watches whether a filesystem is still mounted, and ends the serving of it."""

    def __init__(
        self, connection: Connection, commit: Callable[[], Awaitable[object]], cut: Callable[[], None],
        changed: Callable[[MountInfo], None],
    ) -> None:  # fmt: skip
        """`cut` ends serving; `changed` is called with the mount's line in the table whenever the table changes."""
        self._connection, self._commit, self._cut, self._changed = connection, commit, cut, changed
        self._asked: float | None = None  # trio's time of the first signal
        self._again = False
        self._news = trio.Event()
        self._unmounting = trio.Lock()

    async def ask(self, name: str) -> None:
        """Begin to unmount because of a signal. At the second signal, end at once."""
        log.info("%s: unmounting", name)
        notify.stopping("unmounting")
        self._again = self._asked is not None
        self._asked = trio.current_time() if self._asked is None else self._asked
        await self._unmount()
        self._news.set()

    async def _unmount(self) -> None:
        async with self._unmounting:
            try:
                await self._connection.unmount()
            except (NnfsError, OSError) as error:
                await self._detach(error)
            except Exception:
                log.exception("a bug in unmounting: umount %s does it", self._connection.mount.mountpoint)

    async def _detach(self, why: Exception) -> None:
        """Detach a busy mount: open files would hold it for ever, and a detached one ends when the last is closed."""
        try:
            await self._connection.unmount(lazy=True)
        except (NnfsError, OSError) as error:
            log.error("not unmounted, tried again when something here is unmounted: %s", error)
        else:
            log.warning("%s: detached, ends when the last file is closed, or in %.0f s", why, USED_S)

    async def watch(self) -> None:
        """Follow the mount table until the mount is gone from it, then end serving."""
        table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        with select.epoll() as changes:
            changes.register(table, select.EPOLLPRI)  # an epoll in trio's: the file itself is always readable
            while mounted := self._connection.mounted():
                self._changed(mounted[-1])
                await trio.lowlevel.wait_readable(changes.fileno())
                changes.poll(0)
                if self._asked is not None:  # what was in the way may be gone
                    await self._unmount()
        os.close(table)
        await trio.sleep(SETTLE_S)
        await self._wait_for_holders()

    async def _wait_for_holders(self) -> None:
        """Wait for the holders of the unmounted filesystem, as long as they may hold it. Usually this is cancelled."""
        since, told = trio.current_time(), ""
        while True:
            held = await trio.to_thread.run_sync(holders.look, self._connection.mount.device)
            end = self._end(held, since)
            if trio.current_time() >= end:
                break
            if str(held) != told:
                told = str(held)
                until = "" if math.isinf(end) else f", for {end - trio.current_time():.0f} s at most"
                log.warning("unmounted here, but %s: served on%s", told, until)
                await self._save()
            self._news = trio.Event()
            with trio.move_on_after(min(LOOK_S, end - trio.current_time())):
                await self._news.wait()
        log.warning("the connection is cut: %s", held)
        with trio.move_on_after(SYNC_S):
            device = self._connection.mount.device
            await trio.to_thread.run_sync(holders.sync, device, held, abandon_on_cancel=True)
        self._cut()

    def _end(self, held: Held, since: float) -> float:
        """Return the time until which holders are served."""
        if self._again:
            return -math.inf
        if held.namespaces and not held.users:
            return since + SHOWN_S
        return math.inf if self._asked is None else self._asked + USED_S

    async def _save(self) -> None:
        try:
            await self._commit()
        except NnfsError as error:
            log.error("not everything is committed: %s", error)
