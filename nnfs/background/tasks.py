"""Tasks: the commands and background passes of the daemon, in order, with progress, pause and cancel."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping
from typing import Any

import trio

from nnfs.background.history import History
from nnfs.background.timeleft import TimeLeft
from nnfs.errors import Cancelled, NnfsError, UsageError, kept

log = logging.getLogger(__name__)

KEPT = 50  # tasks that are done and can still be asked about
BESIDE = ("scrub", "warm")  # kinds with a line of their own each: no task should wait for a scrub, and no reader long
LOOKING = 20  # looking for work takes at most one part in so many of the time
UNENDED = ("queued", "running")

Run = Callable[["Task"], Awaitable[None]]


class Task:
    """One command or background pass. `nnfs compact --wait` and other commands show its fields.

    `about` distinguishes it from other tasks of its kind; `path` is the place that is shown to people.
    """

    def __init__(self, number: int, kind: str, run: Run, gate: Gate, about: Hashable = None, path: str = "") -> None:
        self.number, self.kind, self._run, self._gate = number, kind, run, gate
        self.about, self.path = about, path
        self.joined = 0  # times that the same was asked for again
        self.state = "queued"  # running, done, failed, cancelled
        self.phase = ""
        self.done_bytes = self.total_bytes = self.done_chunks = self.total_chunks = 0  # plain bytes
        self.stored_before = self.stored_after = 0  # bytes of the payloads that were swapped
        self.cold_chunks = self.failed_chunks = 0
        self.looked = 0.0  # seconds spent on finding out what there is to do
        self.note = ""  # for people: why there was nothing to do
        self.error = ""
        self.exit_code = 0
        self.result: dict[str, Any] = {}
        self.started: float | None = None
        self.ended = self.began_at = self.ended_at = 0.0  # the latter two by the wall clock
        self.on_end: Callable[[Task], None] = _nobody
        self.seconds = 0.0
        self.cancelled = False
        self.left = TimeLeft()
        self.costs: Callable[[], Mapping[str, float]] = dict  # of steps, as measured: see `TimeLeft.left`
        self._scopes: set[trio.CancelScope] = set()

    def cancel(self) -> None:
        """Cancel the task: it ends at its next step, or in the middle of one that is `cancellable`."""
        self.cancelled = True
        if self.state == "queued":
            self.end("cancelled")
        for scope in self._scopes:
            scope.cancel()
        self._gate.tell()

    @contextlib.contextmanager
    def cancellable(self) -> Iterator[None]:
        """Let a long step be cancelled. Raises `Cancelled` as soon as the task is cancelled."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            raise Cancelled("cancelled")

    async def checkpoint(self) -> None:
        """Wait while work is paused. Raises `Cancelled`."""
        await trio.lowlevel.checkpoint()
        if self._gate.paused:
            self.left.stop(time.monotonic())  # the work itself starts the clock again: it may have more to wait for
        while self._gate.paused and not self.cancelled:
            await self._gate.changed.wait()
        if self.cancelled:
            raise Cancelled("cancelled")

    async def run(self) -> None:
        """Do the work. Failures are kept, not raised."""
        self.started, self.began_at = time.monotonic(), time.time()
        self.state = "running"
        state = "cancelled"  # by what ends the mount, if nothing below says otherwise
        try:
            await self.checkpoint()
            await self._run(self)
            state = "done"
        except Cancelled:
            pass
        except NnfsError as error:
            state, self.error, self.exit_code = "failed", str(error), kept(error).exit_code
        except Exception as bug:
            state, self.error, self.exit_code = "failed", f"a bug: {bug!r}", NnfsError.exit_code
            log.exception("a bug in task %s", self.kind)
        finally:
            self.ended = time.monotonic()
            self.seconds = self.ended - self.started
            if state == "cancelled" and not self.cancelled:
                self.error = "the mount ended before it did"
            self.end(state)

    def end(self, state: str) -> None:
        """Log in one line how the task ended."""
        self.state, self.phase, self.ended_at = state, "", time.time()
        is_worth_it = self.number or self.done_chunks or state == "failed"
        level = logging.ERROR if state == "failed" else logging.INFO if is_worth_it else logging.DEBUG
        log.log(level, "%s", self.told())
        if is_worth_it:
            self.on_end(self)

    def told(self) -> str:
        """Return in one line how the task ended."""
        what = f"{self.kind}{f' {self.path}' if self.path else ''}{f' (task {self.number})' if self.number else ''}"
        text = f"{what}: {self.state}{f', {self.error}' if self.error else ''}, {self.seconds:.0f} s"
        if self.done_chunks:
            text += f", {self.done_chunks} chunks, {self.done_bytes} bytes"
        if self.stored_before:
            text += f", {self.stored_before} stored bytes became {self.stored_after}"
        return text + (f", {self.failed_chunks} chunks stay as they were" if self.failed_chunks else "")

    def as_dict(self) -> dict[str, Any]:
        """Return the task as the control socket's answer."""
        now, running = time.monotonic(), self.state == "running" and self.started is not None
        seconds = now - self.started if running and self.started is not None else self.seconds
        working = self.left.active(now) if running else self.left.active(self.ended) or self.seconds
        rate = self.done_bytes / working if working > 0 else 0.0
        left = self.left.left(now, self.costs()) if running and self.total_bytes else None
        return {
            "job": self.number, "kind": self.kind, "path": self.path, "state": self.state, "phase": self.phase,
            "done_bytes": self.done_bytes, "total_bytes": self.total_bytes,
            "done_chunks": self.done_chunks, "total_chunks": self.total_chunks,
            "stored_before": self.stored_before, "stored_after": self.stored_after,
            "cold_chunks": self.cold_chunks, "failed_chunks": self.failed_chunks,
            "began": self.began_at or None, "ended": self.ended_at or None,
            "seconds": seconds, "rate": rate, "eta": left,
            "note": self.note, "error": self.error, "exit": self.exit_code, "result": self.result,
        }  # fmt: skip


