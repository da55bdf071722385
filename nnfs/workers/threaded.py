"""The adapter from a codec to a cold codec: it codes chunk by chunk, on a few threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from nnfs.codec import progress
from nnfs.codec.base import Codec, Result, Tell, nothing, untold
from nnfs.codec.threads import on_threads
from nnfs.errors import CodecError

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
        found: dict[int, R] = {}
        with closing(on_threads(self._pool, self._threads, lambda item, _: work(item), items, between)) as done:
            for place, result in done:
                found[place] = result
                tell(place, result)
        return [found[place] for place in range(len(items))]
