"""Recompression: cold chunks get new payloads, which are proved and swapped under the same block numbers.

A chunk's way: fetch and verify its plain bytes; encode in a worker; decode again, stepwise, in a worker; compare the
BLAKE2b-512 here; swap the payload in a commit. One chunk of every batch is decoded by the reference engine as well, and
none of the batch is swapped before that agrees. A crash anywhere leaves the old payload; what was swapped is known by
its codec, and files that are done are marked as settled.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

import trio
import trio.lowlevel

from nnfs.background.busy import Duty, wait_while_busy
from nnfs.background.chunkrecompression import (
    DECODING,
    ENCODING,
    LOOKING,
    PROVING,
    THAWING,
    ChunkRecompression,
    Looked,
)
from nnfs.background.encoder import ColdEncoder
from nnfs.background.expectation import Way, expect
from nnfs.background.flight import Aim, Flight
from nnfs.background.interfaces import Parts
from nnfs.background.modelchanges import ModelChanges
from nnfs.background.selection import Selection
from nnfs.background.swaps import Swaps
from nnfs.background.tasks import Task
from nnfs.blockio.cold import READ, cores
from nnfs.codec.base import CM, NEURAL, RUNGS
from nnfs.config import Options
from nnfs.errors import (
    BlockDamaged,
    CodecError,
    CodecUnavailable,
    EnginesDisagree,
    KillsWorkers,
    ModelMissing,
    NnfsError,
    NoCodecRuns,
    OutOfSpace,
    RecordDamaged,
    again,
    kept,
)
from nnfs.fs.candidates import Candidate, Piece, never
from nnfs.fs.policy import Rules

log = logging.getLogger(__name__)

T = TypeVar("T")

STARTING, MEASURING = "starting a worker", "measuring"
PER_THREAD = 8 << 20  # plain bytes under way: four of the network's batches, since one is encoded, one is decoded, and
WINDOW, WINDOW_MOST = 16 << 20, 64 << 20  # one of each must wait, or the worker takes what little there is
WINDOW_LEAST, WINDOW_SHARE = 2 << 20, 64  # where memory is short: so much, and one part in so many of it
UNCHECKED = 16 << 20  # bytes of payloads that wait for the reference
LEAST = 8 << 10  # bytes that a chunk counts for at least in the window
TOGETHER, MOST_TOGETHER = 128 << 10, 32  # plain bytes and number of small chunks that are looked at together
WAIT_S = 1.0  # at most, until a task notices that it is cancelled
FAILURES = 8  # failures of workers in a row after which the task fails
CHUNK_FAILURES = 3  # failures of a payload after which background passes leave it alone until the next mount
FAILURES_KEPT = 10_000  # payloads whose failures are remembered
_NUMBERS = re.compile(r"\d+")
_STAYS = "inode %d, chunk %d stays as it is: %s"


def window(options: Options) -> int:
    """Return the plain bytes that may be under way at a time."""
    if options.is_short_of_memory:
        return max(WINDOW_LEAST, options.memory // WINDOW_SHARE)
    return min(max(WINDOW, PER_THREAD * (options.threads or cores())), WINDOW_MOST)


async def nothing() -> None:
    """Do nothing: the `between` of a task that nothing interrupts."""


class Recompression:
    """Takes the candidates of one task after the other through recompression, a window of chunks at a time."""

    def __init__(
        self, parts: Parts, models: ModelChanges, encoder: ColdEncoder, options: Options,
        *, busy: Callable[[], bool], changed: Callable[[list[int]], None], last_read: Callable[[int], int] = never,
    ) -> None:  # fmt: skip
        self._reads, self._models, self._encoder = parts.reads, models, encoder
        self._options, self._busy = options, busy
        self.chunks = ChunkRecompression(parts, models, encoder)
        self.swaps = Swaps(parts.commits, encoder, changed)
        self._selection = Selection(parts.store, models.known, encoder, options, last_read)
        self._chunk_failures: Counter[int] = Counter()  # by payload
        self.duty = Duty(options.background(cores())[1])
        self._window = window(options)

    def set_options(self, options: Options) -> None:
        """Take over other options, from the next walk on."""
        self._options, self._window = options, window(options)
        self._selection.set_options(options)

    def forget_failures(self) -> None:
        """Forget failures, so that chunks that have failed are tried again."""
        self._chunk_failures.clear()

    async def walk(self, task: Task, ino: int, aim: Aim) -> AsyncGenerator[Piece]:
        """Yield the candidates at and below an inode, file by file."""
        walk = self._selection.walk(ino, aim)
        task.phase = "looking for cold chunks" if not aim.thaw else "looking for thawed chunks"
        while True:
            await task.checkpoint()
            pieces, seconds = await trio.to_thread.run_sync(_timed, walk.next, limiter=self._encoder.threads)
            task.looked += seconds
            if pieces is None:
                return
            for piece in pieces:
                yield piece
            await trio.lowlevel.checkpoint()

    async def run(
        self, task: Task, ino: int, aim: Aim, between: Callable[[], Awaitable[None]] = nothing
    ) -> None:  # fmt: skip
        """Recompress, or thaw, the data that `aim` selects at and below an inode. Raises the error that ended it early.

        A background task calls `between` before each chunk that it takes up.
        """
        if task.number:  # a user waits for it: count first, for the progress
            async for piece in self.walk(task, ino, aim):
                task.total_chunks += len(piece.candidates)
                for candidate in piece.candidates:
                    task.total_bytes += candidate.block.plain
                    expect(task, candidate.block, thaw=aim.thaw, codec=self._main(aim))
            task.note = "" if task.total_chunks else aim.why_nothing(self._options)
            task.costs = functools.partial(self._encoder.costs, READ)
        flight = Flight(task, aim, between, flushed=time.monotonic())
        async with trio.open_nursery() as nursery:
            try:
                await self._feed(flight, ino, nursery)
            except NnfsError as error:
                flight.error = kept(error)
            if flight.error is not None:
                nursery.cancel_scope.cancel()
        try:
            await self.swaps.flush(flight, force=True)  # proved payloads are kept, also when the task ends early
        except NnfsError as error:
            flight.error = flight.error or kept(error)
        if flight.error is not None:
            raise again(flight.error)
        for payload in flight.refused:
            self._count_failure(payload, 1)
        if task.total_chunks and not aim.thaw:
            task.note = self._encoder.outages.summary()
        if task.number and not flight.is_any_done and flight.last_failure is not None:
            raise flight.last_failure
        if self._selection.retired:
            await self._models.collect()

    def _main(self, aim: Aim) -> int:
        """Return the codec that most chunks are tried with."""
        return RUNGS[aim.rung - 1] if aim.rung else NEURAL if self._options.neural else CM

    async def _feed(self, flight: Flight, ino: int, nursery: trio.Nursery) -> None:
        """Start a task for each chunk, as many as fit the window, and wait for the last one. Raises `flight.error`."""
        async with contextlib.aclosing(self.walk(flight.task, ino, flight.aim)) as walk:
            async for piece in walk:
                self._tell(flight)
                flight.open.setdefault(piece.ino, 1)
                for candidate in piece.candidates:
                    if flight.task.number == 0 and self.is_put_aside(candidate):
                        flight.failed.add(piece.ino)
                        continue
                    if flight.has_taken(candidate):
                        flight.failed.add(piece.ino)  # the result is not known yet: the next pass looks again
                        continue
                    await self._admit(flight, candidate, nursery)
                    flight.open[piece.ino] += 1
                    flight.together.append((candidate, piece.rules))
                    if _are_many(flight.together):
                        self._begin(flight, nursery)
                if piece.last:
                    flight.ends[piece.ino] = piece
                    flight.close(piece.ino)
                await self.swaps.flush(flight)
        self._begin(flight, nursery)
        while flight.chunks:
            await self._wait(flight)

    def _begin(self, flight: Flight, nursery: trio.Nursery) -> None:
        """Begin with the chunks that were admitted."""
        if flight.together:
            nursery.start_soon(self._look, flight, flight.together, nursery)
            flight.together = []

    async def _look(self, flight: Flight, together: list[tuple[Candidate, Rules]], nursery: trio.Nursery) -> None:
        """Load chunks, and start a task for each."""
        looked: list[Looked | NnfsError | None] = [None] * len(together)
        try:
            with flight.stage(LOOKING):
                looked = await self.chunks.look([candidate for candidate, _ in together])
        finally:  # also when the task is cancelled: each of them notes its end
            for (candidate, rules), found in zip(together, looked, strict=True):
                nursery.start_soon(self._one, flight, candidate, rules, found)

    async def _wait(self, flight: Flight) -> None:
        """Wait until a chunk is done, or a flush is due. Raises `flight.error`."""
        flight.moved = trio.Event()
        self._tell(flight)
        with trio.move_on_after(WAIT_S):
            await flight.moved.wait()
        self._tell(flight)
        await flight.task.checkpoint()
        if flight.error is not None:
            raise again(flight.error)
        await self.swaps.flush(flight)

    def _tell(self, flight: Flight) -> None:
        """Set the phase of the task, and stop its clock while no chunk gets on."""
        task, stages = flight.task, flight.stages
        if self._encoder.measuring:
            task.phase = MEASURING
        elif (stages[ENCODING] or stages[PROVING] or stages[DECODING]) and self._encoder.waits_for(flight.worker):
            task.phase = STARTING
        elif flight.aim.thaw:
            task.phase = THAWING
        else:
            task.phase = PROVING if stages[PROVING] and not stages[ENCODING] else ENCODING
        if task.phase in (MEASURING, STARTING):
            task.left.stop(time.monotonic())
        else:
            task.left.go(time.monotonic())

    async def _admit(self, flight: Flight, candidate: Candidate, nursery: trio.Nursery) -> None:
        """Wait until there is room for a chunk in the window, and the mount is not busy."""
        cost = max(LEAST, candidate.block.plain)
        await flight.task.checkpoint()
        if flight.plain + cost > self._window or (flight.task.number == 0 and (self._busy() or self.duty.is_over())):
            self._begin(flight, nursery)  # this may take long
        while flight.chunks and (flight.plain + cost > self._window or flight.ready_stored > UNCHECKED):
            await self._wait(flight)
        if flight.task.number == 0:
            await flight.between()
            await wait_while_busy(self._busy, functools.partial(self._between, flight))
            if self.duty.is_over():
                while flight.chunks:
                    await self._wait(flight)
                await self.duty.rest(functools.partial(self._between, flight))
        flight.plain += cost
        flight.chunks += 1

    async def _between(self, flight: Flight) -> None:
        await flight.task.checkpoint()
        await self.swaps.flush(flight)

    async def _one(self, flight: Flight, candidate: Candidate, rules: Rules, looked: Looked | NnfsError | None) -> None:
        """Recompress one chunk, and note the result."""
        is_looked_at = False  # not when the task is cancelled in the middle of it
        way = Way(flight.task, candidate.block, thaw=flight.aim.thaw)
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            result = await self.chunks.recompressed(
                flight, candidate, rules, way, looked, retired=candidate.block.model in self._selection.retired
            )
            flight.failures, flight.is_any_done, is_looked_at = 0, True, True
            if result is not None:
                flight.ready.append(result)
                flight.ready_bytes += candidate.block.plain
                flight.ready_stored += len(result.swap.data or b"")
        except (BlockDamaged, RecordDamaged) as error:
            self._reads.damaged.add(candidate.number, str(error))
            flight.task.failed_chunks, is_looked_at = flight.task.failed_chunks + 1, True
            log.error("inode %d, chunk %d, block %d: %s", candidate.ino, candidate.chunk, candidate.number, error)
        except NnfsError as error:
            self._failed(flight, candidate, error)
        finally:
            if not is_looked_at:
                flight.failed.add(candidate.ino)
            flight.plain -= max(LEAST, candidate.block.plain)
            flight.chunks -= 1
            flight.task.done_chunks += 1
            flight.task.done_bytes += candidate.block.plain
            way.end()
            flight.close(candidate.ino)
            flight.moved.set()

    def _failed(self, flight: Flight, candidate: Candidate, error: NnfsError) -> None:
        """Note that a chunk could not be recompressed, and decide whether the task goes on."""
        flight.task.failed_chunks += 1
        flight.last_failure = kept(error)
        is_missing = isinstance(error, ModelMissing)
        # Nothing is wrong with workers: chunks with another model or codec may do.
        flight.failures += not (is_missing or isinstance(error, CodecUnavailable))
        if is_missing or isinstance(error, KillsWorkers):
            self._count_failure(candidate.block.payload, CHUNK_FAILURES if is_missing else 1)
        elif isinstance(error, CodecError):
            flight.refused.append(candidate.block.payload)
        kind = _NUMBERS.sub("#", str(error))
        level = logging.DEBUG if kind in flight.told else logging.WARNING
        flight.told.add(kind)
        log.log(level, _STAYS, candidate.ino, candidate.chunk, error)
        if isinstance(error, EnginesDisagree):
            flight.drop(flight.ready)
            flight.ready.clear()
            flight.error = error
        if flight.failures >= FAILURES or isinstance(error, OutOfSpace | NoCodecRuns):
            flight.error = flight.error or error

    async def size(self, candidate: Candidate, rules: Rules, aim: Aim, worker: str) -> int | None:
        """Return the bytes that a chunk would take after a task with this aim, None when the chunk is gone."""
        try:
            return await self.chunks.encoded_size(candidate, rules, aim, worker)
        except KillsWorkers as error:
            self._count_failure(candidate.block.payload, 1)
            log.warning(_STAYS, candidate.ino, candidate.chunk, error)
            raise

    def is_put_aside(self, candidate: Candidate) -> bool:
        """Return whether background passes leave a chunk alone because it has failed too often."""
        return self._chunk_failures[candidate.block.payload] >= CHUNK_FAILURES

    def _count_failure(self, payload: int, times: int) -> None:
        """Count a failure of a chunk itself. An outage of workers, which all chunks share, does not count."""
        self._chunk_failures[payload] += times
        if len(self._chunk_failures) > FAILURES_KEPT:
            del self._chunk_failures[next(iter(self._chunk_failures))]

    def gain(self, zstd_bytes: int) -> int | None:
        """Return an estimate of the hot tier's bytes that would be saved, None while nothing has been compressed."""
        before, after = self.swaps.before, self.swaps.after
        return zstd_bytes * (before - after) // before if before else None


def _are_many(together: list[tuple[Candidate, Rules]]) -> bool:
    """Return whether these chunks are enough to be looked at together."""
    return len(together) >= MOST_TOGETHER or sum(candidate.block.plain for candidate, _ in together) >= TOGETHER


def _timed(function: Callable[[], T]) -> tuple[T, float]:
    """Run a function. Return its result and its seconds, without the wait for a thread."""
    began = time.monotonic()
    return function(), time.monotonic() - began
