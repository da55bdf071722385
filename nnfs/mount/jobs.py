"""Long work that was asked for by a command or is due: one job after the other, with progress, pause and cancel."""

from __future__ import annotations

import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from nnfs.errors import NnfsError, UsageError

log = logging.getLogger(__name__)

KEPT = 100  # jobs that are done and can still be asked about

Run = Callable[["Job"], Awaitable[None]]


class Cancelled(NnfsError):
    """The job was cancelled."""


class Job:
    """One piece of work. Its fields are what `nnfs compact --wait` and its kin show."""

    def __init__(self, number: int, kind: str, run: Run, gate: Gate) -> None:
        self.number, self.kind, self._run, self._gate = number, kind, run, gate
        self.state = "queued"  # running, done, failed, cancelled
        self.phase = ""
        self.done_bytes = self.total_bytes = self.done_chunks = self.total_chunks = 0  # plain bytes
        self.stored_before = self.stored_after = 0  # bytes of the payloads that were swapped
        self.cold_chunks = self.failed_chunks = 0
        self.error = ""
        self.exit_code = 0
        self.result: dict[str, Any] = {}
        self.started: float | None = None
        self.seconds = 0.0
        self.cancelled = False

    async def checkpoint(self) -> None:
        """Wait while work is paused. Raises `Cancelled`."""
        await trio.lowlevel.checkpoint()
        while self._gate.paused and not self.cancelled:
            await self._gate.changed.wait()
        if self.cancelled:
            raise Cancelled("cancelled")

    async def run(self) -> None:
        """Do it; failures are kept, not raised."""
        self.started = time.monotonic()
        self.state = "running"
        try:
            await self.checkpoint()
            await self._run(self)
            self.state = "done"
        except Cancelled:
            self.state = "cancelled"
        except NnfsError as error:
            self.state, self.error, self.exit_code = "failed", str(error), error.exit_code
            log.error("%s: %s", self.kind, error)
        except Exception as bug:
            self.state, self.error, self.exit_code = "failed", f"a bug: {bug!r}", NnfsError.exit_code
            log.exception("a bug in job %s", self.kind)
        finally:
            self.seconds = time.monotonic() - self.started

    def as_dict(self) -> dict[str, Any]:
        """Return what the control socket answers."""
        running = self.state == "running" and self.started is not None
        seconds = time.monotonic() - self.started if running and self.started is not None else self.seconds
        rate = self.done_bytes / seconds if seconds > 0 else 0.0
        left = max(0, self.total_bytes - self.done_bytes)
        return {
            "job": self.number, "kind": self.kind, "state": self.state, "phase": self.phase,
            "done_bytes": self.done_bytes, "total_bytes": self.total_bytes,
            "done_chunks": self.done_chunks, "total_chunks": self.total_chunks,
            "stored_before": self.stored_before, "stored_after": self.stored_after,
            "cold_chunks": self.cold_chunks, "failed_chunks": self.failed_chunks,
            "seconds": seconds, "rate": rate, "eta": left / rate if running and rate else None,
            "error": self.error, "exit": self.exit_code, "result": self.result,
        }  # fmt: skip


class Gate:
    """Open or paused."""

    def __init__(self) -> None:
        self.paused = False
        self.changed = trio.Event()

    def set(self, *, paused: bool) -> None:
        """Pause, or go on."""
        self.paused = paused
        self.tell()

    def tell(self) -> None:
        """Have those who wait look again."""
        self.changed.set()
        self.changed = trio.Event()


class Jobs:
    """The jobs of one mount. `idle` is asked for work when none is queued, every `every` seconds."""

    def __init__(self, idle: Run | None, every: float) -> None:
        self.gate = Gate()
        self._idle, self._every = idle, every
        self._numbers = itertools.count(1)
        self._jobs: OrderedDict[int, Job] = OrderedDict()
        self._queued = trio.Event()
        self.background: Job | None = None  # the last one made of `idle`

    def add(self, kind: str, run: Run) -> Job:
        """Queue a job."""
        job = Job(next(self._numbers), kind, run, self.gate)
        self._jobs[job.number] = job
        for number in [n for n, old in self._jobs.items() if old.state not in ("queued", "running")][:-KEPT]:
            del self._jobs[number]
        if self.background is not None and self.background.state == "running":
            self.background.cancelled = True  # it goes on where it was when there is nothing else to do
            self.gate.tell()
        self._queued.set()
        return job

    def get(self, number: int) -> Job:
        """Return a job by its number. Raises `UsageError`."""
        try:
            return self._jobs[number]
        except KeyError:
            raise UsageError(f"no job {number}: it ended long ago, or with an earlier mount") from None

    def cancel(self, number: int) -> Job:
        """End a job at its next step."""
        job = self.get(number)
        if job.state == "queued":
            job.state = "cancelled"
        job.cancelled = True
        self.gate.tell()
        return job

    def all(self) -> list[Job]:
        return list(self._jobs.values())

    async def serve(self) -> None:
        """Do the jobs in their order, until cancelled."""
        while True:
            self._queued = trio.Event()
            job = next((job for job in self._jobs.values() if job.state == "queued"), None)
            if job is not None:
                await job.run()
                continue
            with trio.move_on_after(self._every) as waited:
                await self._queued.wait()
            if waited.cancelled_caught and self._idle is not None and not self.gate.paused:
                self.background = Job(0, "background", self._idle, self.gate)
                await self.background.run()
