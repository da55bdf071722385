"""The pool: it takes work items and returns futures. Worker processes, each with a supervisor, do the work.

Synchronous and thread-safe. From an event loop, `submit(..., wait=False)` does not block, and a future's
`add_done_callback` (called on a supervisor's thread) brings the result back; cancelling the future takes the item back.

Errors that a future may hold: `CodecError` (a bad payload, an unknown codec), `ModelMissing`, `TimedOut`, and
`WorkerError` (two workers died of the item, none can be started, it lacks a library of the codec, no memory, a bug).
A future is running, and cannot be cancelled any more, once a worker has begun.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Self, cast

from nnfs.workers.board import AHEAD, BACKGROUND, URGENT, Board, Outcome, WorkItem
from nnfs.workers.process import WorkerSpec, reference_environment
from nnfs.workers.supervisor import Supervisor, WorkerState
from nnfs.workers.wire import NO_MODEL, Info, Op

__all__ = [
    "AHEAD", "BACKGROUND", "URGENT", "Outcome", "Pool", "WorkItem", "WorkerSpec", "WorkerState",
    "reference_environment",
]  # fmt: skip

LIMIT = 160 << 20  # bytes of work items that are neither urgent nor answered: 64 MiB of recompression count twice
BACKOFF_S = 0.1  # before the first restart, doubled by each further one


def no_models(_model: bytes) -> bytes | None:
    """Return None: no model is sent, and workers use those that are shipped."""
    return None


class Pool:
    """The workers of some specs. `find_model(fingerprint)` returns a model's file, for a worker that lacks it.

    `find_model` is called on supervisors' threads.
    """

    def __init__(
        self,
        specs: Sequence[WorkerSpec],
        find_model: Callable[[bytes], bytes | None] = no_models,
        *,
        limit: int = LIMIT,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        self._board = Board([spec.name for spec in specs], limit)
        self._supervisors = [Supervisor(spec, self._board, find_model, backoff_s) for spec in specs]
        self._board.holders.extend(self._supervisors)
        for supervisor in self._supervisors:
            supervisor.start()

    def submit(self, item: WorkItem, *, timeout: float | None = None, wait: bool = True) -> Future[Outcome]:
        """Submit a work item. Its future fails with `TimedOut` unless it is answered within `timeout` seconds.

        While the board is full, an item that is not urgent waits here, or raises `TimedOut` without
        `wait`.
        """
        return self._board.post(item, timeout, wait=wait).future

    def encode(
        self, codec: int, plain: bytes, model: bytes = NO_MODEL, *, priority: int = BACKGROUND, worker: str = ""
    ) -> Future[bytes | None]:
        """Submit a chunk to encode. The future's result is the payload, or None when it does not become smaller."""
        item = WorkItem(Op.ENCODE, codec, plain, len(plain), model, priority, worker)
        return cast("Future[bytes | None]", self.submit(item))

    def decode(
        self, codec: int, payload: bytes, plain: int, model: bytes = NO_MODEL, *,
        priority: int = URGENT, worker: str = "", timeout: float | None = None,
    ) -> Future[bytes]:  # fmt: skip
        """Submit a payload of `plain` bytes to decode."""
        item = WorkItem(Op.DECODE, codec, payload, plain, model, priority, worker)
        return cast("Future[bytes]", self.submit(item, timeout=timeout))

    def ask(self, worker: str, *, timeout: float | None = 10.0) -> Future[Info]:
        """Ask a worker for its `Info`; start it if need be."""
        return cast("Future[Info]", self.submit(WorkItem(Op.PING, priority=URGENT, worker=worker), timeout=timeout))

    def watch(self, moved: Callable[[str], None]) -> None:
        """Call `moved` with a worker's name about once a second while that worker makes progress, in any thread."""
        self._board.on_moved = moved

    def states(self) -> list[WorkerState]:
        """Return the known facts about each worker, without asking it."""
        return [supervisor.state for supervisor in self._supervisors]

    def queue(self) -> int:
        """Return how many work items are not answered."""
        return self._board.waiting() + sum(state.outstanding for state in self.states())

    def close(self) -> None:
        """End all workers, also in the middle of their work. Items without an answer fail."""
        if self._board.closed:
            return
        self._board.close()
        for supervisor in self._supervisors:
            supervisor.join()
        self._board.clear()
        for supervisor in self._supervisors:
            supervisor.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
