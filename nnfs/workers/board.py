"""The board of a pool: work items that wait for a worker or are with one, each with its future."""

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
    """One chunk to encode, or one payload to decode."""

    op: Op
    codec: int = 0
    data: bytes = b""
    plain: int = 0  # length
    model: bytes = NO_MODEL
    priority: int = AHEAD
    worker: str = ""  # the name of the only worker that may do it

    def check(self) -> None:
        """Raise `CodecError` if no worker would take this."""
        if self.plain > MAX_CHUNK or len(self.data) > MAX_PAYLOAD:
            raise CodecError(f"a chunk of {self.plain} bytes, stored in {len(self.data)}, is too long for a worker")


class Holder(Protocol):
    """The supervisor that a pending item is with."""

    name: str

    def drop(self, pending: PendingItem) -> None:
        """Note that nobody waits for this item any more. Any thread may call it."""

    def wake(self) -> None:
        """Note that the board has changed. Any thread may call it."""


@dataclass(slots=True, eq=False)
class PendingItem:
    """A work item that was submitted and has no outcome yet."""

    number: int
    item: WorkItem
    future: Future[Outcome] = field(default_factory=Future)
    strikes: int = 0  # workers that died of it
    holder: Holder | None = None
    waiting: bool = True  # on the board
    is_done: bool = False
    cost: int = 0  # bytes that it keeps in memory, about

    def __post_init__(self) -> None:
        self.cost = len(self.item.data) + self.item.plain + 1024


def _nobody(_name: str) -> None:
    """Do nothing."""


