"""The adapter from a codec to a cold codec: it codes chunk by chunk, on a few threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from nnfs.codec import progress
from nnfs.codec.base import Codec, Result, Tell, nothing, untold
from nnfs.errors import CodecError

BETWEEN_S = 0.1  # between two calls of `between` while threads work
PER_THREAD = 4 << 20  # plain bytes: at the end of a batch threads wait for the last chunk, 1/64 of that at most
LEVELS = 5  # batches of so many ranks may be under way, each overtaken by the next: each has threads of its own
T = TypeVar("T")
R = TypeVar("R", bound=Result)


class ThreadedCodec:
    """A codec with `encode_many` and `decode_many`. The codec itself must allow several threads."""

    def __init__(self, codec: Codec, threads: int) -> None:
        self.id = codec.id
        self.name = codec.name
        self.batch = threads * PER_THREAD
        self.encode = codec.encode
        self.decode = codec.decode
        self._threads = threads
        self._pool = ThreadPoolExecutor(LEVELS * threads)  # kept: codecs keep tables per thread

    def encode_many(
        self, plains: Sequence[bytes], between: Callable[[], None] = nothing, tell: Tell = untold
    ) -> list[bytes | None]:
        return self._each(self.encode, plains, between, tell)

    def decode_many(
        self, payloads: Sequence[tuple[bytes, int]], between: Callable[[], None] = nothing, tell: Tell = untold
    ) -> list[bytes | CodecError]:
        return self._each(self._decoded, payloads, between, tell)

    def _decoded(self, item: tuple[bytes, int]) -> bytes | CodecError:
        try:
            return self.decode(*item)
        except CodecError as error:
            return error

    def _each(self, work: Callable[[T], R], items: Sequence[T], between: Callable[[], None], tell: Tell) -> list[R]:
        """Return `work` of each item. After an exception begin no more, and wait for those that have begun."""
        if self._threads == 1 or len(items) == 1:
            results = []
            for place, item in enumerate(items):
                between()
                results.append(work(item))
                progress.beat()
                tell(place, results[-1])
            return results
        batch = _Batch(work, items)
        runners = [self._pool.submit(batch.run) for _ in range(min(self._threads, len(items)))]
        try:
            while batch.unfinished:
                for place, result in batch.take(BETWEEN_S):
                    progress.beat()
                    tell(place, result)
                batch.go.clear()  # what comes in between has the cores for itself
                between()
                batch.go.set()
        finally:
            batch.end()
            wait(runners)
        _raise_any(runners)
        return batch.results


class _Batch(Generic[T, R]):
    """The items of one call. Threads that `run` it take one after the other, while `go` is set."""

    def __init__(self, work: Callable[[T], R], items: Sequence[T]) -> None:
        self._work, self._items = work, items
        self._places = iter(range(len(items)))
        self._lock = threading.Lock()
        self._done: queue.SimpleQueue[tuple[int, R] | None] = queue.SimpleQueue()
        self._found: dict[int, R] = {}
        self.unfinished = len(items)
        self.go = threading.Event()
        self.go.set()

    @property
    def results(self) -> list[R]:
        """The results in the order of the items."""
        return [self._found[place] for place in range(len(self._items))]

    def run(self) -> None:
        """Do items until none is left. An exception ends the batch."""
        try:
            while (place := self._next()) is not None:
                self._done.put((place, self._work(self._items[place])))
        except BaseException:
            self._done.put(None)
            raise

    def _next(self) -> int | None:
        self.go.wait()
        with self._lock:
            return next(self._places, None)

    def take(self, seconds: float) -> list[tuple[int, R]]:
        """Return the results that have come, after so many seconds without any an empty list."""
        taken: list[tuple[int, R]] = []
        try:
            one = self._done.get(timeout=seconds)
            while one is not None:
                taken.append(one)
                one = self._done.get_nowait()
            self.unfinished = 0  # a thread has failed
        except queue.Empty:
            self.unfinished -= len(taken)
        self._found.update(taken)
        return taken

    def end(self) -> None:
        """Have no more items begun."""
        with self._lock:
            self._places = iter(())
        self.go.set()


def _raise_any(runners: Sequence[Future[None]]) -> None:
    for runner in runners:
        runner.result()
