"""Scrub: all stored bytes against their checksums, while the store is mounted; deep: everything decoded as well.

It walks the block table in slices, each with a read txn of its own, rests while the mount is busy, and keeps in the
store how far it has come. What is damaged is repaired, if a small change of its stored bytes or what is still in a
cache can do that; else it is noted, for status, and the files that it belongs to are named.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import trio
from xxhash import xxh3_64_intdigest

from nnfs import codec
from nnfs.blockio.cold import BACKGROUND, READ, Cold
from nnfs.blockio.commit import Committer
from nnfs.blockio.reader import Reader, decode_verified
from nnfs.blockio.repair import repair_beside
from nnfs.errors import BlockDamaged, ModelMissing, NnfsError, StoreDamaged, WorkerError
from nnfs.fs import recode
from nnfs.fs.apply import Work
from nnfs.fs.owners import Owners
from nnfs.mount.jobs import Job
from nnfs.store import models, schema
from nnfs.store.blocks import Recode, load_block
from nnfs.store.env import Store
from nnfs.store.schema import Block, Total

log = logging.getLogger(__name__)

SLICE_S, SLICE_BLOCKS = 0.02, 64  # of one look at the store, whichever comes first
REST_S = 0.005  # between two of them
BUSY_S, BUSY_MOST = 0.25, 40  # a busy mount: seconds between two looks at it, looks before one slice is done anyway
SAVE_BLOCKS, SAVE_S = 1000, 5.0  # done since the progress was kept, before it is kept again
WINDOW = 4 << 20  # plain bytes that workers have in hand
REPAIR_S, REPAIRS = 10.0, 50  # seconds of one search for a repair; searches in vain, before the rest is just told
FAILURES = 8  # of workers in a row, then the scrub fails
LISTED = 1000  # damaged blocks in an answer


@dataclass(slots=True)
class _Look:
    """What a slice has found."""

    next: int  # number of the first block behind it
    blocks: int = 0
    plain: int = 0  # bytes, by sound headers
    damaged: list[tuple[int, Block | None, bytes, str]] = field(default_factory=list)  # number, stored bytes, why
    cold: list[tuple[int, Block, bytes]] = field(default_factory=list)  # to be decoded
    is_last: bool = False


@dataclass(slots=True)
class _Round:
    """One run over everything."""

    job: Job
    state: schema.Scrub
    saved: tuple[int, float]  # blocks, time
    damaged: dict[int, str] = field(default_factory=dict)
    lost_models: list[str] = field(default_factory=list)
    repaired: int = 0
    in_vain: int = 0
    unchecked: Counter[str] = field(default_factory=Counter)  # by reason
    first_unchecked: int | None = None
    pending: dict[int, int] = field(default_factory=dict)  # blocks with workers, and their plain bytes
    moved: trio.Event = field(default_factory=trio.Event)
    failures: int = 0  # of workers, in a row
    error: NnfsError | None = None

    @property
    def deep(self) -> bool:
        return bool(self.state.deep)

    def pass_over(self, number: int, error: NnfsError) -> None:
        """Note a block that could not be checked: a later run goes on there."""
        self.unchecked[str(error).replace(f"block {number}", "block")] += 1  # without what tells equal troubles apart
        self.first_unchecked = min(number, self.first_unchecked or number)

    def advance(self, behind: int) -> None:
        """All blocks below number `behind` have been looked at, but for those that workers have in hand."""
        self.state.next = min([behind, *self.pending, *([self.first_unchecked] if self.first_unchecked else [])])


class Scrub:
    """The work of `nnfs scrub`. `busy()` tells whether somebody uses the mount."""

    def __init__(
        self, store: Store, committer: Committer, reader: Reader, cold: Cold | None, busy: Callable[[], bool],
        *, read_only: bool = False,
    ) -> None:  # fmt: skip
        self._store, self._committer, self._reader, self._cold = store, committer, reader, cold
        self._busy, self._read_only = busy, read_only
        self._limiter = trio.CapacityLimiter(1)

    def unfinished(self) -> schema.Scrub | None:
        """Return how far a scrub has come that was cut short, None without one."""
        with self._store.read() as snapshot:
            try:
                record = snapshot.get("meta", schema.SCRUB_KEY)
                state = schema.Scrub.unpack(record) if record is not None else None
            except StoreDamaged:
                return None  # begin anew
        return state if state is not None and state.started else None

    async def run(self, job: Job, deep: bool = False) -> None:
        """Do it all, or what is left of the last one of this kind: one that had found nothing damaged goes on.

        Raises `WorkerError` when something could not be checked, `StoreDamaged` for damaged pages of the engine.
        """
        state = self.unfinished()
        if state is None or bool(state.deep) != deep or state.damaged:
            state = schema.Scrub(next=1, deep=int(deep), started=time.time_ns())
        now = _Round(job, state, (state.blocks, time.monotonic()))
        job.total_chunks, job.total_bytes = await self._in_thread(_totals, self._store)
        job.done_chunks = min(state.blocks, job.total_chunks)
        if state.blocks and job.total_chunks:
            job.done_bytes = job.total_bytes * job.done_chunks // job.total_chunks
        try:
            await self._check_models(now)
            await self._check_blocks(now)
        except NnfsError:
            await self._save(now, force=True)
            raise
        finally:
            self._report(now, {})
        now.state = schema.Scrub(1, state.deep, 0, state.blocks, len(now.damaged))
        await self._save(now, force=True)
        self._report(now, await self._name(now))
        if now.unchecked and not (now.damaged or now.lost_models):
            why = "; ".join(f"{count} blocks: {reason}" for reason, count in now.unchecked.items())
            raise WorkerError(f"not everything could be checked: {why}")

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await trio.to_thread.run_sync(function, *args, limiter=self._limiter)

    # -- models

    async def _check_models(self, now: _Round) -> None:
        now.job.phase = "models"
        for number in await self._in_thread(_numbers, self._store):
            await now.job.checkpoint()
            try:
                if not await self._in_thread(_damaged_copies, self._store, number) or self._read_only:
                    continue
                size = await self._in_thread(_size, self._store, number)
                if await self._committer.amend(functools.partial(recode.mend_model, number=number), size):
                    log.warning("model %d: a damaged copy was written anew from the sound one", number)
                    now.repaired += 1
            except ModelMissing as error:
                log.error("%s", error)
                now.lost_models.append(str(error))
            except NnfsError as error:
                log.warning("model %d: a damaged copy stays: %s", number, error)

    # -- blocks

    async def _check_blocks(self, now: _Round) -> None:
        """Look at all blocks from `now.state.next` on; those that workers decode are waited for at the end."""
        now.job.phase = "decoding" if now.deep else "checksums"
        failure: NnfsError | None = None
        async with trio.open_nursery() as nursery:
            try:
                await self._walk(now, nursery)
            except NnfsError as error:  # kept: a nursery would wrap it
                failure = error
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _walk(self, now: _Round, nursery: trio.Nursery) -> None:
        at, is_last = now.state.next, False
        while not is_last:
            await self._give_way(now)
            look = await self._in_thread(_look, self._store, at, now.deep)
            at, is_last = look.next, look.is_last
            for number, block, payload in look.cold:
                await self._admit(now, block)
                now.pending[number] = block.plain
                nursery.start_soon(self._decode, now, number, block, payload)
            for number, block, payload, why in look.damaged:
                await self._mend(now, number, block, payload, why)
            now.state.blocks += look.blocks
            now.job.done_chunks += look.blocks
            now.job.done_bytes += look.plain
            now.advance(at)
            await self._save(now)
            await trio.sleep(REST_S)
        while now.pending:
            await self._moved(now)

    async def _give_way(self, now: _Round) -> None:
        await now.job.checkpoint()
        for _ in range(BUSY_MOST):
            if not self._busy():
                return
            await trio.sleep(BUSY_S)
            await now.job.checkpoint()

    async def _admit(self, now: _Round, block: Block) -> None:
        """Wait until workers may be given one more."""
        while now.pending and sum(now.pending.values()) + block.plain > WINDOW:
            await self._moved(now)

    async def _moved(self, now: _Round) -> None:
        now.moved = trio.Event()
        if now.pending and now.error is None:
            with trio.move_on_after(1.0):  # and look whether the job is cancelled
                await now.moved.wait()
        await now.job.checkpoint()
        if now.error is not None:
            raise now.error

    async def _decode(self, now: _Round, number: int, block: Block, payload: bytes) -> None:
        """Have a worker decode one block."""
        try:
            if self._cold is None:
                raise WorkerError("there are no codec workers")
            await self._cold.decode(number, block, payload, priority=BACKGROUND, worker=READ)
            now.failures = 0
            self._reader.damaged.pop(number, None)
        except BlockDamaged as error:
            await self._give_up(now, number, block, str(error))
        except NnfsError as error:
            now.pass_over(number, error)
            now.failures += not isinstance(error, ModelMissing)
            if now.failures >= FAILURES:
                now.error = WorkerError(f"the scrub ends early, workers fail: {error}")
        finally:
            del now.pending[number]
            now.moved.set()

    # -- damage

    async def _mend(self, now: _Round, number: int, block: Block | None, payload: bytes, why: str) -> None:
        """One attempt to repair a block."""
        log.error("block %d: %s", number, why)
        if block is None:
            self._note(now, number, why)
            return
        whole = None
        if now.in_vain < REPAIRS and len(payload) == block.stored and xxh3_64_intdigest(payload) != block.xxh3:
            whole = await repair_beside(payload, block.xxh3, REPAIR_S)
            now.in_vain += whole is None
        if whole is not None and await self._proved(number, block, whole):
            mended = Recode(number, block.payload, (0, 0), block.codec, block.model, whole)
            if await self._store_again(now, mended):
                return
        await self._give_up(now, number, block, why)

    async def _proved(self, number: int, block: Block, payload: bytes) -> bool:
        """Whether stored bytes decode to the block's content."""
        try:
            if block.codec < codec.FIRST_COLD:
                await self._in_thread(decode_verified, number, block, payload)
            elif self._cold is not None:
                await self._cold.decode(number, block, payload, priority=BACKGROUND, worker=READ)
            else:
                return False
        except NnfsError as error:
            log.error("block %d: the repaired bytes cannot be decoded: %s", number, error)
            return False
        return True

    async def _give_up(self, now: _Round, number: int, block: Block, why: str) -> None:
        """Its own bytes are of no use: take the content from a cache, or note the damage."""
        plain = self._reader.cache.get(number)
        if plain is None and self._reader.thawed is not None:
            plain = await self._in_thread(self._reader.thawed.get, number, block)
        if plain is not None and blake2b(plain).digest() == block.hash:
            number_of_codec, data = await self._in_thread(codec.encode_hot, plain)
            if await self._store_again(now, Recode(number, block.payload, (0, 0), number_of_codec, 0, data)):
                return
        if await self._in_thread(_payload_of, self._store, number) == block.payload:  # else it is another one by now
            self._note(now, number, why)

    async def _store_again(self, now: _Round, mended: Recode) -> bool:
        """Replace a damaged block's stored bytes by proved ones; whether that was possible."""
        if self._read_only or mended.data is None:
            return False
        try:
            change = functools.partial(recode.recode, recodes=[mended])
            [done] = await self._committer.amend(change, len(mended.data))
        except NnfsError as error:
            log.warning("block %d could be repaired, but that is not stored: %s", mended.number, error)
            return False
        if done is not None:
            log.warning("block %d is repaired", mended.number)
            now.repaired += 1
            self._reader.damaged.pop(mended.number, None)
        return done is not None

    def _note(self, now: _Round, number: int, why: str) -> None:
        now.damaged[number] = self._reader.damaged[number] = why
        now.state.damaged = len(now.damaged)

    # -- what comes of it

    async def _save(self, now: _Round, *, force: bool = False) -> None:
        """Keep in the store how far it has come. No scrub fails for that."""
        blocks, then = now.saved
        due = now.state.blocks - blocks >= SAVE_BLOCKS and time.monotonic() - then >= SAVE_S
        if self._read_only or not (due or force):
            return
        now.saved = now.state.blocks, time.monotonic()
        try:
            await self._committer.amend(functools.partial(_put, state=now.state))
        except NnfsError as error:
            log.warning("the progress of the scrub is not kept: %s", error)

    async def _name(self, now: _Round) -> dict[int, list[str]]:
        """Return the files of each damaged block."""
        if not now.damaged:
            return {}
        now.job.phase = "naming files"
        owners = Owners(self._store, now.damaged.keys())
        while await self._in_thread(owners.next):
            await now.job.checkpoint()
        paths: dict[int, list[str]] = await self._in_thread(owners.paths)
        for number, files in paths.items():
            log.error("block %d is damaged: %s", number, ", ".join(files) or "no file has it")
        return paths

    def _report(self, now: _Round, files: dict[int, list[str]]) -> None:
        damaged: list[dict[str, Any]] = [{"why": why} for why in now.lost_models]
        for number, why in now.damaged.items():
            damaged.append({"block": number, "why": why, "files": files.get(number, [])})
        now.job.result = {
            "deep": now.deep, "blocks": now.state.blocks, "repaired": now.repaired,
            "unchecked": now.unchecked.total(), "damaged": damaged[:LISTED],
        }  # fmt: skip


