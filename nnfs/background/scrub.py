"""Scrub: all stored bytes against their checksums, while the store is mounted; deep: everything decoded as well.

It walks the block table in slices (`background/scrubreads.py`), each with a read txn of its own, rests while the mount
is busy, and keeps in the store how far it has come. It repairs damage where it can (`background/blockrepair.py`); other
damage it notes for the status, and names the files. A block that was found damaged before, by a reader for instance, is
always decoded.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio

from nnfs.background import scrubreads
from nnfs.background.blockrepair import Repairer
from nnfs.background.busy import wait_while_busy
from nnfs.background.interfaces import Parts
from nnfs.background.tasks import Task
from nnfs.background.timeleft import Kind
from nnfs.blockio.cold import BACKGROUND, READ
from nnfs.codec import NAMES
from nnfs.codec.base import FIRST_COLD, RAW
from nnfs.errors import BlockDamaged, CodecUnavailable, ModelMissing, NnfsError, StoreDamaged, WorkerError, again, kept
from nnfs.fs import swapping
from nnfs.fs.apply import Work
from nnfs.fs.blockfiles import BlockFiles
from nnfs.store import schema
from nnfs.store.schema import Block

log = logging.getLogger(__name__)

REST_S = 0.005  # between two slices
SAVE_BLOCKS, SAVE_S = 1000, 5.0  # done since the progress was kept, before it is kept again
WINDOW, IN_FLIGHT = 4 << 20, 400  # plain bytes and blocks that workers have in hand
LEAST = 8 << 10  # bytes that a block counts for at least
FAILURES = 8  # of workers in a row, then the scrub fails
LISTED = 1000  # damaged blocks in an answer


@dataclass(slots=True)
class _Run:
    """The state of one scrub."""

    task: Task
    state: schema.Scrub
    saved: tuple[int, float]  # blocks, time
    repairer: Repairer
    since: int  # unix ns: its beginning, with an earlier mount perhaps
    damaged: dict[int, str] = field(default_factory=dict)
    lost_models: list[str] = field(default_factory=list)
    repaired_models: int = 0
    unchecked: Counter[str] = field(default_factory=Counter)  # by reason
    first_unchecked: int | None = None
    pending: set[int] = field(default_factory=set)  # blocks with workers
    pending_bytes: int = 0  # plain, `LEAST` for each at least
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
        """Note that all blocks below number `behind` have been looked at, but for those that workers still decode."""
        self.state.next = min([behind, *self.pending, *([self.first_unchecked] if self.first_unchecked else [])])


class Scrub:
    """The work of `nnfs scrub`. `busy()` tells whether somebody uses the mount."""

    def __init__(self, parts: Parts, busy: Callable[[], bool]) -> None:
        self._parts, self._store, self._commits, self._reads = parts, parts.store, parts.commits, parts.reads
        self._cold, self._busy, self._read_only = parts.cold, busy, parts.read_only
        self._limiter = trio.CapacityLimiter(1)

    def unfinished(self) -> schema.Scrub | None:
        """Return the progress of a scrub that was cut short, None when there is none."""
        with self._store.read() as snapshot:
            try:
                record = snapshot.get("meta", schema.SCRUB_KEY)
                state = schema.Scrub.unpack(record) if record is not None else None
            except StoreDamaged:
                return None  # begin anew
        return state if state is not None and state.started else None

    async def run(self, task: Task, deep: bool = False) -> None:
        """Scrub everything, or go on with the last scrub of this kind if that had found no damage.

        Raises `WorkerError` when something could not be checked, `StoreDamaged` for damaged pages of the engine.
        """
        state = self.unfinished()
        if state is None or bool(state.deep) != deep or state.damaged:
            state = schema.Scrub(next=1, deep=int(deep), started=time.time_ns())
        repairer = Repairer(self._parts, self._limiter)
        run = _Run(task, state, (state.blocks, time.monotonic()), repairer, state.started)
        task.total_chunks, by_codec = await self._in_thread(scrubreads.totals, self._store)
        task.total_bytes = sum(by_codec.values())
        task.done_chunks = min(state.blocks, task.total_chunks)
        if state.blocks and task.total_chunks:
            task.done_bytes = task.total_bytes * task.done_chunks // task.total_chunks
        for number, plain in by_codec.items():
            kind, step = _kind(number, deep=deep)
            task.left.expect(kind, plain - plain * task.done_chunks // max(1, task.total_chunks), {step: 1.0})
        try:
            await self._check_models(run)
            await self._check_blocks(run)
        except NnfsError:
            await self._save(run, force=True)
            raise
        finally:
            self._report(run, {})
        await self._in_thread(self._reads.damaged.forget_gone, self._store)
        run.state = schema.Scrub(1, state.deep, 0, state.blocks, len(run.damaged))
        await self._save(run, force=True)
        self._report(run, await self._name(run))
        if run.unchecked and not (run.damaged or run.lost_models):
            why = "; ".join(f"{count} blocks: {reason}" for reason, count in run.unchecked.items())
            raise WorkerError(f"not everything could be checked: {why}")

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await trio.to_thread.run_sync(function, *args, limiter=self._limiter)

    # -- models

    async def _check_models(self, run: _Run) -> None:
        run.task.phase = "models"
        unusable: dict[int, str] = {}
        for number in await self._in_thread(scrubreads.model_numbers, self._store):
            await run.task.checkpoint()
            try:
                if not await self._in_thread(scrubreads.damaged_copies, self._store, number) or self._read_only:
                    continue
                size = await self._in_thread(scrubreads.model_size, self._store, number)
                if await self._commits.amend(functools.partial(swapping.repair_model, number=number), size):
                    log.warning("model %d: a damaged copy was written anew from the sound one", number)
                    run.repaired_models += 1
            except ModelMissing as error:
                unusable[number] = str(error)
            except NnfsError as error:
                log.warning("model %d: a damaged copy stays: %s", number, error)
        unusable |= await self._in_thread(scrubreads.lost_models, self._store)
        for why in unusable.values():
            log.error("%s", why)
            run.lost_models.append(why)

    # -- blocks

    async def _check_blocks(self, run: _Run) -> None:
        """Look at all blocks from `run.state.next` on; those that workers decode are waited for at the end."""
        self._tell(run)
        failure: NnfsError | None = None
        async with trio.open_nursery() as nursery:
            try:
                await self._walk(run, nursery)
            except NnfsError as error:  # kept: a nursery would wrap it
                failure = kept(error)
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise again(failure)

    async def _walk(self, run: _Run, nursery: trio.Nursery) -> None:
        at, is_last = run.state.next, False
        while not is_last:
            await self._give_way(run)
            look = await self._in_thread(scrubreads.look_at, self._store, at, run.deep, self._reads.damaged.as_dict())
            at, is_last = look.next, look.is_last
            for number in look.sound:
                self._reads.damaged.remove(number)
            for number, block, payload in look.cold:
                await self._admit(run, block)
                run.pending.add(number)
                run.pending_bytes += max(LEAST, block.plain)
                nursery.start_soon(self._decode, run, number, block, payload)
            for number, block, payload, why in look.damaged:
                await run.task.checkpoint()
                await self._repair(run, number, block, payload, why)
            run.state.blocks += look.blocks
            run.task.done_chunks += look.blocks - len(look.cold)
            run.task.done_bytes += look.plain
            _count(run, RAW, look.plain)
            run.advance(at)
            await self._save(run)
            await trio.sleep(REST_S)
        while run.pending:
            await self._moved(run)

    def _tell(self, run: _Run) -> None:
        """Set the phase of the task, and stop its clock while no worker can decode yet."""
        if run.pending and self._cold.waits_for(READ):
            run.task.phase = "starting a worker"
            run.task.left.stop(time.monotonic())
        else:
            run.task.phase = "decoding" if run.deep else "checksums"
            run.task.left.go(time.monotonic())

    async def _give_way(self, run: _Run) -> None:
        await run.task.checkpoint()
        await wait_while_busy(self._busy, run.task.checkpoint)

    async def _admit(self, run: _Run, block: Block) -> None:
        """Wait until workers may be given one more."""
        cost = max(LEAST, block.plain)
        while run.pending and (run.pending_bytes + cost > WINDOW or len(run.pending) >= IN_FLIGHT):
            await self._moved(run)

    async def _moved(self, run: _Run) -> None:
        run.moved = trio.Event()
        self._tell(run)
        if run.pending and run.error is None:
            with trio.move_on_after(1.0):  # and look whether the task is cancelled
                await run.moved.wait()
        await run.task.checkpoint()
        if run.error is not None:
            raise run.error

    async def _decode(self, run: _Run, number: int, block: Block, payload: bytes) -> None:
        """Have a worker decode one block."""
        try:
            await self._cold.decode(number, block, payload, priority=BACKGROUND, worker=READ)
            run.failures = 0
            self._reads.damaged.remove(number)
        except BlockDamaged as error:
            await self._give_up(run, number, block, str(error))
        except NnfsError as error:
            await self._undecided(run, number, block, error)
        finally:
            run.pending.discard(number)
            run.pending_bytes -= max(LEAST, block.plain)
            run.task.done_chunks += 1
            run.task.done_bytes += block.plain
            _count(run, block.codec, block.plain)
            run.moved.set()

    async def _undecided(self, run: _Run, number: int, block: Block, error: NnfsError) -> None:
        """Note a block of which no worker could tell whether it is sound."""
        if await self._in_thread(scrubreads.payload_of, self._store, number) != block.payload:
            return  # it has been recompressed meanwhile, or is gone, and so may be the model that it needed
        known = self._reads.damaged.reason(number)
        if known is not None and not run.deep:
            self._note(run, number, known)
            return
        run.pass_over(number, error)
        run.failures += not isinstance(error, ModelMissing | CodecUnavailable)  # those of other codecs may do
        if run.failures >= FAILURES:
            run.error = WorkerError(f"the scrub ends early, workers fail: {error}")

    # -- damage

    async def _repair(self, run: _Run, number: int, block: Block | None, payload: bytes, why: str) -> None:
        """Try to repair a block. Raises `Cancelled`."""
        log.error("%s", why)
        if block is None:
            self._note(run, number, why)
        elif not await run.repairer.repair(run.task, number, block, payload):
            await self._give_up(run, number, block, why)

    async def _give_up(self, run: _Run, number: int, block: Block, why: str) -> None:
        """Replace a block that cannot be repaired by a copy, or note the damage."""
        if await run.repairer.replace(number, block):
            return
        if await self._in_thread(scrubreads.payload_of, self._store, number) == block.payload:  # else it is another one
            self._note(run, number, why)

    def _note(self, run: _Run, number: int, why: str) -> None:
        run.damaged[number] = why
        self._reads.damaged.add(number, why)
        run.state.damaged = len(run.damaged)

    # -- what comes of it

    async def _save(self, run: _Run, *, force: bool = False) -> None:
        """Store the progress of the scrub. Raises nothing: no scrub may fail for that."""
        blocks, then = run.saved
        due = run.state.blocks - blocks >= SAVE_BLOCKS and time.monotonic() - then >= SAVE_S
        if self._read_only or not (due or force):
            return
        run.saved = run.state.blocks, time.monotonic()
        try:
            await self._commits.amend(functools.partial(_keep_progress, state=run.state))
        except NnfsError as error:
            log.warning("the progress of the scrub is not kept: %s", error)

    async def _name(self, run: _Run) -> dict[int, list[str]]:
        """Return the files of each damaged block."""
        if not run.damaged:
            return {}
        run.task.phase = "naming files"
        found = BlockFiles(self._store, run.damaged.keys())
        while await self._in_thread(found.next):
            await run.task.checkpoint()
        paths: dict[int, list[str]] = await self._in_thread(found.paths)
        for number, files in paths.items():
            log.error("block %d is damaged: %s", number, ", ".join(files) or "no file has it")
        return paths

    def _report(self, run: _Run, files: dict[int, list[str]]) -> None:
        damaged: list[dict[str, Any]] = [{"why": why} for why in run.lost_models]
        for number, why in run.damaged.items():
            damaged.append({"block": number, "why": why, "files": files.get(number, [])})
        run.task.result = {
            "deep": run.deep, "blocks": run.state.blocks, "repaired": run.repairer.repaired + run.repaired_models,
            "unchecked": run.unchecked.total(), "since": run.since / 1e9, "damaged": damaged[:LISTED],
        }  # fmt: skip


# -- for the time left


def _kind(codec: int, *, deep: bool) -> tuple[Kind, str]:
    """Return the kind of a codec's blocks for the time left, and the one step that they go through."""
    if deep and codec >= FIRST_COLD:
        return ("cold", str(codec)), f"decode {NAMES.get(codec, codec)}"
    return ("hot",), "look"


def _count(run: _Run, codec: int, plain: int) -> None:
    kind, step = _kind(codec, deep=run.deep)
    run.task.left.did(kind, step, plain, time.monotonic())
    run.task.left.ended(kind, plain, {step: plain})


# -- for the commit thread


def _keep_progress(work: Work, state: schema.Scrub) -> None:
    state.commit = work.epoch.commit
    work.txn.put("meta", schema.SCRUB_KEY, state.pack())
