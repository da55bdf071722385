"""Recompression: what has gone cold is coded again, proved, and swapped under the same block number.

A chunk's way: fetch and verify its plain bytes; encode in a worker; decode again, stepwise, in a worker; compare the
BLAKE2b-512 here; swap the payload in a commit. One chunk of every batch is decoded by the reference engine as well, and
none of the batch is swapped before that agrees. A crash anywhere leaves the old payload; what was swapped is known by
its codec, and files that are done are marked.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import trio
import trio.lowlevel

from nnfs import codec
from nnfs.background.dryrun import Sample
from nnfs.background.encoder import ColdEncoder, Proof
from nnfs.background.expectation import Way, expect
from nnfs.background.flight import Aim, Flight, Ready
from nnfs.background.modelchanges import ModelChanges
from nnfs.background.selection import Selection
from nnfs.background.swaps import Swaps
from nnfs.background.tasks import Cancelled, Task
from nnfs.blockio.cold import READ, Cold
from nnfs.blockio.commit import Committer
from nnfs.blockio.reader import Reader, decode_verified
from nnfs.codec.base import CM, FIRST_COLD, NEURAL
from nnfs.config import Options
from nnfs.errors import (
    BlockDamaged,
    CodecError,
    CodecUnavailable,
    EnginesDisagree,
    JobKills,
    ModelMissing,
    NnfsError,
    NoCodecRuns,
    OutOfSpace,
    RecordDamaged,
    again,
    kept,
)
from nnfs.fs import swapping
from nnfs.fs.candidates import Candidate, never
from nnfs.fs.policy import Policy, Rules
from nnfs.store.blocks import Recode, load_block
from nnfs.store.env import Store
from nnfs.store.schema import ROOT_INO, Block, State
from nnfs.workers.pool import BACKGROUND

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOKING, DECODING, ENCODING, PROVING, THAWING = "looking", "decoding", "encoding", "proving", "thawing"  # phases
STARTING, MEASURING = "starting a worker", "measuring"
WINDOW = 4 << 20  # plain bytes under way: two batches of a worker
IN_FLIGHT = 400  # chunks under way; a worker takes 512
LEAST = 8 << 10  # bytes that a chunk counts for at least in the window
BUSY_S, BUSY_MOST = 0.25, 40  # a busy mount: seconds between two looks, looks before one batch goes on all the same
WAIT_S = 1.0  # at most, until a task notices that it is cancelled
FAILURES = 8  # of workers in a row, then the task fails
CHUNK_FAILURES = 3  # with a payload, then background passes leave it alone until the next mount
FAILURES_KEPT = 10_000  # payloads of which that is known
REST, REST_MOST = 30.0, 3600.0  # seconds without background passes after the first failure, doubled by each further one
_NUMBERS = re.compile(r"\d+")


class Recompression:
    """Makes tasks of `nnfs compact` and `nnfs thaw`, and of time passing."""

    def __init__(
        self, store: Store, committer: Committer, reader: Reader, cold: Cold, models: ModelChanges,
        encoder: ColdEncoder, options: Options,
        *, busy: Callable[[], bool], changed: Callable[[list[int]], None],
        last_read: Callable[[int], int] = never,
    ) -> None:  # fmt: skip
        self._store, self._committer, self._reader, self._cold, self._models = store, committer, reader, cold, models
        self._options, self._busy, self._last_read = options, busy, last_read
        self._encoder = encoder
        self.swaps = Swaps(committer, reader, encoder, changed)
        self._selection = Selection(store, models.known, encoder, options, last_read)
        self._rest_until, self._rests = 0.0, 0  # after failures, background passes wait
        self._chunk_failures: Counter[int] = Counter()  # by payload
        self.last_error = ""

    def set_options(self, options: Options) -> None:
        """Go by other options from the next walk on."""
        self._options = options
        self._selection = Selection(self._store, self._models.known, self._encoder, options, self._last_read)

    # -- tasks

    def compact(self, ino: int, *, everything: bool, parent: int = 0) -> Callable[[Task], Any]:
        """Return the work of `nnfs compact` on an inode; `parent` is the directory of a file, for its policy."""
        if everything:
            return lambda task: self._run(task, ino, Aim(everything=True, marks=False, tries=False, parent=parent))
        return lambda task: self._pass(task, ino, parent)

    def thaw(self, ino: int, parent: int = 0) -> Callable[[Task], Any]:
        """Return the work of `nnfs thaw`."""
        return lambda task: self._run(task, ino, Aim(thaw=True, everything=True, marks=False, parent=parent))

    async def background(self, task: Task) -> None:
        """Look for what has gone cold meanwhile."""
        if time.monotonic() < self._rest_until:
            return
        try:
            await self._pass(task, ROOT_INO)
        except Cancelled:
            raise
        except NnfsError as error:
            self.last_error = str(error)
            self._rest_until = time.monotonic() + min(REST_MOST, REST * 2.0 ** min(self._rests, 20))
            self._rests += 1
            raise
        self.last_error, self._rests = "", 0

    async def _pass(self, task: Task, ino: int, parent: int = 0) -> None:
        """Look at what has not been looked at, and at everything where policies or models have changed since."""
        with task.cancellable():
            await self._encoder.revive(self._store.state.settings)
        if self._has_changed():
            with task.cancellable():
                await self._weigh()
            begin = functools.partial(swapping.begin_pass, digest=self._encoder.digest(), fast=self._encoder.fast)
            await self._committer.amend(begin)
        unsettles = bool(self._store.state.flags & State.FLAG_UNSETTLING)
        await self._run(task, ino, Aim(marks=not unsettles, parent=parent))
        if unsettles and ino == ROOT_INO:
            await self._committer.amend(swapping.end_pass)

    def _has_changed(self) -> bool:
        """Whether what recompression depends on has changed since a pass was begun because of that."""
        state = self._store.state
        is_flagged = bool(state.flags & State.FLAG_UNSETTLED)
        return is_flagged or swapping.has_changed(state.settings, self._encoder.digest(), self._encoder.fast)

    async def _weigh(self) -> None:
        """Find out whether the network may take what the classical codec has, before that is looked at again."""
        with self._store.read() as snapshot:
            matters = self._options.neural and swapping.has_blocks(snapshot, CM)
        if matters:
            try:
                await self._encoder.fast_enough(NEURAL)
            except NnfsError as error:
                log.debug("the network's speed is not known: %s", error)

    def try_again(self) -> None:
        """Look again at what has failed: a model has come."""
        self._chunk_failures.clear()
        self._encoder.outages.clear()
        self._rest_until, self._rests = 0.0, 0

    async def estimate(self, task: Task, ino: int, *, everything: bool, parent: int = 0) -> None:
        """Work of `nnfs compact --dry-run`: count what would be looked at, and encode a sample of it."""
        void = everything or self._has_changed()
        unsettles = bool(self._store.state.flags & State.FLAG_UNSETTLING)
        aim = Aim(everything=everything, marks=not (void or unsettles), tries=not void, parent=parent)
        sample = Sample()
        async for piece in self._walk(task, ino, aim):
            for candidate in piece.candidates:
                task.total_chunks += 1
                task.total_bytes += candidate.block.plain
                task.stored_before += candidate.block.stored
                sample.offer(candidate, piece.rules)
        task.note = "" if task.total_chunks else aim.why_nothing(self._options)
        task.phase = "encoding a sample"
        sizes = await sample.sizes(task, functools.partial(self._encoded_size, everything=everything))
        before, after = sum(b for b, _ in sizes), sum(a for _, a in sizes)
        task.stored_after = task.stored_before * after // before if before else task.stored_before
        task.result = {
            "chunks": task.total_chunks, "plain_bytes": task.total_bytes, "stored_bytes": task.stored_before,
            "estimated_bytes": task.stored_after, "sampled_chunks": len(sizes),
        }  # fmt: skip

    async def _encoded_size(self, candidate: Candidate, rules: Rules, *, everything: bool) -> int | None:
        """Return the bytes that a chunk would take; None: it is gone."""
        found = await self._plain(candidate, READ)
        if found is None:
            return None
        block = candidate.block
        best = await self._encoder.encode(found[0], block, rules, everything=everything, worker=READ)
        return block.stored if best is None else len(best.data)

    # -- the flight

    async def _walk(self, task: Task, ino: int, aim: Aim) -> Any:
        walk = self._selection.walk(ino, aim)
        task.phase = "looking for cold chunks" if not aim.thaw else "looking for thawed chunks"
        while True:
            await task.checkpoint()
            pieces, seconds = await self._in_thread(_timed, walk.next)
            task.looked += seconds
            if pieces is None:
                return
            for piece in pieces:
                yield piece
            await trio.lowlevel.checkpoint()

    async def _run(self, task: Task, ino: int, aim: Aim) -> None:
        if task.number:  # somebody looks: count first
            async for piece in self._walk(task, ino, aim):
                task.total_chunks += len(piece.candidates)
                for candidate in piece.candidates:
                    task.total_bytes += candidate.block.plain
                    expect(task, candidate.block, thaw=aim.thaw, neural=self._options.neural)
            task.note = "" if task.total_chunks else aim.why_nothing(self._options)
            task.costs = functools.partial(self._encoder.costs, READ)
        flight = Flight(task, aim, flushed=time.monotonic())
        async with trio.open_nursery() as nursery:
            try:
                await self._feed(flight, ino, nursery)
            except NnfsError as error:
                flight.error = kept(error)
            if flight.error is not None:
                nursery.cancel_scope.cancel()
        try:
            await self.swaps.flush(flight, force=True)  # what is proved is kept, also when the task ends early
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

    async def _feed(self, flight: Flight, ino: int, nursery: trio.Nursery) -> None:
        """Start a task for each chunk, as many as fit the window, and wait for the last one. Raises `flight.error`."""
        async with contextlib.aclosing(self._walk(flight.task, ino, flight.aim)) as walk:
            async for piece in walk:
                self._tell(flight)
                flight.open.setdefault(piece.ino, 1)
                for candidate in piece.candidates:
                    if flight.task.number == 0 and self._chunk_failures[candidate.block.payload] >= CHUNK_FAILURES:
                        flight.failed.add(piece.ino)
                        continue
                    if flight.has_taken(candidate):
                        flight.failed.add(piece.ino)  # what comes of it is not known yet: the next pass sees
                        continue
                    await self._admit(flight, candidate)
                    flight.open[piece.ino] += 1
                    nursery.start_soon(self._one, flight, candidate, piece.rules)
                if piece.last:
                    flight.ends[piece.ino] = piece
                    flight.close(piece.ino)
                await self.swaps.flush(flight)
        while flight.chunks:
            await self._wait(flight)

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
        """Say what the task is at, and hold its clock where that is no work on chunks."""
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

    async def _admit(self, flight: Flight, candidate: Candidate) -> None:
        """Wait until a chunk may be taken in hand."""
        cost, looks = max(LEAST, candidate.block.plain), 0
        await flight.task.checkpoint()
        while flight.chunks and (flight.plain + cost > WINDOW or flight.chunks >= IN_FLIGHT):
            await self._wait(flight)
        while flight.task.number == 0 and looks < BUSY_MOST and self._busy():
            looks += 1
            await trio.sleep(BUSY_S)
            await flight.task.checkpoint()
            await self.swaps.flush(flight)
        flight.plain += cost
        flight.chunks += 1

    async def _one(self, flight: Flight, candidate: Candidate, rules: Rules) -> None:
        """One chunk's way."""
        is_looked_at = False  # not when the task is cancelled in the middle of it
        way = Way(flight.task, candidate.block, thaw=flight.aim.thaw)
        try:
            result = await self._recompressed(flight, candidate, rules, way)
            flight.failures, flight.is_any_done, is_looked_at = 0, True, True
            if result is not None:
                flight.ready.append(result)
                flight.ready_bytes += candidate.block.plain
        except (BlockDamaged, RecordDamaged) as error:
            self._reader.damaged[candidate.number] = str(error)
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
        """A chunk stays as it is, because of something that is not wrong with itself."""
        flight.task.failed_chunks += 1
        flight.last_failure = kept(error)
        is_missing = isinstance(error, ModelMissing)
        # Nothing is wrong with workers: chunks with another model or codec may do.
        flight.failures += not (is_missing or isinstance(error, CodecUnavailable))
        if is_missing or isinstance(error, JobKills):
            self._count_failure(candidate.block.payload, CHUNK_FAILURES if is_missing else 1)
        elif isinstance(error, CodecError):
            flight.refused.append(candidate.block.payload)
        kind = _NUMBERS.sub("#", str(error))
        level = logging.DEBUG if kind in flight.told else logging.WARNING
        flight.told.add(kind)
        log.log(level, "inode %d, chunk %d stays as it is: %s", candidate.ino, candidate.chunk, error)
        if isinstance(error, EnginesDisagree):
            flight.drop(flight.ready)
            flight.ready.clear()
            flight.error = error
        if flight.failures >= FAILURES or isinstance(error, OutOfSpace | NoCodecRuns):
            flight.error = flight.error or error

    def _count_failure(self, payload: int, times: int) -> None:
        """Something is wrong with a chunk: an outage of workers, which they all share, does not count."""
        self._chunk_failures[payload] += times
        if len(self._chunk_failures) > FAILURES_KEPT:
            del self._chunk_failures[next(iter(self._chunk_failures))]

    # -- one chunk

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(function, *args, limiter=self._encoder.threads)

    async def _plain(self, candidate: Candidate, worker: str) -> tuple[bytes, int] | None:
        """Return a chunk's verified plain bytes and the number of the payload that they came from; None: it is gone."""
        loaded = await self._in_thread(_load, self._store, candidate.number)
        if loaded is None:
            return None
        block, payload = loaded
        if block.codec >= FIRST_COLD:
            plain = await self._cold.decode(candidate.number, block, payload, priority=BACKGROUND, worker=worker)
        else:
            plain = await self._in_thread(decode_verified, candidate.number, block, payload)
        return plain, block.payload

    async def _recompressed(self, flight: Flight, candidate: Candidate, rules: Rules, way: Way) -> Ready | None:
        block = candidate.block

        def ready(codec_id: int = 0, model: int = 0, data: bytes | None = None, proof: Proof | None = None) -> Ready:
            owner = (candidate.ino, candidate.chunk)
            return Ready(Recode(candidate.number, block.payload, owner, codec_id, model, data), block, proof)

        with flight.stage(DECODING if block.codec >= FIRST_COLD else LOOKING):
            found = await self._plain(candidate, flight.worker)
        if block.codec >= FIRST_COLD:
            way(f"decode {codec.NAMES[block.codec]}")
        way("look")
        if found is None or found[1] != block.payload:
            return None  # somebody was faster
        plain = found[0]
        if flight.aim.thaw or rules.policy is Policy.HOT:
            return ready(*await self._hot(plain))
        leave = block.model in self._selection.retired
        with flight.stage(ENCODING):
            best = await self._encoder.encode(
                plain, block, rules, everything=flight.aim.everything, leave=leave, worker=flight.worker, note=way
            )
        if best is None:
            return ready(*await self._hot(plain)) if leave else ready()
        with flight.stage(PROVING):
            proof = await self._encoder.prove(block, best, flight.worker, way)
        model = 0
        if best.codec == NEURAL:
            model = await self._models.keep(best.model)
            flight.models[model] = best.model
        return ready(best.codec, model, best.data, proof)

    async def _hot(self, plain: bytes) -> tuple[int, int, bytes]:
        """Return codec, model and payload in the hot tier."""
        codec_id, data = await self._in_thread(codec.encode_hot, plain)
        return codec_id, 0, data

    def gain(self, zstd_bytes: int) -> int | None:
        """Return about how many of the hot tier's bytes would be saved; None while nothing has been compressed."""
        before, after = self.swaps.before, self.swaps.after
        return zstd_bytes * (before - after) // before if before else None

    def report(self) -> dict[str, Any]:
        """Return what `nnfs status` shows of recompression."""
        error = self._encoder.refuted or self.last_error
        return {"policy": self._options.policy, "saved_bytes": self.swaps.saved, "last_error": error}


def _timed(function: Callable[[], T]) -> tuple[T, float]:
    """Return what a function does and how long it took, without the wait for a thread."""
    began = time.monotonic()
    return function(), time.monotonic() - began


def _load(store: Store, number: int) -> tuple[Block, bytes] | None:
    """Return a block's header and payload, None when it is gone. Raises `StoreDamaged`."""
    with store.read() as snapshot:
        block = load_block(snapshot, number)
        if block is None:
            return None
        return block, snapshot.payload(block.payload, block.stored)