def _line(kind: str) -> str:
    """Return the line in which tasks of a kind wait for each other."""
    return kind if kind in BESIDE else ""


def _nobody(_task: Task) -> None:
    pass


class Gate:
    """The gate that `nnfs pause` closes and `nnfs resume` opens."""

    def __init__(self) -> None:
        self.paused = False
        self.changed = trio.Event()

    def set(self, *, paused: bool) -> None:
        """Close or open the gate."""
        self.paused = paused
        self.tell()

    def tell(self) -> None:
        """Wake the tasks that wait, so that they look again."""
        self.changed.set()
        self.changed = trio.Event()


class Tasks:
    """The tasks of one mount, one after the other; those of the kinds in `BESIDE` go on beside them.

    `idle` is called for work when none is queued: `first` seconds after the start, then every `every` seconds.
    """

    def __init__(self, idle: Run | None, every: float, first: float, history: History | None = None) -> None:
        self.gate = Gate()
        self._idle, self._every, self._first = idle, every, first
        self.history = history or History(None)
        self._unwritten = trio.Event()
        self._numbers = itertools.count(self.history.last + 1)
        self._tasks: OrderedDict[int, Task] = OrderedDict()
        self._queued = trio.Event()
        self.background: Task | None = None  # the last one made of `idle`

    def add(self, kind: str, run: Run, about: Hashable = None, path: str = "") -> Task:
        """Queue a task, or join an equal one that is queued. One under way is not joined: it has passed some files."""
        for task in self.unended():
            if task.state == "queued" and (task.kind, task.about) == (kind, about) and not task.cancelled:
                task.joined += 1
                return task
        task = Task(next(self._numbers), kind, run, self.gate, about, path)
        task.on_end = self._note
        self._tasks[task.number] = task
        for number in [n for n, old in self._tasks.items() if old.state not in UNENDED][:-KEPT]:
            del self._tasks[number]
        if self.background is not None and self.background.state == "running" and kind not in BESIDE:
            self.background.cancel()  # it goes on where it was when there is nothing else to do
        self._queued.set()
        self._queued = trio.Event()
        return task

    def get(self, number: int) -> Task:
        """Return a task by its number. Raises `UsageError`."""
        try:
            return self._tasks[number]
        except KeyError:
            raise UsageError(f"no task {number}: it is not among the last {KEPT} (nnfs tasks)") from None

    def cancel(self, number: int) -> Task:
        """End a task."""
        task = self.get(number)
        task.cancel()
        return task

    def all(self) -> list[Task]:
        return list(self._tasks.values())

    def told(self, number: int) -> dict[str, Any]:
        """Return the facts about a task, also one of an earlier mount. Raises `UsageError` for an unknown number."""
        kept = [record for record in self.history.records if record["job"] == number]
        return kept[-1] if kept and number not in self._tasks else self.get(number).as_dict()

    def _note(self, task: Task) -> None:
        self.history.add(task.as_dict())
        self._unwritten.set()

    async def _keep(self) -> None:
        while True:
            await self._unwritten.wait()
            self._unwritten = trio.Event()
            await trio.to_thread.run_sync(self.history.write)

    def unended(self) -> list[Task]:
        """Return the commands that are queued or under way, without background passes."""
        return [task for task in self._tasks.values() if task.state in UNENDED]

    def before(self, task: Task) -> list[Task]:
        """Return the tasks that have to end before one begins."""
        return [one for one in self.unended() if one.number < task.number and _line(one.kind) == _line(task.kind)]

    async def serve(self) -> None:
        """Do the tasks in their order, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                for kind in BESIDE:
                    nursery.start_soon(self._serve_beside, kind)
                nursery.start_soon(self._keep)
                await self._serve()
        finally:
            for task in self.unended():  # those that have never begun
                task.error = "the mount ended before it began"
                task.end("cancelled")
            self.history.write()

    async def _next(self, line: str) -> Task:
        while True:
            for task in self._tasks.values():
                if task.state == "queued" and _line(task.kind) == line:
                    return task
            await self._queued.wait()

    async def _serve_beside(self, kind: str) -> None:
        while True:
            task = await self._next(kind)
            await task.run()

    async def _serve(self) -> None:
        due = trio.current_time() + self._first if self._idle is not None else math.inf
        while True:
            task = None
            with trio.move_on_at(due):
                task = await self._next("")
            if task is not None:
                await task.run()
                continue
            pause = self._every
            if self._idle is not None and not self.gate.paused:
                self.background = Task(0, "background", self._idle, self.gate)
                self.background.on_end = self._note
                await self.background.run()
                pause = max(pause, (LOOKING - 1) * self.background.looked)
            due = trio.current_time() + pause
