"""Recompression: what has gone cold is coded again, proved, and swapped under the same block number.

A chunk's way: fetch and verify its plain bytes; encode in a worker; decode again, stepwise, in a worker; compare the
BLAKE2b-512 here; swap the payload in a commit. One chunk of every batch is decoded by the reference engine as well. A
crash anywhere leaves the old payload; what was swapped is known by its codec, and files that are done are marked.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio
import trio.lowlevel

from nnfs import codec
from nnfs.blockio.cold import COMPACT, READ, Cold
from nnfs.blockio.commit import Committer
from nnfs.blockio.reader import Reader, decode_verified
from nnfs.codec.base import FIRST_COLD, NEURAL
from nnfs.codec.pool import BACKGROUND
from nnfs.config import Options
from nnfs.errors import BlockDamaged, NnfsError, OutOfSpace, RecordDamaged
from nnfs.fs import policy, recode
from nnfs.fs.candidates import Ages, Candidate, Piece, Walk
from nnfs.fs.policy import Policy, Rules
from nnfs.mount.encoder import ColdEncoder
from nnfs.mount.jobs import Cancelled, Job
from nnfs.mount.models import Models
from nnfs.store import models
from nnfs.store.blocks import Recode, load_block
from nnfs.store.env import Store
from nnfs.store.schema import ROOT_INO, Block, Inode, State

log = logging.getLogger(__name__)

WINDOW = 4 << 20  # plain bytes under way: two batches of a worker
IN_FLIGHT = 400  # chunks under way; a worker takes 512
LEAST = 8 << 10  # bytes that a chunk counts for at least in the window
FLUSH_BYTES, FLUSH_S = 4 << 20, 10.0  # plain bytes, seconds: then swaps are committed
BUSY_S, BUSY_MOST = 0.25, 40  # a busy mount: seconds between two looks, looks before one batch goes on all the same
FAILURES = 8  # of workers in a row, then the job fails
SAMPLES = 16  # chunks encoded to estimate a gain
REST, REST_MOST = 30.0, 3600.0  # seconds without background passes after the first failure, doubled by each further one


@dataclass(frozen=True, slots=True)
class Aim:
    """What a job wants."""

    everything: bool = False  # ignore ages, the thaw limit and marks
    thaw: bool = False  # into the hot tier, not out of it
    marks: bool = True  # leave files alone that have been looked at


@dataclass(slots=True)
class _Flow:
    """One job's chunks on their way."""

    job: Job
    aim: Aim
    flushed: float
    bytes: int = 0
    chunks: int = 0
    moved: trio.Event = field(default_factory=trio.Event)
    ready: list[tuple[Recode, Block]] = field(default_factory=list)
    ready_bytes: int = 0
    open: dict[int, int] = field(default_factory=dict)  # ino: chunks under way, 1 more until its last piece came
    failed: set[int] = field(default_factory=set)  # files of which a chunk could not be looked at
    ends: dict[int, Piece] = field(default_factory=dict)
    failures: int = 0  # of workers, in a row
    error: NnfsError | None = None
    changes: dict[int, int] = field(default_factory=dict)  # ino: growth of its stored bytes

    @property
    def worker(self) -> str:
        """Who codes: what a person waits for does not wait for an idle machine. Reads come first in both workers."""
        return READ if self.job.number else COMPACT

    def close(self, ino: int) -> None:
        """One of the things that a file waits for is done."""
        self.open[ino] = self.open.get(ino, 1) - 1


