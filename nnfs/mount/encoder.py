"""From a chunk's plain bytes to the smallest cold payload that is proved to give them back."""

from __future__ import annotations

import logging
import math
import time
from hashlib import blake2b
from typing import NamedTuple

import trio

from nnfs.blockio.cold import COMPACT, READ, REFERENCE, Cold
from nnfs.codec import NAMES, compete
from nnfs.codec.base import CM, NEURAL
from nnfs.codec.pool import BACKGROUND, URGENT, Job
from nnfs.codec.wire import NO_MODEL, Op
from nnfs.config import Options
from nnfs.errors import CodecError, NnfsError
from nnfs.fs.policy import Policy, Rules
from nnfs.mount.models import Models
from nnfs.store.schema import Block

log = logging.getLogger(__name__)

MIN_GAIN = 1 / 16  # of the stored bytes; less is not worth slower reads
MIN_GAIN_COLD = 1 / 64  # where nobody minds slow reads
BATCH = 2 << 20  # plain bytes, a worker's batch: one chunk of it is decoded by another engine, too,
SMALL = 16 << 10  # a small one where there is one: that engine is slow
CM_BELOW = 1.35  # bits per byte of the neural payload: on data that repeats itself the classical codec may do better
CM_LEAST = 8 << 10  # bytes of a chunk for which it is tried
TEXT = 0.9  # share of printable bytes and UTF-8 above which data is text, where the network always wins
CALIBRATE = 1 << 17  # bytes of a chunk
MEASURE_AGAIN = 600.0  # seconds


class Payload(NamedTuple):
    """One chunk as it could be stored."""

    codec: int
    model: bytes  # fingerprint
    data: bytes


class ColdEncoder:
    """Chooses codecs by what reading with them costs here, and encodes in worker processes."""

    def __init__(self, cold: Cold, models: Models, options: Options) -> None:
        self._cold, self._models = cold, models
        self._limit = options.thaw_limit  # seconds per MiB that `auto` may cost a reader
        self._neural = options.neural
        self._speeds: dict[int, tuple[float, float]] = {}  # codec: seconds per MiB for a reader, time of measuring
        self._measuring = trio.Lock()
        self._unchecked = BATCH  # plain bytes since the reference has decoded something

    async def encode(
        self, plain: bytes, block: Block, rules: Rules, *,
        everything: bool, leave: bool = False, worker: str = COMPACT,
    ) -> Payload | None:  # fmt: skip
        """Return the smallest form of a block's content, None when that is the one it has.

        `everything`: at any cost of reading, as with the policy `cold`. `leave`: the form that it has is not to stay,
        and the smallest other cold one will do. Raises `CodecError`, `WorkerError`, `TimedOut`.
        """
        if not await trio.to_thread.run_sync(compete.compressible, plain):
            return None
        patient = everything or rules.policy is Policy.COLD
        found: list[Payload] = []
        fingerprint = self._models.wanted(rules.model)
        if self._neural and fingerprint and (patient or await self._fast_enough(NEURAL)):
            data = await self._work(Op.ENCODE, NEURAL, plain, len(plain), fingerprint, worker)
            if data is not None:
                found.append(Payload(NEURAL, fingerprint, data))
        neural_bits = 8 * len(found[0].data) / len(plain) if found else 8.0
        worth = neural_bits < CM_BELOW or not _is_text(plain)
        if (not found or (worth and len(plain) >= CM_LEAST)) and (patient or await self._fast_enough(CM)):
            data = await self._work(Op.ENCODE, CM, plain, len(plain), NO_MODEL, worker)
            if data is not None:
                found.append(Payload(CM, NO_MODEL, data))
        best = min(found, key=lambda one: len(one.data), default=None)
        least = block.plain if leave else block.stored * (1 - (MIN_GAIN_COLD if patient else MIN_GAIN))
        return best if best is not None and len(best.data) < least else None

    async def prove(self, block: Block, payload: Payload, worker: str = COMPACT) -> None:
        """Decode a new payload as a reader will. Raises `CodecError` when that does not give the content back."""
        self._unchecked += block.plain
        is_due = self._unchecked >= (BATCH // 2 if block.plain <= SMALL else BATCH)
        if is_due:
            self._unchecked = 0
        for name in (worker, REFERENCE) if is_due else (worker,):
            plain = await self._work(Op.DECODE, payload.codec, payload.data, block.plain, payload.model, name)
            if plain is None or blake2b(plain).digest() != block.hash:
                raise CodecError(f"codec {payload.codec}: worker {name} decodes something else than was encoded")

    async def _work(
        self, op: Op, codec_id: int, data: bytes, plain: int, fingerprint: bytes, worker: str
    ) -> bytes | None:
        job = Job(op, codec_id, data, plain, fingerprint, BACKGROUND, worker)
        result = await self._cold.run(job)
        assert result is None or isinstance(result, bytes)
        return result

    async def _fast_enough(self, codec_id: int) -> bool:
        """Whether reading with a codec keeps the limit of the mount, as measured on this machine.

        What was too slow is measured again after a while: the machine may have been busy.
        """
        if math.isinf(self._limit):
            return True
        async with self._measuring:
            known, when = self._speeds.get(codec_id, (math.inf, -math.inf))
            if known > self._limit and time.monotonic() - when >= MEASURE_AGAIN:
                known = min(known, await self._measure(codec_id))
                self._speeds[codec_id] = known, time.monotonic()
                log.info("codec %d: a reader waits %.1f s for a MiB", codec_id, known)
        return known <= self._limit

    async def _measure(self, codec_id: int) -> float:
        """Return the seconds in which the readers' worker decodes a MiB."""
        plain = (_SAMPLE * (CALIBRATE // len(_SAMPLE) + 1))[:CALIBRATE]
        fingerprint = self._models.default() if codec_id == NEURAL else NO_MODEL
        payload = await self._work(Op.ENCODE, codec_id, plain, len(plain), fingerprint, READ)
        if payload is None:
            return math.inf
        job = Job(Op.DECODE, codec_id, payload, len(plain), fingerprint, URGENT, READ)
        await self._cold.run(job)  # the worker is started, and has its model
        started = time.monotonic()
        failures: list[NnfsError] = []

        async def decode() -> None:
            try:
                await self._cold.run(job)
            except NnfsError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range((1 << 20) // CALIBRATE):
                nursery.start_soon(decode)
        if failures:
            raise failures[0]
        return time.monotonic() - started

    def speeds(self) -> dict[str, float]:
        """Return measured seconds per MiB by codec."""
        found = {NAMES[number]: seconds for number, (seconds, _) in self._speeds.items()}
        return {name: round(seconds, 2) for name, seconds in found.items() if math.isfinite(seconds)}


_SAMPLE = (__doc__ or "").encode() + bytes(range(256))


def _is_text(plain: bytes) -> bool:
    """Tell whether a chunk is mostly text, in any encoding that has ASCII in it."""
    return len(plain.translate(None, _BINARY)) >= TEXT * len(plain)


_BINARY = bytes(set(range(32)) - {9, 10, 12, 13, 27} | {127})
