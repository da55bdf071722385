"""Coding in a worker: batches of requests become answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from nnfs.codec import progress
from nnfs.codec.progress import Stage
from nnfs.errors import CodecError, ModelMissing, PeerGone
from nnfs.workers.catalogue import Served
from nnfs.workers.wire import Answer, Op, Request, Status

log = logging.getLogger(__name__)

FIRST_BATCH = 1 << 20  # plain bytes in a batch, before the codec has said how many it wants
WAITED_FOR = 2  # priorities below it are of work items that somebody waits for, or soon will
BATCH_S = 10.0  # seconds that a batch of theirs may take: long ones hold up the next reader
PATIENCE_S, PATIENCE_SHARE = 0.05, 0.01  # seconds, and share of the time that a batch takes, to wait for more requests
LEAST_BATCH = 1 << 18  # plain bytes per thread: however slow the device, shorter ones are no quicker

Results: TypeAlias = Sequence[bytes | CodecError | None]
Kind: TypeAlias = tuple[int, int, bytes]  # op, codec, model: requests of one kind can go together


class BatchCoder:
    """Codes batches with the codecs of this process, and learns how large a batch may be."""

    def __init__(self, served: Served, most: int, threads: int) -> None:
        """`most`: plain bytes of a batch, however many the codec would take."""
        self._served, self._most, self._threads = served, most, threads
        self._batches: dict[Kind, int] = {}  # most plain bytes at once
        self._paced: dict[Kind, int] = {}  # the same for requests that somebody waits for
        self._seconds: dict[Kind, float] = {}  # that the last batch has taken

    def limit(self, request: Request) -> int:
        """Return the most plain bytes of a batch that begins with this request."""
        key = _kind(request)
        most = min(self._most, self._batches.get(key, FIRST_BATCH))
        return min(most, self._paced.get(key, FIRST_BATCH)) if request.priority < WAITED_FOR else most

    def patience(self, request: Request) -> float:
        """Return the seconds that a batch which nobody waits for may wait for its next request."""
        return min(PATIENCE_S, PATIENCE_SHARE * self._seconds.get(_kind(request), PATIENCE_S / PATIENCE_SHARE))

    def code(self, batch: list[Request], between: Callable[[], None], answer: Callable[[Answer], None]) -> None:
        """Code requests as one batch, and give `answer` their answers, each as soon as it is there.

        An exception that one of the two raises ends the batch.
        """
        head = batch[0]
        progress.stage = Stage.OPENING
        try:
            if head.op == Op.LOAD:
                self._served.load(head.model, head.data)
                codec = None
            else:
                codec = self._served.find(head.codec, head.model)
        except PeerGone:
            raise
        except Exception as error:
            if head.op != Op.LOAD and not isinstance(error, CodecError) and not _is_out_of_memory(error):
                log.exception("codec %d", head.codec)  # a broken installation, most likely
                name = self._served.names().get(head.codec, head.codec)
                error = CodecError(f"codec {name} cannot be opened: {type(error).__name__}: {error}")
            refused = Status.BAD_PAYLOAD if head.op == Op.LOAD else Status.NO_CODEC
            for request in batch:
                answer(_failure(request, error, refused))
            return
        finally:
            progress.stage = Stage.CODING
        if codec is None:
            answer(Answer(head.number, Status.OK))
            return
        self._batches.setdefault(_kind(head), codec.batch)
        work: Callable[..., Results] = codec.encode_many if head.op == Op.ENCODE else codec.decode_many
        start = time.monotonic()
        self._attempt(batch, partial(work, between=between), answer)
        seconds, plain = time.monotonic() - start, sum(request.plain for request in batch)
        self._seconds[_kind(head)] = seconds
        self._paced[_kind(head)] = next_batch(self._paced.get(_kind(head), 0), plain, seconds, self._threads)

    def _attempt(self, batch: list[Request], work: Callable[..., Results], answer: Callable[[Answer], None]) -> None:
        """Code a batch. If it fails as a whole, code what is left of it by halves.

        Bad data or lack of memory then fails few requests.
        """
        left = dict(enumerate(batch))

        def tell(place: int, result: bytes | CodecError | None) -> None:
            request = left.get(place)
            if request is not None:
                found = _answer(request, result)
                del left[place]
                answer(found)

        try:
            jobs = [request.data if request.op == Op.ENCODE else (request.data, request.plain) for request in batch]
            results = work(jobs, tell=tell)
            for place, result in zip(range(len(batch)), results, strict=True):
                tell(place, result)
            return
        except PeerGone:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            if len(batch) == 1:
                for request in left.values():
                    answer(_failure(request, error))
                return
            if _is_out_of_memory(error):
                key = _kind(batch[0])
                most = max(request.plain for request in batch) * (len(batch) // 2)
                self._batches[key] = min(self._batches[key], most)
        rest = list(left.values())
        for half in (rest[: len(rest) // 2], rest[len(rest) // 2 :]):
            if half:
                self._attempt(half, work, answer)


def _kind(request: Request) -> Kind:
    return request.op, request.codec, request.model


def next_batch(most: int, plain: int, seconds: float, threads: int) -> int:
    """Return the most plain bytes of batches that somebody waits for, once one of `plain` bytes took `seconds`.

    Twice as many as it, but no more than take `BATCH_S`. One that took less leaves the limit where it was: a chunk that
    somebody waited for does not tell how many together would be too many.
    """
    able = plain * BATCH_S / max(seconds, 1e-3)
    if seconds <= BATCH_S:
        able = max(most, min(2 * plain, able))
    return max(int(able), LEAST_BATCH * threads)


def _answer(request: Request, result: bytes | CodecError | None) -> Answer:
    """Return the answer for a codec's result. Raises `ValueError` for a result that no codec may give."""
    if isinstance(result, CodecError):
        return _failure(request, result)
    if result is None and request.op == Op.ENCODE:
        return Answer(request.number, Status.NO_GAIN)
    if result is None or (request.op == Op.DECODE and len(result) != request.plain):
        raise ValueError(f"{'no' if result is None else len(result)} bytes decoded, not {request.plain}")
    return Answer(request.number, Status.OK, result)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's, not imported here


def _failure(request: Request, error: Exception, refused: Status = Status.BAD_PAYLOAD) -> Answer:
    """Return the answer for an exception; `refused` is the status of a `CodecError`."""
    text = str(error)
    if isinstance(error, ModelMissing):
        status = Status.NO_MODEL
    elif isinstance(error, CodecError):
        status = refused
    elif isinstance(error, ModuleNotFoundError):  # numba, most likely: the first kernel that is called imports it
        status, text = Status.NO_CODEC, f"the codec needs {error.name or text}, which is not installed"
    else:
        status = Status.NO_MEMORY if _is_out_of_memory(error) else Status.BUG
        text = f"{type(error).__name__}: {text}"
        log.error("work item failed", exc_info=error)
    return Answer(request.number, status, text.encode(errors="replace")[:1000])
