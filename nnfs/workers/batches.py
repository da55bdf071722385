"""The requests that wait in a worker: in order of urgency, cut into batches."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from nnfs.workers.wire import ALONE, Op, Request

FIRST = -1  # rank of requests that others may depend on
WAITED_FOR, WAITED_FOR_SOON = 0, 2  # ranks of decoding for readers
NOT_WAITED_FOR = 4  # rank of decoding for nobody in particular; encoding for nobody is the next one
CHECK_S = 0.25
GATHER_S = 0.005  # to wait, after a request that finds the worker idle, for others to join its batch
GATHER_MOST_S = 0.02  # until its batch begins, though others still come
IDLE = 1 << 30  # a rank that everything is more urgent than


class Ordered(Protocol):
    """The fields of a request, or of a work item, that decide its place in the order of work."""

    @property
    def op(self) -> Op: ...
    @property
    def priority(self) -> int: ...


def rank(request: Ordered) -> int:
    """Return the place of a request in the order of work, the smallest first: its priority, decode before encode."""
    if request.op in (Op.LOAD, Op.PING):
        return FIRST
    return 2 * request.priority + (request.op == Op.ENCODE)


class RequestQueue:
    """The requests that wait. One thread adds, one takes; `add` waits while there are `window` requests.

    `threads` is the number of threads that work on one batch.
    """

    def __init__(
        self, window: int, threads: int = 1, patience: Callable[[Request], float] = lambda _: GATHER_S
    ) -> None:
        """`patience(request)`: seconds without another request after which its batch is worth beginning."""
        self._window, self._threads, self._patience = window, threads, patience
        self._changed = threading.Condition()
        self._waiting: dict[int, deque[Request]] = {}
        self._count = 0
        self._closed = False
        self._has_decoded = False  # whether the last batch that nobody waited for was one of decoding
        self.urgent = IDLE  # the smallest rank that waits, to be looked at without the lock

    def __len__(self) -> int:
        return self._count

    def add(self, request: Request, check: Callable[[], None]) -> None:
        """Add a request in its place. While there is no room, call `check` from time to time: it may raise."""
        with self._changed:
            while self._count >= self._window and not self._closed:
                if not self._changed.wait(CHECK_S):
                    check()
            if self._closed:
                return
            place = rank(request)
            self._waiting.setdefault(place, deque()).append(request)
            self._count += 1
            self.urgent = min(self.urgent, place)
            self._changed.notify_all()

    def take(self, below: int, most: Callable[[Request], int], *, wait: bool) -> list[Request]:
        """Return the next batch of a rank below `below`: the request whose turn it is, and others that fit its batch.

        `most(request)` gives the most plain bytes of a batch. Returns an empty list when there are none and, with
        `wait`, none will come.
        """
        with self._changed:
            if wait:
                self._gather(below, most)
            if self.urgent >= below:
                return []
            line = self._waiting[self._turn()]
            batch = [line.popleft()]
            if not batch[0].flags & ALONE and batch[0].op != Op.LOAD:
                batch += _companions(batch[0], line, most(batch[0]) - max(1, batch[0].plain))
                if rank(batch[0]) == WAITED_FOR and len(batch) < self._threads:
                    # One chunk keeps one thread busy: the others do what is going to be waited for, in the same time.
                    longest = max(request.plain for request in batch)
                    room = self._threads * longest - sum(request.plain for request in batch)
                    batch += _companions(batch[0], self._waiting.get(WAITED_FOR_SOON, deque()), room)
            self._count -= len(batch)
            self._update_urgent()
            return batch

    def _gather(self, below: int, most: Callable[[Request], int]) -> None:
        """Wait for a request, and then for others that fit its batch, but not long.

        Readers wait so only when the worker is idle. Batches that nobody waits for are worth more patience: the
        network takes nearly as long for a small one as for a full one.
        """
        is_idle = self.urgent >= below
        if is_idle:
            self._changed.wait_for(lambda: self.urgent < below or self._closed)
        until = time.monotonic() + GATHER_MOST_S
        while not self._closed and self.urgent < below:
            if self.urgent < NOT_WAITED_FOR:
                # Eight chunks of one read came as a batch of one and one of seven.
                if not is_idle or time.monotonic() >= until or not self._changed.wait(GATHER_S):
                    return
                continue
            head = self._waiting[self.urgent][0]
            if self._is_full(most(head)) or not self._changed.wait(self._patience(head)):
                return
            is_idle = True

    def _is_full(self, most: int) -> bool:
        """Return whether a batch that nobody waits for would be full."""
        lines = (self._waiting.get(place, ()) for place in (NOT_WAITED_FOR, NOT_WAITED_FOR + 1))
        return any(sum(max(1, request.plain) for request in line) >= most for line in lines)

    def _turn(self) -> int:
        """Return the rank whose turn it is: the most urgent one, but a long scrub must not hold up all encoding."""
        place = self.urgent
        if place == NOT_WAITED_FOR and self._has_decoded and self._waiting.get(place + 1):
            place += 1
        if place >= NOT_WAITED_FOR:
            self._has_decoded = place == NOT_WAITED_FOR
        return place

    def cancel(self, number: int) -> bool:
        """Remove a request. Return False when it does not wait here."""
        with self._changed:
            for line in self._waiting.values():
                for request in line:
                    if request.number == number:
                        line.remove(request)
                        self._count -= 1
                        self._update_urgent()
                        return True
        return False

    def close(self) -> None:
        """Drop all requests: nobody waits for them any more."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._count = 0
            self._update_urgent()

    def _update_urgent(self) -> None:
        self.urgent = min((place for place, line in self._waiting.items() if line), default=IDLE)
        self._changed.notify_all()


def _companions(head: Request, line: deque[Request], room: int) -> list[Request]:
    """Remove and return the requests of a line that fit a batch with `head`, at most `room` plain bytes."""
    taken: list[Request] = []
    left: deque[Request] = deque()
    while line and room > 0:
        request = line.popleft()
        if _alike(head, request) and max(1, request.plain) <= room:
            taken.append(request)
            room -= max(1, request.plain)
        else:
            left.append(request)
    line.extendleft(reversed(left))
    return taken


def _alike(head: Request, other: Request) -> bool:
    return other.op == head.op and other.codec == head.codec and other.model == head.model and not other.flags & ALONE
