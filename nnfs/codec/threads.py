"""Batches on several threads, which pause while the thread that waits for them has something more urgent to do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor, wait
from typing import TypeVar

from nnfs.codec import progress

BETWEEN_S = 0.1  # between two calls of `between` while threads work
T = TypeVar("T")


def on_threads(
    threads: int, run: Callable[[T, Callable[[], None]], None], batches: Iterable[T], between: Callable[[], None]
) -> Generator[T, None, None]:
    """Run batches on threads, and yield each one that is done. `between` is only ever called on this thread.

    `run` gets a function that it calls every few milliseconds: that waits while `between` runs, so that a read which
    is answered there has the cores for itself, and raises when the others are given up.
    """
    go, is_over = threading.Event(), False

    def go_on() -> None:
        progress.beat()
        if not go.is_set():
            go.wait()
        if is_over:
            raise CancelledError

    go.set()
    pool = ThreadPoolExecutor(threads)
    try:
        futures = {pool.submit(run, batch, go_on): batch for batch in batches}
        while futures:
            for future in wait(futures, BETWEEN_S, FIRST_COMPLETED).done:
                batch = futures.pop(future)
                future.result()
                yield batch
            if futures:
                go.clear()
                between()
                go.set()
    finally:
        is_over = True
        go.set()
        pool.shutdown(cancel_futures=True)