# -- for threads


def _look(store: Store, first: int, deep: bool) -> _Look:
    """Look at some blocks from number `first` on. Raises `StoreDamaged` for damaged pages."""
    look = _Look(first)
    until = time.monotonic() + SLICE_S
    with store.read() as snapshot:
        for key, record in snapshot.range("block", schema.KEY.pack(first)):
            if look.blocks and (look.blocks >= SLICE_BLOCKS or time.monotonic() >= until):
                return look
            if len(key) != schema.KEY.size:
                continue  # fsck's to remove
            number: int = schema.KEY.unpack(key)[0]
            look.next = number + 1
            look.blocks += 1
            block, payload = None, b""
            try:
                block = Block.unpack(key, record)
                look.plain += block.plain
                payload = snapshot.payload(block.payload, block.stored)
                _check(number, block, payload, deep=deep)
                if deep and block.codec >= codec.FIRST_COLD:
                    look.cold.append((number, block, payload))
            except BlockDamaged as error:
                look.damaged.append((number, block, payload, str(error)))
            except StoreDamaged as error:  # a header, or pages of the engine, where no repair may be written
                look.damaged.append((number, None, b"", str(error)))
    look.is_last = True
    return look


def _check(number: int, block: Block, payload: bytes, *, deep: bool) -> None:
    """Raises `BlockDamaged`."""
    if len(payload) != block.stored:
        raise BlockDamaged(number, f"{len(payload)} of {block.stored} stored bytes are there")
    if xxh3_64_intdigest(payload) != block.xxh3:
        raise BlockDamaged(number, "its stored bytes do not have their XXH3-64")
    if deep and block.codec < codec.FIRST_COLD:
        decode_verified(number, block, payload)


def _totals(store: Store) -> tuple[int, int]:
    """Return blocks and plain bytes of the store, about."""
    plain = 0
    with store.read() as snapshot:
        try:
            for key, record in snapshot.range("total", b""):
                plain += Total.unpack(key, record).plain
        except StoreDamaged:
            pass  # statistics
    return store.entries("block"), plain


def _payload_of(store: Store, number: int) -> int | None:
    """Return the number under which a block's stored bytes lie now, None when it is gone."""
    with store.read() as snapshot:
        try:
            block = load_block(snapshot, number)
        except StoreDamaged:
            return None
    return None if block is None else block.payload


def _numbers(store: Store) -> list[int]:
    with store.read() as snapshot:
        return models.numbers(snapshot)


def _damaged_copies(store: Store, number: int) -> int:
    with store.read() as snapshot:
        return models.damaged_copies(snapshot, number)


def _size(store: Store, number: int) -> int:
    with store.read() as snapshot:
        return models.load_model(snapshot, number).size


# -- for the commit thread


def _put(work: Work, state: schema.Scrub) -> None:
    state.commit = work.epoch.commit
    work.txn.put("meta", schema.SCRUB_KEY, state.pack())
