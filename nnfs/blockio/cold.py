"""Decoding of cold blocks: joins the event loop, the pool of workers and the ladder (`workers/ladder.py`).

No thread waits for a worker: a future's callback wakes the task. Stored bytes that do not have their XXH3-64 are
repaired first, since no decoder could use them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import trio

from nnfs.blockio.repairsearch import Repairs
from nnfs.config import Options
from nnfs.errors import BlockDamaged, CodecError, ModelMissing, TimedOut, WorkerError, kept
from nnfs.proof import WRONG_CHECKSUM, wrong_payload
from nnfs.store.schema import Block
from nnfs.workers.ladder import REFERENCE, Ladder
from nnfs.workers.pool import AHEAD, BACKGROUND, URGENT, Outcome, Pool, WorkerSpec, WorkItem, reference_environment
from nnfs.workers.wire import NO_MODEL, Op

__all__ = ["AHEAD", "BACKGROUND", "COMPACT", "READ", "REFERENCE", "URGENT", "Cold", "Progress", "specs"]

log = logging.getLogger(__name__)

READ, COMPACT = "read", "compact"  # workers
HANG_S = 30.0  # without any progress; less where readers wait for less
# Seconds without work before a worker's memory is freed: that of the reference, which is seldom asked, sooner.
IDLE, SHORT_IDLE = (300.0, 60.0), (20.0, 5.0)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def specs(options: Options) -> list[WorkerSpec]:
    """Return the workers of a mount: for reads, for recompression, and the reference.

    Recompression uses every device; reads use those of the first one's kind: with `cuda:0+cpu` a reader must not get
    the CPU. The reference runs on the CPU, with one thread, and with another engine than the other workers prefer.
    """
    hang_s = min(HANG_S, options.read_timeout / 4)
    devices, compact_threads = options.devices, options.background(cores())[0]
    fast = [device for device in devices if device.partition(":")[0] == devices[0].partition(":")[0]]
    idle_s, rare_s = SHORT_IDLE if options.is_short_of_memory else IDLE
    return [
        *(WorkerSpec(READ, device, options.threads or cores(), hang_s=hang_s, idle_s=idle_s) for device in fast),
        *(WorkerSpec(COMPACT, device, compact_threads, idle=True, hang_s=HANG_S, idle_s=idle_s) for device in devices),
        WorkerSpec(REFERENCE, "cpu", 1, hang_s=hang_s, idle_s=rare_s, environment=reference_environment()),
    ]


@dataclass(slots=True)
class Progress:
    """The progress of a decode, by which its owner can decide whether to cancel it."""

    begun: bool = False  # a repair is under way, which is not a worker's
    future: Future[Outcome] | None = None

    def has_begun(self) -> bool:
        """Return whether cancelling would waste work."""
        return self.begun or (self.future is not None and (self.future.running() or self.future.done()))


def _nothing(number: int, block: Block, payload: bytes) -> None:
    pass


class Cold:
    """The pool as seen from the event loop. `model(number)` gives a model's fingerprint, or raises `ModelMissing`.

    `timeout`, the seconds within which reads end, bounds repairs. Work items are bounded only by the patience of
    readers.
    """

    def __init__(
        self, pool: Pool, model: Callable[[int], bytes], timeout: float,
        on_repaired: Callable[[int, Block, bytes], None] = _nothing,
    ) -> None:  # fmt: skip
        self.pool = pool
        # Called with number, header and true stored bytes of each repaired block, hot ones too.
        self.on_repaired = on_repaired
        # The last error of a worker, for people (something is not installed, say), until that worker decodes again.
        self.trouble = ""
        self._troubled: object = None  # the source of the error: a worker's name, a model's number
        self.decoded = 0  # plain bytes of blocks, for readers and for recompression
        self.mismatches = 0  # decodes with a wrong result
        self.erring: Counter[str] = Counter()  # blocks that the reference decoded after these workers got them wrong
        self._model = model
        self._repairs = Repairs(timeout)
        self._beyond_repair: set[tuple[int, int]] = set()  # block, payload: those that were searched in vain
        self._ended = trio.Event()

    @property
    def slow(self) -> dict[int, float]:
        """Seconds per MiB that decoding took lately, by codec id: in reads or, without any, in recompression."""
        found: dict[int, float] = {}
        for name in (COMPACT, READ):
            for state in self.pool.states():
                if state.name == name:
                    found |= state.decoding
        return found

    def watch(self, go_on: Callable[[], None]) -> None:
        """Call `go_on` on this loop while a worker that decodes for readers makes progress."""
        token = trio.lowlevel.current_trio_token()

        def moved(name: str) -> None:
            if name in (READ, REFERENCE):
                with contextlib.suppress(trio.RunFinishedError):
                    token.run_sync_soon(go_on, idempotent=True)

        self.pool.watch(moved)

    def waits_for(self, worker: str) -> bool:
        """Return whether a worker is not at work yet: its first work item starts it and opens a model."""
        states = [state for state in self.pool.states() if state.name == worker]
        return bool(states) and all(state.state != "running" or state.doing == "opening" for state in states)

    async def run(self, item: WorkItem, progress: Progress | None = None) -> Outcome:
        """Return a worker's result for a work item. Waits while the pool is full; cancelling takes the item back.

        Raises the errors that the pool's futures hold (`nnfs.workers.pool`).
        """
        future = await self._submit(item)
        if progress is not None:
            progress.future = future
        try:
            await _done(future)
        finally:
            future.cancel()
            self._ended.set()
            self._ended = trio.Event()
        return future.result()

    async def _submit(self, item: WorkItem) -> Future[Outcome]:
        while True:
            try:
                return self.pool.submit(item, wait=False)
            except TimedOut:  # the pool is full: until an item has ended
                with trio.move_on_after(1.0):  # items that others have submitted count, too
                    await self._ended.wait()

    async def decode(
        self, number: int, block: Block, payload: bytes, *,
        priority: int = URGENT, worker: str = READ, progress: Progress | None = None,
    ) -> bytes:  # fmt: skip
        """Return the plain bytes of a block, proved by its BLAKE2b-512.

        Raises `BlockDamaged`, `ModelMissing`, and `WorkerError` when no worker can decode it now.
        """
        try:
            model = NO_MODEL if block.model == 0 else self._model(block.model)
        except ModelMissing as missing:
            self._trouble(block.model, f"block {number}: {missing}")
            raise
        whole = await self._whole(number, block, payload, progress or Progress())
        ladder = Ladder(number, block, worker)
        for name in ladder:
            item = WorkItem(Op.DECODE, block.codec, whole, block.plain, model, priority, name)
            try:
                ladder.judge(name, await self.run(item, progress))
            except (CodecError, WorkerError) as error:
                ladder.judge(name, kept(error))
            self._note_failure(ladder, name)
        plain = ladder.result()
        self.decoded += len(plain)
        if ladder.failures:
            log.warning("block %d: worker %s has decoded it", number, REFERENCE)
        elif self._troubled in (worker, block.model):
            self._trouble(None, "")
        if ladder.has_erred:
            self._note_erring(worker)
        if whole is not payload:
            self.on_repaired(number, block, whole)
        return plain

    def _note_failure(self, ladder: Ladder, worker: str) -> None:
        """Log a worker's failure, if there is one, and keep it for the status until that worker decodes again."""
        error = ladder.failures.get(worker)
        if isinstance(error, ModelMissing):
            self._trouble(ladder.block.model, f"block {ladder.number}: {error}")
        elif error is not None:
            self.mismatches += isinstance(error, BlockDamaged)
            # A failure of the worker, and not of the block, would be logged for each of thousands of blocks.
            is_told = isinstance(error, WorkerError) and self.trouble.endswith(f"worker {worker}: {error}")
            self._trouble(ladder.first, f"block {ladder.number}: worker {worker}: {error}")
            log.log(logging.DEBUG if is_told else logging.ERROR, "%s", self.trouble)

    def _note_erring(self, worker: str) -> None:
        """Note that a worker's result was wrong and the reference's right. Logged once, shown in every status."""
        self.erring[worker] += 1
        if self.erring[worker] == 1:
            log.error("%s", self.errs())

    def errs(self) -> str:
        """Return for people which devices compute wrong results, with advice; "" if none does."""
        devices = {name: sorted({s.device for s in self.pool.states() if s.name == name}) for name in self.erring}
        return "; ".join(
            f"{', '.join(devices[name]) or 'a device'} (worker {name}) computed wrong bytes for {count} blocks, which "
            "the reference engine then decoded: nothing wrong was answered, but each costs seconds; test the memory of "
            "machine and GPU, update the driver, and mount with another device= until then"
            for name, count in self.erring.items()
        )

    def _trouble(self, whose: object, why: str) -> None:
        self._troubled, self.trouble = whose, why

    async def _whole(self, number: int, block: Block, payload: bytes, progress: Progress) -> bytes:
        """Return a block's stored bytes, repaired if need be. Raises `BlockDamaged`."""
        wrong = wrong_payload(payload, block.stored, block.xxh3)
        if not wrong:
            return payload
        if wrong != WRONG_CHECKSUM:
            raise BlockDamaged(number, wrong)
        damage = BlockDamaged(number, f"{wrong}, and no small change repairs them")
        if (number, block.payload) in self._beyond_repair:
            raise damage
        log.error("block %d: its stored bytes do not have their XXH3-64: trying to repair them", number)
        progress.begun = True
        found = await self._repairs.find(payload, block.xxh3)
        progress.begun = False
        if found is None:
            self._beyond_repair.add((number, block.payload))
            raise damage
        log.warning("block %d is repaired by a small change of its stored bytes", number)
        return found


async def _done(future: Future[Outcome]) -> None:
    """Wait until another thread has completed a future."""
    token, done = trio.lowlevel.current_trio_token(), trio.Event()

    def wake(_: Future[Outcome]) -> None:
        try:
            token.run_sync_soon(done.set)
        except trio.RunFinishedError:
            pass  # nobody waits any more

    future.add_done_callback(wake)
    await done.wait()