class Compactor:
    """Makes jobs of `nnfs compact` and `nnfs thaw`, and of time passing."""

    def __init__(
        self, store: Store, committer: Committer, reader: Reader, cold: Cold, known: Models,
        encoder: ColdEncoder, options: Options,
        *, busy: Callable[[], bool], changed: Callable[[list[int]], None],
    ) -> None:  # fmt: skip
        self._store, self._committer, self._reader, self._cold, self._models = store, committer, reader, cold, known
        self._options, self._busy, self._changed = options, busy, changed
        self._encoder = encoder
        self._ages = Ages(int(options.write_age * 1e9), int(options.read_age * 1e9))
        self._rest_until, self._rests = 0.0, 0  # after failures, background passes wait
        self.saved = 0  # bytes, by this mount
        self.before = self.after = 0  # stored bytes of what was swapped
        self.last_error = ""

    # -- jobs

    def compact(self, ino: int, *, everything: bool) -> Callable[[Job], Any]:
        """Return the work of `nnfs compact` on a file or directory."""
        return lambda job: self._run(job, ino, Aim(everything=everything, marks=not everything))

    def thaw(self, ino: int) -> Callable[[Job], Any]:
        """Return the work of `nnfs thaw`."""
        return lambda job: self._run(job, ino, Aim(thaw=True, everything=True, marks=False))

    async def background(self, job: Job) -> None:
        """Look for what has gone cold meanwhile."""
        if time.monotonic() < self._rest_until:
            return
        stale = bool(self._store.state.flags & State.FLAG_UNSETTLED)
        try:
            await self._run(job, ROOT_INO, Aim(marks=not stale))
        except Cancelled:
            raise
        except NnfsError as error:
            self.last_error = str(error)
            self._rests += 1
            self._rest_until = time.monotonic() + min(REST_MOST, REST * 2.0 ** min(self._rests, 20))
            raise
        self.last_error, self._rests = "", 0
        if stale:
            await self.unsettle(stale=False)
        with self._store.read() as snapshot:
            retired = any(model.retired for model in models.models(snapshot).values())
        if retired:
            await self._models.collect()

    async def unsettle(self, *, stale: bool = True) -> None:
        """Have the next background pass look at every file again: a policy or a model has changed."""
        await self._committer.amend(functools.partial(recode.unsettle, stale=stale))

    async def estimate(self, job: Job, ino: int, *, everything: bool) -> None:
        """Work of `nnfs compact --dry-run`: count what would be looked at, and encode a sample of it."""
        aim = Aim(everything=everything, marks=not everything)
        chosen: list[tuple[Candidate, Rules]] = []
        chance = random.Random(0)
        async for piece in self._walk(job, ino, aim):
            for candidate in piece.candidates:
                job.total_chunks += 1
                job.total_bytes += candidate.block.plain
                job.stored_before += candidate.block.stored
                place = chance.randrange(job.total_chunks)
                if len(chosen) < SAMPLES:
                    chosen.append((candidate, piece.rules))
                elif place < SAMPLES:
                    chosen[place] = candidate, piece.rules
        job.phase = "encoding a sample"
        sizes: list[tuple[int, int]] = []

        failures: list[NnfsError] = []

        async def one(candidate: Candidate, rules: Rules) -> None:
            try:
                found = await self._plain(candidate, READ)
                if found is not None:
                    block = candidate.block
                    best = await self._encoder.encode(found[0], block, rules, everything=everything, worker=READ)
                    sizes.append((block.stored, block.stored if best is None else len(best.data)))
            except NnfsError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for candidate, rules in chosen:
                nursery.start_soon(one, candidate, rules)
        if failures and not sizes:
            raise failures[0]
        before, after = sum(b for b, _ in sizes), sum(a for _, a in sizes)
        job.stored_after = job.stored_before * after // before if before else job.stored_before
        job.result = {
            "chunks": job.total_chunks, "plain_bytes": job.total_bytes, "stored_bytes": job.stored_before,
            "estimated_bytes": job.stored_after, "sampled_chunks": len(sizes),
        }  # fmt: skip

    # -- choosing

    def _walk_of(self, ino: int, aim: Aim) -> Walk:
        mount = Rules(Policy(self._options.policy))
        with self._store.read() as snapshot:
            rules, _ = policy.inherited(snapshot, ino, mount)
            known = models.models(snapshot)
        numbers = {model.fingerprint: number for number, model in known.items()}
        retired = {number for number, model in known.items() if model.retired}

        def fits(block: Block, rules: Rules) -> bool:
            """Whether a block's codec or model is not the one that it should have."""
            cold = block.codec >= FIRST_COLD
            if aim.thaw or rules.policy is Policy.HOT:
                return cold
            tried = bool(block.flags & Block.FLAG_TRIED)
            if not cold:
                return not (tried and aim.marks)
            if block.codec == NEURAL:
                if block.model in retired:
                    return True
                other = block.model != numbers.get(self._models.wanted(rules.model))
                return other and not tried and (aim.everything or bool(rules.model))
            # The classical codec: where the network may do it, it is given a try, once.
            return not tried and (aim.everything or rules.policy is Policy.COLD)

        return Walk(self._store, ino, rules, functools.partial(self._wanted, aim=aim), fits)

    def _wanted(self, inode: Inode, rules: Rules, now: int, *, aim: Aim) -> bool:
        if aim.thaw or rules.policy is Policy.HOT:
            return aim.thaw or not (aim.marks and inode.flags & Inode.FLAG_SETTLED)
        if aim.marks and inode.flags & Inode.FLAG_SETTLED:
            return False
        return aim.everything or self._ages.cold(inode, now)

    async def _walk(self, job: Job, ino: int, aim: Aim) -> Any:
        walk = self._walk_of(ino, aim)
        job.phase = "looking for cold chunks" if not aim.thaw else "looking for thawed chunks"
        while True:
            await job.checkpoint()
            pieces = await trio.to_thread.run_sync(walk.next)
            if pieces is None:
                return
            for piece in pieces:
                yield piece
            await trio.lowlevel.checkpoint()

    # -- the flow

    async def _run(self, job: Job, ino: int, aim: Aim) -> None:
        if job.number:  # somebody looks: count first
            async for piece in self._walk(job, ino, aim):
                job.total_chunks += len(piece.candidates)
                job.total_bytes += sum(candidate.block.plain for candidate in piece.candidates)
        flow = _Flow(job, aim, flushed=time.monotonic())
        async with trio.open_nursery() as nursery:
            try:
                await self._feed(flow, ino, nursery)
            except NnfsError as error:
                flow.error = error
            if flow.error is not None:
                nursery.cancel_scope.cancel()
        with contextlib.suppress(NnfsError):  # what is proved is kept, also when the job ends early
            await self._flush(flow, force=True)
        if flow.error is not None:
            raise flow.error

    async def _feed(self, flow: _Flow, ino: int, nursery: trio.Nursery) -> None:
        """Start a task for each chunk, as many as fit the window, and wait for the last one. Raises `flow.error`."""
        async for piece in self._walk(flow.job, ino, flow.aim):
            flow.job.phase = "thawing" if flow.aim.thaw else "compressing"
            flow.open.setdefault(piece.ino, 1)
            for candidate in piece.candidates:
                await self._admit(flow, candidate)
                flow.open[piece.ino] += 1
                nursery.start_soon(self._one, flow, candidate, piece.rules)
            if piece.last:
                flow.ends[piece.ino] = piece
                flow.close(piece.ino)
            await self._flush(flow)
        while flow.chunks:
            await self._wait(flow)

    async def _wait(self, flow: _Flow) -> None:
        """Wait until a chunk is done, or a flush is due. Raises `flow.error`."""
        flow.moved = trio.Event()
        with trio.move_on_after(FLUSH_S):
            await flow.moved.wait()
        await flow.job.checkpoint()
        if flow.error is not None:
            raise flow.error
        await self._flush(flow)

    async def _admit(self, flow: _Flow, candidate: Candidate) -> None:
        """Wait until a chunk may be taken in hand."""
        cost, looks = max(LEAST, candidate.block.plain), 0
        await flow.job.checkpoint()
        while flow.chunks and (flow.bytes + cost > WINDOW or flow.chunks >= IN_FLIGHT):
            await self._wait(flow)
        while flow.job.number == 0 and looks < BUSY_MOST and self._busy():
            looks += 1
            await trio.sleep(BUSY_S)
        flow.bytes += cost
        flow.chunks += 1

    async def _one(self, flow: _Flow, candidate: Candidate, rules: Rules) -> None:
        """One chunk's way."""
        try:
            result = await self._recoded(flow, candidate, rules)
            flow.failures = 0
            if result is not None:
                flow.ready.append((result, candidate.block))
                flow.ready_bytes += candidate.block.plain
        except (BlockDamaged, RecordDamaged) as error:
            self._reader.damaged[candidate.number] = str(error)
            flow.job.failed_chunks += 1
            log.error("inode %d, chunk %d, block %d: %s", candidate.ino, candidate.chunk, candidate.number, error)
        except NnfsError as error:
            flow.job.failed_chunks += 1
            flow.failed.add(candidate.ino)
            flow.failures += 1
            log.warning("inode %d, chunk %d stays as it is: %s", candidate.ino, candidate.chunk, error)
            if flow.failures >= FAILURES or isinstance(error, OutOfSpace):
                flow.error = flow.error or error
        finally:
            flow.bytes -= max(LEAST, candidate.block.plain)
            flow.chunks -= 1
            flow.job.done_chunks += 1
            flow.job.done_bytes += candidate.block.plain
            flow.close(candidate.ino)
            flow.moved.set()

    async def _flush(self, flow: _Flow, *, force: bool = False) -> None:
        """Commit the swaps that are ready, and mark the files that are done."""
        due = flow.ready_bytes >= FLUSH_BYTES or time.monotonic() - flow.flushed >= FLUSH_S or len(flow.ready) >= 256
        if not (force or due):
            return
        flow.flushed = time.monotonic()
        ready, flow.ready, flow.ready_bytes = flow.ready, [], 0
        if ready:
            recodes = [one for one, _ in ready]
            size = sum(len(one.data or b"") for one in recodes)
            changes = await self._committer.amend(functools.partial(recode.recode, recodes=recodes), size)
            owners: set[int] = set()
            for (one, block), change in zip(ready, changes, strict=True):
                if change is None or one.data is None:
                    continue
                owners.add(one.owner[0])
                flow.changes[one.owner[0]] = flow.changes.get(one.owner[0], 0) + change
                flow.job.stored_before += block.stored
                flow.job.stored_after += len(one.data)
                flow.job.cold_chunks += one.codec >= FIRST_COLD
                self.before, self.after = self.before + block.stored, self.after + len(one.data)
                self.saved -= change
            self._changed(sorted(owners))
        await self._settle(flow, waiting={one.owner[0] for one, _ in flow.ready})

    async def _settle(self, flow: _Flow, waiting: set[int]) -> None:
        done = [ino for ino in flow.ends if flow.open.get(ino, 0) <= 0 and ino not in waiting]
        files = []
        for ino in done:
            piece = flow.ends.pop(ino)
            flow.open.pop(ino, None)
            growth = flow.changes.pop(ino, 0)
            if ino not in flow.failed:
                files.append(recode.Settled(ino, piece.proof, max(0, piece.stored + growth)))
        if files:
            await self._committer.amend(functools.partial(recode.settle, files=files))

    # -- one chunk

    async def _plain(self, candidate: Candidate, worker: str) -> tuple[bytes, int] | None:
        """Return a chunk's verified plain bytes and the number of the payload that they came from; None: it is gone."""
        loaded = await trio.to_thread.run_sync(_load, self._store, candidate.number)
        if loaded is None:
            return None
        block, payload = loaded
        if block.codec >= FIRST_COLD:
            plain = await self._cold.decode(candidate.number, block, payload, priority=BACKGROUND, worker=worker)
        else:
            plain = await trio.to_thread.run_sync(decode_verified, candidate.number, block, payload)
        return plain, block.payload

    async def _recoded(self, flow: _Flow, candidate: Candidate, rules: Rules) -> Recode | None:
        block = candidate.block
        found = await self._plain(candidate, flow.worker)
        if found is None or found[1] != block.payload:
            return None  # somebody was faster
        plain, payload = found
        owner = (candidate.ino, candidate.chunk)
        if flow.aim.thaw or rules.policy is Policy.HOT:
            codec_id, data = await trio.to_thread.run_sync(codec.encode_hot, plain)
            return Recode(candidate.number, payload, owner, codec_id, 0, data)
        best = await self._encoder.encode(plain, block, rules, everything=flow.aim.everything, worker=flow.worker)
        if best is None:
            return Recode(candidate.number, payload, owner)
        await self._encoder.prove(block, best, flow.worker)
        model = await self._models.keep(best.model) if best.codec == NEURAL else 0
        return Recode(candidate.number, payload, owner, best.codec, model, best.data)

    def gain(self, zstd_bytes: int) -> int | None:
        """Return about how many of the hot tier's bytes would be saved; None while nothing has been compressed."""
        return zstd_bytes * (self.before - self.after) // self.before if self.before else None

    def report(self) -> dict[str, Any]:
        """Return what `nnfs status` shows of recompression."""
        return {"policy": self._options.policy, "saved_bytes": self.saved, "last_error": self.last_error}


def _load(store: Store, number: int) -> tuple[Block, bytes] | None:
    """Return a block's header and payload, None when it is gone. Raises `StoreDamaged`."""
    with store.read() as snapshot:
        block = load_block(snapshot, number)
        if block is None:
            return None
        return block, snapshot.payload(block.payload, block.stored)
