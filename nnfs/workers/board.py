"""Work items that wait for a worker or are with one, each with its future: what the supervisors of a pool share."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

from nnfs.errors import CodecError, TimedOut, WorkerError, kept
from nnfs.workers.batches import rank
from nnfs.workers.wire import MAX_CHUNK, MAX_PAYLOAD, NO_MODEL, Info, Op

Outcome: TypeAlias = bytes | Info | None  # of encode, decode or ping; None: no gain
URGENT, AHEAD, BACKGROUND = 0, 1, 2  # priorities: somebody waits; somebody will soon; nobody does


@dataclass(frozen=True, slots=True)
class WorkItem:
    """Something to encode or to decode."""

    op: Op
    codec: int = 0
    data: bytes = b""
    plain: int = 0  # length
    model: bytes = NO_MODEL
    priority: int = AHEAD
    worker: str = ""  # the name of the only worker that may do it

    def check(self) -> None:
        """Raises `CodecError` for what no worker would take."""
        if self.plain > MAX_CHUNK or len(self.data) > MAX_PAYLOAD:
            raise CodecError(f"a chunk of {self.plain} bytes, stored in {len(self.data)}, is too long for a worker")


class Holder(Protocol):
    """Whoever a ticket is with."""

    name: str

    def drop(self, ticket: PendingItem) -> None:
        """Nobody waits for this ticket any more. Called by any thread."""

    def wake(self) -> None:
        """Something has changed. Called by any thread."""


@dataclass(slots=True, eq=False)
class PendingItem:
    """One submitted job."""

    id: int
    job: WorkItem
    future: Future[Outcome] = field(default_factory=Future)
    strikes: int = 0  # workers that died of it
    holder: Holder | None = None
    waiting: bool = True  # on the board
    settled: bool = False
    cost: int = 0  # bytes that it keeps in memory, about

    def __post_init__(self) -> None:
        self.cost = len(self.job.data) + self.job.plain + 1024


def _nobody(_name: str) -> None:
    """Nobody waits."""


class Board:
    """Tickets in order of urgency, with a bound on their bytes, and deadlines. Thread-safe.

    Lock order: none. No future is settled, and no holder called, while the lock is held.
    """

    def __init__(self, names: Sequence[str], limit: int) -> None:
        self.closed = False
        self.holders: list[Holder] = []
        self.on_moved: Callable[[str], None] = _nobody  # called with a worker's name, by any thread: it gets on
        self._names = names
        self._limit = limit
        self._used = 0
        self._room = threading.Condition()
        self._ids = itertools.count(1)
        self._waiting: dict[int, deque[PendingItem]] = {}  # by rank
        self._deadlines: list[tuple[float, int, PendingItem]] = []
        self._broken: list[Holder] = []  # whose workers cannot be started

    def post(self, job: WorkItem, timeout: float | None, *, wait: bool) -> PendingItem:
        """Put a job up. With `wait`, when the board is full, until there is room; `TimedOut` otherwise.

        Urgent jobs are always taken: whoever waits for them bounds them. Raises `WorkerError` once closed.
        """
        job.check()
        if job.worker and job.worker not in self._names:
            raise WorkerError(f"no worker named {job.worker}; there are: {', '.join(self._names)}")
        ticket = PendingItem(next(self._ids), job)
        end = None if timeout is None else time.monotonic() + timeout
        with self._room:
            while not self.closed and job.priority > URGENT and 0 < self._used > self._limit - ticket.cost:
                if not wait or (end is not None and time.monotonic() >= end):
                    raise TimedOut("the codec workers have too much to do already")
                self._room.wait(None if end is None else max(0.0, end - time.monotonic()))
            if self.closed:
                raise WorkerError("the codec workers are closed")
            self._used += ticket.cost
            self._waiting.setdefault(rank(job), deque()).append(ticket)
            if end is not None:
                heapq.heappush(self._deadlines, (end, ticket.id, ticket))
        ticket.future.add_done_callback(lambda _: self._forget(ticket))
        self.wake()
        return ticket

    def wake(self) -> None:
        """Have every holder look."""
        for holder in self.holders:
            holder.wake()

    def new_id(self) -> int:
        """Return a job number that no ticket has."""
        return next(self._ids)

    def claim(self, name: str, holder: Holder | None, below: int) -> PendingItem | None:
        """Return the most urgent ticket of a rank smaller than `below` for this worker. No holder: only look."""
        with self._room:
            for place in sorted(self._waiting):
                if place >= below:
                    break
                line = self._waiting[place]
                for ticket in line:
                    if ticket.job.worker in ("", name):
                        if holder is not None:
                            line.remove(ticket)
                            ticket.waiting, ticket.holder = False, holder
                        return ticket
        return None

    def put_back(self, tickets: Iterable[PendingItem]) -> None:
        """Tickets that a worker did not finish go back to the front of their lines, in their old order."""
        with self._room:
            for ticket in sorted(tickets, key=lambda ticket: -ticket.id):
                ticket.holder = None
                if not ticket.settled:
                    ticket.waiting = True
                    self._waiting.setdefault(rank(ticket.job), deque()).appendleft(ticket)
        self.wake()

    def begin(self, ticket: PendingItem) -> None:
        """A worker works on a ticket: from now on its future is running, and cannot be cancelled."""
        with self._room:
            if not (ticket.settled or ticket.future.running()):
                ticket.settled = not ticket.future.set_running_or_notify_cancel()

    def settle(self, ticket: PendingItem, outcome: Outcome | Exception) -> None:
        """Give a ticket's future its result or exception, if it still waits for one."""
        with self._room:
            if ticket.settled:
                return
            ticket.settled = True
            wanted = ticket.future.running() or ticket.future.set_running_or_notify_cancel()
        if wanted:
            if isinstance(outcome, Exception):
                ticket.future.set_exception(kept(outcome))
            else:
                ticket.future.set_result(outcome)

    def _forget(self, ticket: PendingItem) -> None:
        """Called when a ticket's future is done, for whatever reason: answered, too late, cancelled by its owner."""
        with self._room:
            ticket.settled = True
            self._used -= ticket.cost
            self._room.notify_all()
            holder = ticket.holder
            if ticket.waiting:
                self._waiting[rank(ticket.job)].remove(ticket)
                ticket.waiting = False
            ticket.job = replace(ticket.job, data=b"")  # the deadlines keep the ticket for a while
        if holder is not None:
            holder.drop(ticket)

    def next_deadline(self) -> float | None:
        """Return the time (of the monotonic clock) at which `expire` has something to do."""
        with self._room:
            while self._deadlines and self._deadlines[0][2].settled:
                heapq.heappop(self._deadlines)
            return self._deadlines[0][0] if self._deadlines else None

    def expire(self) -> None:
        """Fail what has waited too long."""
        late = []
        with self._room:
            while self._deadlines and self._deadlines[0][0] <= time.monotonic():
                late.append(heapq.heappop(self._deadlines)[2])
        for ticket in late:
            self.settle(ticket, TimedOut("the codec workers did not get to it in time"))

    def abandon(self, holder: Holder, why: Exception) -> None:
        """A worker cannot be started: fail the tickets that no other one could take."""
        with self._room:
            self.restore(holder)
            self._broken.append(holder)
            left = {other.name for other in self.holders if other not in self._broken}
            hopeless = [
                ticket for line in self._waiting.values() for ticket in line
                if (ticket.job.worker not in left if ticket.job.worker else not left)
            ]  # fmt: skip
        for ticket in hopeless:
            self.settle(ticket, why)

    def restore(self, holder: Holder) -> None:
        """A worker works."""
        with self._room:
            self._broken = [other for other in self._broken if other is not holder]

    def close(self) -> None:
        """Take no more jobs."""
        with self._room:
            self.closed = True
            self._room.notify_all()
        self.wake()

    def clear(self) -> None:
        """Fail whatever waits, after `close`."""
        with self._room:
            left = [ticket for line in self._waiting.values() for ticket in line]
        for ticket in left:
            self.settle(ticket, WorkerError("the codec workers are closed"))
