"""The daemon's own answers on its control socket; those of the cold tier are in `background.service`."""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

import nnfs
from nnfs.errors import NnfsError, UsageError
from nnfs.fs import diskusage, extents, report, snapshotlist, treesummary
from nnfs.fs.backup import backup
from nnfs.mount import logs, metrics, reloading
from nnfs.mount.control import Handler
from nnfs.mount.meter import SUM
from nnfs.mount.metrics import Figures

if TYPE_CHECKING:
    from nnfs.mount.daemon import Daemon

log = logging.getLogger(__name__)

USUAL = (errno.ENOENT, errno.ENODATA, errno.ENOSYS)  # answers of requests that nothing is wrong with
DAMAGED_SHOWN = 100  # blocks in a status


class Answers:
    """Answers about one mount. `handlers` are the commands of the control socket."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.handlers: dict[str, Handler] = {
            "df": self._df, "status": self._status, "stat": self._stat, "backup": self._backup, "ping": self._ping,
            "metrics": self._metrics, "du": self._du, "counters": self._counters, "set": self._set,
            "extents": self._extents, "tree": self._tree,
        }  # fmt: skip

    def figures_from_thread(self, token: trio.lowlevel.TrioToken) -> Figures:
        """Return the figures of the mount; for a thread that is not the loop's."""
        status = trio.from_thread.run_sync(self.status_now, trio_token=token)
        return Figures(status, report.df_report(self._daemon.store), self._daemon.ops.meter)

    async def _metrics(self, request: dict[str, Any]) -> dict[str, Any]:
        figures = Figures(
            self.status_now(),
            await trio.to_thread.run_sync(report.df_report, self._daemon.store),
            self._daemon.ops.meter,
        )
        return {"text": await trio.to_thread.run_sync(metrics.exposition, figures)}

    async def _counters(self, _request: dict[str, Any]) -> dict[str, Any]:
        """Return what `nnfs top` makes rates of, and little else: it is asked every second."""
        daemon, meter = self._daemon, self._daemon.ops.meter
        return {
            "uptime": time.time() - daemon.started,
            "nanoseconds": meter.nanoseconds,
            "errors": sum(count for (_, number), count in meter.errors.items() if number not in USUAL),
            "read_bytes": meter.read[SUM],
            "written_bytes": meter.written[SUM],
            "cache_hits": daemon.reader.cache.hits,
            "cache_misses": daemon.reader.cache.misses,
            "decoded_bytes": daemon.cold.decoded,
            "reads_waiting": daemon.reader.waiting,
            "queue": daemon.pool.queue(),
            "dirty_bytes": daemon.data.size,
        }

    async def _set(self, request: dict[str, Any]) -> dict[str, Any]:
        words = {str(name): str(value) for name, value in dict(request["options"]).items()}
        if words:
            await reloading.change(self._daemon, words)
        return {"options": reloading.current(self._daemon)}

    async def _committed(self) -> None:
        try:
            await self._daemon.committer.sync()
        except NnfsError as error:
            log.debug("answering from the last commit: %s", error)

    async def _df(self, request: dict[str, Any]) -> dict[str, Any]:
        await self._committed()
        if not self._daemon.read_only and self._daemon.committer.failure is None:
            await self._daemon.committer.punch()  # space that was freed is not occupied
        answer = await trio.to_thread.run_sync(report.df_report, self._daemon.store)
        codecs = answer["codecs"]
        background = {"gain": self._daemon.background.gain(codecs), "rungs": self._daemon.background.outlook(codecs)}
        return {**answer, "thawed_bytes": self._daemon.thawed.bytes, **background}

    async def _stat(self, request: dict[str, Any]) -> dict[str, Any]:
        await self._committed()
        return await trio.to_thread.run_sync(self._stat_now, int(request["ino"]))

    def _stat_now(self, ino: int) -> dict[str, Any]:
        with self._daemon.store.read() as snapshot:
            return report.stat_report(snapshot, ino)

    async def _du(self, request: dict[str, Any]) -> dict[str, Any]:
        await self._committed()
        return {"directories": await trio.to_thread.run_sync(self._du_now, int(request["ino"]), int(request["depth"]))}

    def _du_now(self, ino: int, depth: int) -> list[dict[str, Any]]:
        with self._daemon.store.read() as snapshot:
            return diskusage.usage(snapshot, ino, depth)

    async def _tree(self, _request: dict[str, Any]) -> dict[str, Any]:
        await self._committed()
        return await trio.to_thread.run_sync(self._tree_now)

    def _tree_now(self) -> dict[str, Any]:
        stored: int = report.df_report(self._daemon.store)["stored_bytes"]
        with self._daemon.store.read() as snapshot:
            return treesummary.tree_summary(snapshot, stored)

    async def _extents(self, request: dict[str, Any]) -> dict[str, Any]:
        ino, first = int(request["ino"]), int(request.get("first", 0))
        if self._daemon.data.has(ino):
            await self._daemon.committer.sync()
        try:
            return await trio.to_thread.run_sync(self._extents_now, ino, first)
        except UsageError:  # the inode itself is not committed yet
            await self._daemon.committer.sync()
            return await trio.to_thread.run_sync(self._extents_now, ino, first)

    def _extents_now(self, ino: int, first: int) -> dict[str, Any]:
        with self._daemon.store.read() as snapshot:
            return extents.extents(snapshot, ino, self._daemon.store.superblock.chunk_size, first)

    async def _backup(self, request: dict[str, Any]) -> dict[str, Any]:
        await self._daemon.committer.save()
        since = Path(request["since"]) if request.get("since") else None
        return await trio.to_thread.run_sync(backup, self._daemon.store, Path(request["file"]), since)

    async def _ping(self, request: dict[str, Any]) -> dict[str, Any]:
        return {}

    async def _status(self, request: dict[str, Any]) -> dict[str, Any]:
        await trio.to_thread.run_sync(self._daemon.reader.damaged.forget_gone, self._daemon.store)
        return self.status_now()

    def status_now(self) -> dict[str, Any]:
        """Return what `nnfs status` shows. Called on the loop, or by a signal's handler."""
        daemon = self._daemon
        failure = daemon.committer.failure
        damaged = list(daemon.reader.damaged.as_dict().items())
        return {
            "pid": os.getpid(),
            "version": nnfs.__version__,
            "log": logs.Place.now,
            "store": os.fspath(daemon.store.place.now()),
            "data_file": daemon.store.place.identity,
            "lost": daemon.store.place.lost(),
            "mountpoint": os.fspath(daemon.mountpoint),
            "uptime": time.time() - daemon.started,
            "read_only": daemon.ops.read_only or (str(failure) if failure else ""),
            "commit": daemon.committer.backlog.durable,
            "commits": daemon.committer.commits,
            "last_commit": daemon.committer.last_commit,
            "dirty_bytes": daemon.data.size,
            "free_bytes": daemon.space.shown(),
            "no_space": daemon.committer.backlog.no_space is not None,
            "inodes": daemon.fs.state.inodes,
            "quotas": len(daemon.fs.quotas.all()),
            "quotas_counting": sum(quota.counting or quota.removing for quota in daemon.fs.quotas.all()),
            "open_handles": daemon.times.usage.handles,
            "known_inodes": len(daemon.fs.lookups),
            "cache_bytes": daemon.reader.cache.bytes,
            "cache_blocks": len(daemon.reader.cache),
            "cache_hits": daemon.reader.cache.hits,
            "cache_misses": daemon.reader.cache.misses,
            "cache_evicts": daemon.reader.cache.evicts,
            "decoded_bytes": daemon.cold.decoded,
            "reads_waiting": daemon.reader.waiting,
            "queue": daemon.pool.queue(),
            "damaged_blocks": len(damaged),
            "damaged": [{"block": number, "why": why} for number, why in damaged[:DAMAGED_SHOWN]],
            "thawed_bytes": daemon.thawed.bytes,
            "thawed_hits": daemon.thawed.hits,
            "thawed_misses": daemon.thawed.misses,
            "thawed_damaged": daemon.thawed.damaged,
            "worker_trouble": daemon.cold.trouble,
            "wrong_decodes": daemon.cold.mismatches,
            "device_errs": daemon.cold.errs(),
            "snapshots": snapshotlist.told(daemon.fs.pasts.moments),
            **daemon.background.status(),
        }
