"""The adapter from a codec to a cold codec: it codes chunk by chunk, on a few threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from nnfs.codec import progress
from nnfs.codec.base import Codec, nothing
from nnfs.errors import CodecError

BETWEEN_S = 0.1  # between two calls of `between` while threads work
PER_THREAD = 1 << 19  # plain bytes
LEVELS = 3  # reads may overtake read-ahead, which may overtake compression: each on its own threads
T = TypeVar("T")
R = TypeVar("R")


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

    def encode_many(self, plains: Sequence[bytes], between: Callable[[], None] = nothing) -> list[bytes | None]:
        return self._each(self.encode, plains, between)

    def decode_many(
        self, payloads: Sequence[tuple[bytes, int]], between: Callable[[], None] = nothing
    ) -> list[bytes | CodecError]:
        return self._each(self._decoded, payloads, between)

    def _decoded(self, item: tuple[bytes, int]) -> bytes | CodecError:
        try:
            return self.decode(*item)
        except CodecError as error:
            return error

    def _each(self, work: Callable[[T], R], items: Sequence[T], between: Callable[[], None]) -> list[R]:
        """Return `work` of each item. After an exception start no more, and wait for those that have begun."""
        if self._threads == 1 or len(items) == 1:
            results = []
            for item in items:
                between()
                results.append(work(item))
                progress.beat()
            return results
        done: dict[int, R] = {}
        running: dict[Future[R], int] = {}
        begun = 0
        try:
            while len(done) < len(items):
                while begun < len(items) and len(running) < self._threads:
                    running[self._pool.submit(work, items[begun])] = begun
                    begun += 1
                for future in wait(running, BETWEEN_S, FIRST_COMPLETED).done:
                    done[running.pop(future)] = future.result()
                    progress.beat()
                between()
        finally:
            wait(running)
        return [done[n] for n in range(len(items))]
