"""The cold tier of a mount: its workers, models and tasks, and what the control socket answers about them."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from nnfs.background.encoder import ColdEncoder
from nnfs.background.history import History
from nnfs.background.indexing import Indexer
from nnfs.background.interfaces import Parts
from nnfs.background.modelchanges import ModelChanges
from nnfs.background.passes import Passes
from nnfs.background.recompression import Recompression
from nnfs.background.scrub import Scrub
from nnfs.background.tasks import BESIDE, UNENDED, Task, Tasks
from nnfs.background.warming import Warming
from nnfs.blockio.cold import READ
from nnfs.codec import NAMES
from nnfs.codec.base import RUNGS
from nnfs.config import Options
from nnfs.constants import HISTORY_FILE
from nnfs.errors import NnfsError, UsageError
from nnfs.fs import policy
from nnfs.fs.filesystem import Filesystem
from nnfs.fs.xattrs import Xattrs
from nnfs.store.moments import PAST

log = logging.getLogger(__name__)

FIRST_PASS, PASS_EVERY = 5.0, 60.0  # seconds until the first background pass, and between two, at least
BUSY_SHARE = 0.1  # share of the loop's time above which background work waits

WORKER_FIELDS = (
    "name", "device", "state", "pid", "starts", "deaths", "answered", "failed", "outstanding", "last_error",
)  # fmt: skip

Answer = dict[str, Any]


class Service:
    """Runs tasks and background passes. `handlers` are the control socket's commands."""

    def __init__(
        self, parts: Parts, fs: Filesystem, models: ModelChanges, options: Options,
        *, changed: Callable[[list[int]], None], last_read: Callable[[int], int],
    ) -> None:  # fmt: skip
        self._parts, self._fs, self._commits, self._pool = parts, fs, parts.commits, parts.cold.pool
        self._models, self._read_only = models, parts.read_only
        self._encoder = ColdEncoder(parts.cold, models.known, options, self._busy)
        self._recompression = Recompression(
            parts, models, self._encoder, options, busy=self._busy, changed=changed, last_read=last_read
        )
        self._passes = Passes(parts, self._recompression, self._encoder, options)
        self._scrub = Scrub(parts, self._busy)
        self._warming = Warming(parts, functools.partial(self._encoder.costs, READ))
        background = self._background if options.compact and not parts.read_only else None
        history = History(parts.store.place.here / HISTORY_FILE, read_only=parts.read_only)
        self.tasks = Tasks(background, PASS_EVERY, FIRST_PASS, history)
        self.indexer = Indexer(parts, options, self.tasks, self._busy)
        self._recompression.chunks.on_plain = self.indexer.offer
        self._scope = trio.CancelScope()
        self._looked = (time.monotonic(), time.thread_time())
        self._was_busy = False
        self.handlers: dict[str, Callable[[Answer], Any]] = {
            "compact": self._compact, "thaw": self._thaw, "scrub": self._scrub_task, "job": self._task,
            "jobs": self._tasks, "cancel": self._cancel, "pause": self._pause, "resume": self._resume,
            "warm": self._warm, "models": self._list_models, "model_add": self._model_add,
            "model_retire": self._model_retire,
        }  # fmt: skip

    def set_options(self, options: Options) -> None:
        """Take over other options: policy, ages, `thaw_limit`."""
        self._encoder.set_options(options)
        self._passes.set_options(options)
        self.indexer.set_options(options)

    async def run(self) -> None:
        """Do tasks until stopped. A bug here ends the tasks of the cold tier, not the mount."""
        with self._scope:
            try:
                await self._verify_models()
                await self.tasks.serve()
            except Exception:
                log.exception("a bug: no tasks are done any more until the next mount")

    def stop(self) -> None:
        """Stop before the store is closed. Work under way is left unfinished."""
        self._scope.cancel()
        self.indexer.stop()

    async def _verify_models(self) -> None:
        try:
            if not self._read_only:
                await self._models.verify()
            await self._models.bring_back(read_only=self._read_only)
        except NnfsError as error:
            log.error("not all models were verified: %s", error)

    def _busy(self) -> bool:
        """Return whether somebody uses the mount: reads are under way, or requests keep the loop at work."""
        now, work = time.monotonic(), time.thread_time()
        then, before = self._looked
        if now - then >= 0.2:
            self._looked = now, work
            self._was_busy = work - before > BUSY_SHARE * (now - then)
        return self._was_busy or self._parts.reads.waiting > 0

    async def _background(self, task: Task) -> None:
        if self._commits.failure is not None:
            return
        await self._passes.background(task)

    # -- commands

    def _writable(self) -> None:
        if self._read_only or self._commits.failure is not None:
            raise UsageError("the mount is read-only: nothing can be stored in another form")

    def _add(self, kind: str, work: Callable[[Task], Any], request: Answer, *about: int) -> Answer:
        task = self.tasks.add(kind, work, about, str(request.get("path", "")))
        return {"job": task.number, "joined": bool(task.joined), "waits_for": len(self.tasks.before(task))}

    async def _compact(self, request: Answer) -> Answer:
        _check_live(request)
        ino, everything, parent = int(request["ino"]), bool(request.get("all")), int(request.get("parent") or 0)
        quick = bool(request.get("quick"))
        if request.get("dry_run"):
            with contextlib.suppress(NnfsError):  # otherwise only committed data would be looked at
                await self._commits.sync()
            run = functools.partial(self._passes.estimate, ino=ino, everything=everything, parent=parent)
            return self._add("dry run", run, request, ino, everything, parent)
        self._writable()
        await self._commits.sync()
        work = self._passes.compact(ino, everything=everything, quick=quick, parent=parent)
        return self._add("compact", work, request, ino, everything, quick, parent)

    async def _thaw(self, request: Answer) -> Answer:
        _check_live(request)
        self._writable()
        await self._commits.sync()
        ino, parent = int(request["ino"]), int(request.get("parent") or 0)
        return self._add("thaw", self._passes.thaw(ino, parent), request, ino, parent)

    async def _scrub_task(self, request: Answer) -> Answer:
        deep = bool(request.get("deep"))
        return self._add("scrub", functools.partial(self._scrub.run, deep=deep), request, deep)

    async def _warm(self, request: Answer) -> Answer:
        with contextlib.suppress(NnfsError):  # otherwise what is committed is warmed
            await self._commits.sync()
        roots, spent = [int(ino) for ino in request["inodes"]], int(request.get("spent", 0))
        depth = None if request.get("depth") is None else int(request["depth"])
        run = functools.partial(self._warming.run, roots=roots, depth=depth, spent=spent)
        return self._add("warm", run, request, hash((*roots, depth, spent)))

    async def _task(self, request: Answer) -> Answer:
        return self.tasks.told(int(request["job"]))

    async def _tasks(self, _request: Answer) -> Answer:
        unended = [task for task in (self.tasks.background, *self.tasks.unended()) if task is not None]
        return {"jobs": [*self.tasks.history.records, *(task.as_dict() for task in unended if task.state in UNENDED)]}

    async def _cancel(self, request: Answer) -> Answer:
        return self.tasks.cancel(int(request["job"])).as_dict()

    async def _pause(self, _request: Answer) -> Answer:
        self.tasks.gate.set(paused=True)
        return {"paused": True}

    async def _resume(self, _request: Answer) -> Answer:
        self.tasks.gate.set(paused=False)
        return {"paused": False}

    async def _list_models(self, _request: Answer) -> Answer:
        return await trio.to_thread.run_sync(self._models.known.report)

    async def _model_add(self, request: Answer) -> Answer:
        self._writable()
        number, fingerprint = await self._models.add(Path(request["file"]))
        self._passes.try_again()
        if request.get("ino"):
            inode = self._fs.inode(int(request["ino"]))
            Xattrs(self._fs).set(inode, policy.MODEL, fingerprint.hex().encode())
            await self._commits.sync()
        return {"number": number, "fingerprint": fingerprint.hex()}

    async def _model_retire(self, request: Answer) -> Answer:
        self._writable()
        await self._models.retire(policy.parse_model(str(request["fingerprint"]).encode()))
        return {}

    def status(self) -> Answer:
        """Return the cold tier's part of `nnfs status`."""
        unended = self.tasks.unended()
        ours = [*unended, *([self.tasks.background] if self.tasks.background is not None else [])]
        recompressing = (task for task in ours if task.state == "running" and task.kind not in BESIDE)
        running = next(recompressing, None)
        seen = running.as_dict() if running is not None else {}
        queued = sum(task.state == "queued" for task in unended)
        return {
            "compaction": {
                "state": seen.get("state", "idle"),
                "kind": seen.get("kind", ""), "paused": self.tasks.gate.paused, "phase": seen.get("phase", ""),
                "queued_jobs": queued, "done_chunks": seen.get("done_chunks", 0), "rate": seen.get("rate", 0.0),
                **self._passes.report(),
            },
            "jobs": [task.as_dict() for task in ours if task.state in UNENDED],
            "scrubbed": {kind: self.tasks.history.scrubbed.get(kind) for kind in ("checksums", "deep")},
            "speeds": self._speeds(),
            "workers": [
                {name: getattr(state, name) for name in WORKER_FIELDS} for state in self._pool.states()
            ],
            "thaw_seconds_per_mib": self._encoder.speeds(),
            "codecs_out": self._encoder.outages.report(),
            "search": self.indexer.report(),
        }  # fmt: skip

    def _speeds(self) -> list[Answer]:
        """Return the seconds that each worker takes for a MiB with each codec, as measured lately."""
        return [
            {
                "worker": state.name, "codec": NAMES.get(number, str(number)),
                "encode_seconds_per_mib": state.encoding.get(number),
                "decode_seconds_per_mib": state.decoding.get(number),
            }
            for state in self._pool.states()
            for number in sorted({*state.encoding, *state.decoding})
        ]  # fmt: skip

    def outlook(self, codecs: list[Answer]) -> list[Answer]:
        """Return what each cold codec has before it, and how long it takes here; none where nothing is recompressed."""
        return [] if self._read_only else self._passes.outlook(codecs)

    def gain(self, codecs: list[Answer]) -> int | None:
        """Return an estimate of the bytes that recompression would still save, None before it has compressed anything.

        It is computed from what this mount has saved; else from the ratios of the store's cold blocks and zstd blocks.
        """
        hot, cold = (
            [sum(line[field] for line in codecs if line["codec"] in names) for field in ("stored_bytes", "plain_bytes")]
            for names in (("zstd",), [NAMES[codec_id] for codec_id in RUNGS])
        )
        gain = self._recompression.gain(hot[0])
        if gain is None and cold[1]:
            gain = hot[0] - hot[1] * cold[0] // cold[1]
        return None if gain is None else max(0, min(hot[0], gain))


def _check_live(request: Answer) -> None:
    """Raise `UsageError` for what lies in a snapshot: it is recompressed with the whole filesystem."""
    if int(request["ino"]) >= PAST:
        raise UsageError("a snapshot is not changed: give a path outside of it. The mount point stands for everything")
