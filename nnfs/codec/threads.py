"""Work on several threads, which pause while the thread that waits for it has something more urgent to do."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from typing import TypeAlias, TypeVar

from nnfs.codec import progress

BETWEEN_S = 0.1  # between two calls of `between` while threads work
T = TypeVar("T")
R = TypeVar("R")
GoOn: TypeAlias = Callable[[], None]


def on_threads(
    pool: ThreadPoolExecutor, threads: int, work: Callable[[T, GoOn], R], items: Sequence[T], between: GoOn
) -> Generator[tuple[int, R], None, None]:
    """Do `work` on each item, on so many threads of a pool; yield place and result of each one that is done.

    `between` is only ever called on this thread. `work` gets a function that it calls as often as it can: that waits
    while `between` runs, so that a read which is answered there has the cores for itself, and raises once the others
    are given up. An exception of `work` or `between` ends the batch: no item is begun any more, and this waits for
    those that were. Close it if it is left before its end.
    """
    go, lock, is_over = threading.Event(), threading.Lock(), False
    places = iter(range(len(items)))
    done: queue.SimpleQueue[tuple[int, R] | BaseException] = queue.SimpleQueue()

    def go_on() -> None:
        progress.beat()
        if not go.is_set():
            go.wait()
        if is_over:
            raise CancelledError

    def run() -> None:
        try:
            while True:
                go_on()
                with lock:
                    place = next(places, -1)
                if place < 0:
                    return
                done.put((place, work(items[place], go_on)))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            done.put(error)

    go.set()
    left = len(items)
    runners = [pool.submit(run) for _ in range(min(threads, left))]
    try:
        while left:
            for found in _taken(done):
                if isinstance(found, BaseException):
                    raise found
                left -= 1
                yield found
            go.clear()
            between()
            go.set()
    finally:
        is_over = True
        go.set()
        wait(runners)


def _taken(done: queue.SimpleQueue[T]) -> Iterator[T]:
    """Yield what is there, after `BETWEEN_S` without anything nothing."""
    try:
        yield done.get(timeout=BETWEEN_S)
        while True:
            yield done.get_nowait()
    except queue.Empty:
        return
