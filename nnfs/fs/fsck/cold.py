"""Decoding of cold blocks for `fsck --data`: worker processes, with many blocks in flight so that they batch."""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnfs.codec import NAMES
from nnfs.errors import BlockDamaged, ModelMissing, NnfsError, WorkerError, kept
from nnfs.fs.fsck.context import Context
from nnfs.store.modelfiles import by_fingerprint, whole_model
from nnfs.store.schema import Block
from nnfs.workers.ladder import REFERENCE, Ladder

if TYPE_CHECKING:
    from nnfs.workers.pool import Pool

log = logging.getLogger(__name__)

IN_FLIGHT = 512  # blocks; 64 MiB of plain bytes
GIVE_UP = 4  # blocks in a row that no worker could decode, before codec and model are taken for not installed
WORKER = "fsck"  # the one that is asked before the reference
NO_MODEL = bytes(64)
SERVE = "nnfs.workers.catalogue:Catalogue"  # the codecs of the workers


@dataclass(frozen=True, slots=True)
class _Waiting:
    number: int
    block: Block
    payload: bytes
    model: bytes
    future: Future[bytes]  # of the first worker

    @property
    def codec_and_model(self) -> tuple[int, bytes]:
        return self.block.codec, self.model


class ColdBlocks:
    """Takes cold blocks one by one, and calls `damaged(number, why)` for each that does not decode to its hash."""

    def __init__(self, c: Context, damaged: Callable[[int, str], None]) -> None:
        self.c = c
        self._damaged = damaged
        self._pool: Pool | None = None
        self._waiting: deque[_Waiting] = deque()
        self._failed: Counter[tuple[int, bytes]] = Counter()  # by codec and model: in a row
        self._unchecked: Counter[int] = Counter()  # by codec
        self._why: dict[int, str] = {}  # no worker could decode a codec's blocks

    def add(self, number: int, block: Block, payload: bytes, model: bytes) -> None:
        """Queue a block for decoding; `model` is a fingerprint, or empty."""
        model = model or NO_MODEL
        if self._failed[block.codec, model] >= GIVE_UP:
            self._unchecked[block.codec] += 1
            return
        future = self._decode(block, payload, model, WORKER)
        self._waiting.append(_Waiting(number, block, payload, model, future))
        while self._waiting and (len(self._waiting) >= IN_FLIGHT or self._waiting[0].future.done()):
            self._judge(self._waiting.popleft())

    def finish(self) -> None:
        """Wait until all blocks are decoded, and note those that could not be checked."""
        total = len(self._waiting)
        while self._waiting:
            self.c.progress("cold blocks", total - len(self._waiting), total)
            self._judge(self._waiting.popleft())
        for codec, blocks in self._unchecked.items():
            self.c.unchecked(f"{blocks} blocks of codec {NAMES[codec]} were not checked: {self._why[codec]}")
        self.close()

    def close(self) -> None:
        """End the workers. Further calls do nothing."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _decode(self, block: Block, payload: bytes, model: bytes, worker: str) -> Future[bytes]:
        from nnfs.workers.pool import BACKGROUND, Pool, WorkerSpec, reference_environment

        if self._pool is None:
            specs = (
                WorkerSpec(WORKER, threads=len(os.sched_getaffinity(0)), serve=SERVE),
                WorkerSpec(REFERENCE, device="cpu", environment=reference_environment(), serve=SERVE),
            )
            self._pool = Pool(specs, self._find)
        return self._pool.decode(block.codec, payload, block.plain, model, priority=BACKGROUND, worker=worker)

    def _find(self, fingerprint: bytes) -> bytes | None:
        """Return a model's file for a worker. Supervisors' threads call it, so it has a read txn of its own."""
        with self.c.store.read() as snapshot:
            number = by_fingerprint(snapshot, fingerprint)
            return None if number is None else whole_model(snapshot, number)

    def _judge(self, one: _Waiting) -> None:
        ladder = self._climbed(one)
        try:
            ladder.result()
        except (ModelMissing, WorkerError):
            self._failed[one.codec_and_model] += 1
            self._unchecked[one.block.codec] += 1
            self._why[one.block.codec] = ladder.why
            return
        except BlockDamaged as error:
            self._damaged(one.number, error.why)
        self._failed[one.codec_and_model] = 0
        if ladder.has_erred:
            log.warning("block %d: worker %s has decoded it, after %s", one.number, REFERENCE, ladder.why)
            self.c.note(f"block {one.number} is sound, but this device decoded it wrongly at first")

    def _climbed(self, one: _Waiting) -> Ladder:
        """Ask the workers of the ladder for a block, one after the other."""
        ladder = Ladder(one.number, one.block, WORKER)
        for worker in ladder:
            if isinstance(ladder.failures.get(WORKER), WorkerError) and self._failed[one.codec_and_model] >= GIVE_UP:
                break
            is_first = worker == WORKER
            future = one.future if is_first else self._decode(one.block, one.payload, one.model, worker)
            try:
                ladder.judge(worker, future.result())
            except NnfsError as error:
                ladder.judge(worker, kept(error))
        return ladder