class Board:
    """The pending items in order of urgency, with a bound on their bytes, and deadlines. Thread-safe.

    There is no order of locks: while the lock is held, no future gets its outcome, and no holder is called.
    """

    def __init__(self, names: Sequence[str], limit: int) -> None:
        self.closed = False
        self.holders: list[Holder] = []
        self.on_moved: Callable[[str], None] = _nobody  # called with a worker's name, by any thread: it gets on
        self._names = names
        self._limit = limit
        self._used = 0
        self._room = threading.Condition()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, deque[PendingItem]] = {}  # by rank
        self._deadlines: list[tuple[float, int, PendingItem]] = []
        self._broken: list[Holder] = []  # those whose workers cannot be started

    def post(self, item: WorkItem, timeout: float | None, *, wait: bool) -> PendingItem:
        """Post a work item. If the board is full, wait for room; without `wait` raise `TimedOut`.

        Urgent items are always accepted: readers bound their number. Raises `WorkerError` once the board is closed.
        """
        item.check()
        if item.worker and item.worker not in self._names:
            raise WorkerError(f"no worker named {item.worker}; there are: {', '.join(self._names)}")
        pending = PendingItem(next(self._numbers), item)
        end = None if timeout is None else time.monotonic() + timeout
        with self._room:
            while not self.closed and item.priority > URGENT and 0 < self._used > self._limit - pending.cost:
                if not wait or (end is not None and time.monotonic() >= end):
                    raise TimedOut("the codec workers have too much to do already")
                self._room.wait(None if end is None else max(0.0, end - time.monotonic()))
            if self.closed:
                raise WorkerError("the codec workers are closed")
            self._used += pending.cost
            self._waiting.setdefault(rank(item), deque()).append(pending)
            if end is not None:
                heapq.heappush(self._deadlines, (end, pending.number, pending))
        pending.future.add_done_callback(lambda _: self._forget(pending))
        self.wake(item.worker if timeout is None else "")
        return pending

    def wake(self, name: str = "") -> None:
        """Wake every holder, or those of a worker: each takes the interpreter from the event loop for a while."""
        for holder in self.holders:
            if name in ("", holder.name):
                holder.wake()

    def waiting(self) -> int:
        """Return how many items no worker has been given yet."""
        with self._room:
            return sum(map(len, self._waiting.values()))

    def new_number(self) -> int:
        """Return a number that no work item has."""
        return next(self._numbers)

    def claim(self, name: str, holder: Holder | None, below: int) -> PendingItem | None:
        """Return the most urgent item of a rank below `below` for this worker. Without a holder, leave it unclaimed."""
        with self._room:
            for place in sorted(self._waiting):
                if place >= below:
                    break
                line = self._waiting[place]
                for pending in line:
                    if pending.item.worker in ("", name):
                        if holder is not None:
                            line.remove(pending)
                            pending.waiting, pending.holder = False, holder
                        return pending
        return None

    def put_back(self, unfinished: Iterable[PendingItem]) -> None:
        """Return the items that a worker did not finish to the front of their lines, in their old order."""
        with self._room:
            for pending in sorted(unfinished, key=lambda pending: -pending.number):
                pending.holder = None
                if not pending.is_done:
                    pending.waiting = True
                    self._waiting.setdefault(rank(pending.item), deque()).appendleft(pending)
        self.wake()

    def begin(self, pending: PendingItem) -> None:
        """Note that a worker works on an item: its future is running from now on, and cannot be cancelled."""
        with self._room:
            if not (pending.is_done or pending.future.running()):
                pending.is_done = not pending.future.set_running_or_notify_cancel()

    def finish(self, pending: PendingItem, outcome: Outcome | Exception) -> None:
        """Give an item's future its result or exception, if it still waits for one."""
        with self._room:
            if pending.is_done:
                return
            pending.is_done = True
            wanted = pending.future.running() or pending.future.set_running_or_notify_cancel()
        if wanted:
            if isinstance(outcome, Exception):
                pending.future.set_exception(kept(outcome))
            else:
                pending.future.set_result(outcome)

    def _forget(self, pending: PendingItem) -> None:
        """Drop an item whose future is done: answered, too late, or cancelled by its owner."""
        with self._room:
            pending.is_done = True
            self._used -= pending.cost
            self._room.notify_all()
            holder = pending.holder
            if pending.waiting:
                self._waiting[rank(pending.item)].remove(pending)
                pending.waiting = False
            pending.item = replace(pending.item, data=b"")  # the deadlines keep the rest for a while
        if holder is not None:
            holder.drop(pending)

    def next_deadline(self) -> float | None:
        """Return the time (of the monotonic clock) of the next deadline, at which `expire` must be called."""
        with self._room:
            while self._deadlines and self._deadlines[0][2].is_done:
                heapq.heappop(self._deadlines)
            return self._deadlines[0][0] if self._deadlines else None

    def expire(self) -> None:
        """Fail the items that have waited too long."""
        late = []
        with self._room:
            while self._deadlines and self._deadlines[0][0] <= time.monotonic():
                late.append(heapq.heappop(self._deadlines)[2])
        for pending in late:
            self.finish(pending, TimedOut("the codec workers did not get to it in time"))

    def abandon(self, holder: Holder, why: Exception) -> None:
        """Note that a worker cannot be started, and fail the items that no other worker could take."""
        with self._room:
            self.restore(holder)
            self._broken.append(holder)
            left = {other.name for other in self.holders if other not in self._broken}
            hopeless = [
                pending for line in self._waiting.values() for pending in line
                if (pending.item.worker not in left if pending.item.worker else not left)
            ]  # fmt: skip
        for pending in hopeless:
            self.finish(pending, why)

    def restore(self, holder: Holder) -> None:
        """Note that a worker that was abandoned works again."""
        with self._room:
            self._broken = [other for other in self._broken if other is not holder]

    def close(self) -> None:
        """Accept no more work items."""
        with self._room:
            self.closed = True
            self._room.notify_all()
        self.wake()

    def clear(self) -> None:
        """Fail all items that wait, after `close`."""
        with self._room:
            left = [pending for line in self._waiting.values() for pending in line]
        for pending in left:
            self.finish(pending, WorkerError("the codec workers are closed"))
