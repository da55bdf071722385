"""Encoding for the cold tier: the smallest payload of the codecs that may be used, and its proof."""

from __future__ import annotations

import glob
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import trio
from xxhash import xxh3_64_intdigest

from nnfs.background.busy import wait_while_busy
from nnfs.background.calibration import SPECIAL, Kind, kind_of, sample
from nnfs.background.checks import Checks, Proof
from nnfs.background.modelreader import ModelReader
from nnfs.background.outages import BITS, Outages
from nnfs.background.timeleft import COSTS
from nnfs.background.worth import least_saving
from nnfs.blockio.cold import COMPACT, READ, REFERENCE, Cold
from nnfs.codec import NAMES
from nnfs.codec.base import CM, CM_LIGHT, NEURAL, PPM, RUNGS, rung
from nnfs.codec.compressible import is_text
from nnfs.config import Options
from nnfs.constants import Policy
from nnfs.errors import (
    CodecError,
    CodecUnavailable,
    EnginesDisagree,
    ModelMissing,
    NnfsError,
    NoCodecRuns,
    again,
    kept,
)
from nnfs.fs import swapping
from nnfs.fs.policy import Rules
from nnfs.proof import has_content
from nnfs.store.schema import Block
from nnfs.workers.pool import AHEAD, BACKGROUND, WorkItem
from nnfs.workers.wire import NO_MODEL, Op

log = logging.getLogger(__name__)

Note = Callable[[str], object]  # is told each step that a chunk has gone through: "encode neural"

MIN_GAIN = 1 / 16  # of the stored bytes; less is not worth slower reads
MIN_GAIN_COLD = 1 / 64  # where nobody minds slow reads
CM_BELOW = 1.35  # bits per byte of the neural payload: on data that repeats itself the classical codec may do better
CM_LEAST = 8 << 10  # bytes of a chunk for which it is tried
REVIVE = 2048  # bytes of the chunk that tests whether a codec runs
SPECIAL_BIT = 0x20  # in the state's settings: `cm` was too slow for content of a special kind
MEASURE_AGAIN, MEASURE_MOST = 600.0, 86400.0  # seconds, doubled each time: measuring takes all cores


class Payload(NamedTuple):
    """A new payload for one chunk."""

    codec: int
    model: bytes  # fingerprint
    data: bytes


class ColdEncoder:
    """Chooses codecs by what reading with them costs here, and encodes in worker processes."""

    def __init__(
        self, cold: Cold, models: ModelReader, options: Options, busy: Callable[[], bool] = lambda: False
    ) -> None:
        self._cold, self._models, self._options, self._busy = cold, models, options, busy
        self._limit = options.thaw_limit  # seconds per MiB that `auto` may cost a reader
        # Seconds per MiB, when that was measured, seconds until it is again:
        self._speeds: dict[tuple[int, Kind], tuple[float, float, float]] = {}
        self.outages = Outages()
        self._revived = 0  # codecs that were out once and run now, as bits
        self._measuring = trio.Lock()
        self.measuring = 0  # codecs that are being measured now
        self._checks: defaultdict[int, Checks] = defaultdict(Checks)  # by codec
        self.threads = trio.CapacityLimiter(2)  # of recompression: commits must not queue behind it

    def set_options(self, options: Options) -> None:
        """Take over another `thaw_limit`, and have files that were looked at under other options looked at again."""
        self._options, self._limit = options, options.thaw_limit

    async def encode(
        self, plain: bytes, block: Block, rules: Rules, *,
        everything: bool, only: int = 0, leave: bool = False, worker: str = COMPACT, note: Note = str,
    ) -> Payload | None:  # fmt: skip
        """Return the smallest payload for a block's content, None when the block has it already.

        `everything` ignores the cost of reading, as the policy `cold` does. `only` names the rung of the one codec to
        use; for the network's rung, also the codec that may do better where the network does badly. `leave`: the block
        must lose the payload that it has, and gets the smallest other cold one. A codec that cannot run is out; the
        others compete.

        Raises `CodecError`, `WorkerError`, `TimedOut`; `NoCodecRuns` when no codec can run; `EnginesDisagree` where the
        codec to be used is not trusted any more (the result of another codec would stay for good).
        """
        patient = everything or rules.policy is Policy.COLD
        found = await self._payloads(plain, block, rules, only, patient=patient, leave=leave, worker=worker, note=note)
        best = min(found, key=lambda one: len(one.data), default=None)
        if best is None:
            return None
        if leave:
            return best if len(best.data) < block.plain else None
        seconds = self._seconds(best.codec, kind_of(best.codec, best.data))
        least = max(block.stored * (MIN_GAIN_COLD if patient else MIN_GAIN), least_saving(block.plain, seconds))
        return best if block.stored - len(best.data) >= least else None

    async def _payloads(
        self, plain: bytes, block: Block, rules: Rules, only: int,
        *, patient: bool, leave: bool, worker: str, note: Note,
    ) -> list[Payload]:  # fmt: skip
        """Return a chunk's payloads by the codecs that may be used; by a quick one only if no slow one succeeded."""
        tried = set(RUNGS) if not only else {NEURAL, CM} if only == rung(NEURAL) else {RUNGS[only - 1]}
        found = list[Payload]()
        fingerprint = self._network(rules) if NEURAL in tried else b""
        if fingerprint and (patient or await self.fast_enough(NEURAL)):
            found += await self._attempt(NEURAL, plain, fingerprint, worker, note)
        worth_cm = CM in tried and self._is_worth_cm(plain, block, found, leave=leave)
        if worth_cm and (patient or await self.fast_enough(CM)):
            for one in await self._attempt(CM, plain, NO_MODEL, worker, note):
                if patient or await self.fast_enough(CM, kind_of(CM, one.data)):
                    found.append(one)
        for quick in (CM_LIGHT, PPM):
            if quick in tried and not found and (patient or await self.fast_enough(quick)):
                found += await self._attempt(quick, plain, NO_MODEL, worker, note)
        if not found:
            self.ensure_any_runs(rules)
        return found

    @staticmethod
    def _is_worth_cm(plain: bytes, block: Block, found: list[Payload], *, leave: bool) -> bool:
        """Return whether the classical codec may do better than the network has done."""
        if not found:
            return True
        if len(plain) < CM_LEAST or (rung(block.codec) == rung(CM) and not leave):
            return False
        return 8 * len(found[0].data) / len(plain) < CM_BELOW or not is_text(plain)

    def _network(self, rules: Rules) -> bytes:
        """Return the fingerprint of the model to encode with, empty where the network must not or cannot be used."""
        if not self._options.neural:
            return b""
        wanted = self._models.wanted(rules.model)
        if not wanted:
            try:
                self._models.default()  # then it has been retired
            except ModelMissing as error:
                self.outages.failed(NEURAL, NO_MODEL, error)
        return wanted

    def ensure_any_runs(self, rules: Rules) -> None:
        """Raise `NoCodecRuns` when all codecs that content with these rules may get are known not to run."""
        model = self._network(rules)
        out = [self.outages.has(codec_id, model if codec_id == NEURAL else NO_MODEL) for codec_id in RUNGS]
        if all(out[:-1]) and (out[-1] or not model):
            raise NoCodecRuns(f"no codec can run here: {self.outages.summary()}")

    def top(self, rules: Rules, *, everything: bool) -> int:
        """Return the slowest rung that content with these rules may get, by the speeds measured; 0 if there is none.

        A codec that is not measured yet counts as fast enough.
        """
        patient = everything or rules.policy is Policy.COLD
        model = self._network(rules)
        for codec_id in reversed(RUNGS):
            speed = self._speeds.get((codec_id, Kind.TEXT), (0.0,))[0]
            is_out = self.outages.has(codec_id, model if codec_id == NEURAL else NO_MODEL)
            if (model or codec_id != NEURAL) and not is_out and (patient or speed <= self._limit):
                return rung(codec_id)
        return 0

    async def _attempt(self, codec_id: int, plain: bytes, model: bytes, worker: str, note: Note = str) -> list[Payload]:
        """Return a codec's payloads of a chunk: none if it gets no smaller, or if the codec is out.

        Raises errors of this chunk alone; errors that all chunks would meet put the codec out.
        """
        self._trust(codec_id)
        if self.outages.has(codec_id, model):
            return []
        try:
            data = await self._work(Op.ENCODE, codec_id, plain, len(plain), model, worker)
        except NnfsError as error:
            if not self.outages.failed(codec_id, model, error):
                raise
            return []
        note(f"encode {NAMES[codec_id]}")
        self.outages.went_well(codec_id, model)
        return [] if data is None else [Payload(codec_id, model, data)]

    def may_gain(self, block: Block) -> bool:
        """Return whether a block is so large that recompression could save enough."""
        speeds = [seconds for seconds in map(self._seconds, RUNGS) if seconds is not None]
        return block.stored > least_saving(block.plain, min(speeds, default=None))

    def _seconds(self, codec_id: int, kind: Kind = Kind.TEXT) -> float | None:
        """Return the seconds that reading a MiB back takes here, as far as that is measured."""
        known = self._speeds.get((codec_id, kind), (math.inf,))[0]
        return known if math.isfinite(known) else None

    async def revive(self, settings: int) -> None:
        """Try once each codec that was out when files were settled. If one runs by now, a round begins."""
        self.outages.clear_if_shipped_anew()
        for codec_id, bit in BITS.items():
            if not settings & bit or self._revived & bit:
                continue
            model = self._network(Rules(Policy.AUTO)) if codec_id == NEURAL else NO_MODEL
            if codec_id == NEURAL and not model:
                continue
            try:
                await self._attempt(codec_id, sample(Kind.TEXT)[:REVIVE], model, READ)
            except NnfsError as error:
                log.debug("codec %s is not tried again yet: %s", NAMES[codec_id], error)
                continue
            self._revived |= 0 if self.outages.has(codec_id, model) else bit

    async def prove(self, block: Block, payload: Payload, worker: str = COMPACT, note: Note = str) -> Proof:
        """Decode a new payload as a reader will, and compare. Raises `CodecError` when the content does not come back.

        The reference also decodes one payload of each batch: the others may be stored once `is_checked` returns True.
        Raises `EnginesDisagree` when it gets other bytes; then no payload of the batch may be stored.
        """
        checks = self._checks[payload.codec]
        batch, is_due = checks.join(block.plain)
        try:
            await self._decodes(block, payload, worker)
            note(f"prove {NAMES[payload.codec]}")
            if is_due:
                await self._check(block, payload)
                checks.agreed(batch)
        except BaseException as error:
            if isinstance(error, CodecUnavailable):  # no engine could prove its payloads
                self.outages.failed(payload.codec, payload.model, error)
            if is_due:
                checks.again.append(batch)
            raise
        return Proof(payload.codec, batch)

    async def _decodes(self, block: Block, payload: Payload, worker: str) -> None:
        plain = await self._work(Op.DECODE, payload.codec, payload.data, block.plain, payload.model, worker)
        if not has_content(plain, block.hash):
            raise CodecError(f"codec {payload.codec}: worker {worker} decodes something else than was encoded")

    async def _check(self, block: Block, payload: Payload) -> None:
        try:
            await self._decodes(block, payload, REFERENCE)
        except ModelMissing:
            raise
        except CodecError as error:
            name = NAMES.get(payload.codec, str(payload.codec))
            self._checks[payload.codec].refuted = why = (
                f"two engines disagree about what codec {name} has encoded, so nothing more is encoded with it until "
                f"the next mount ({error}): mount with device=cpu, and report this"
            )
            log.critical("%s", why)
            raise EnginesDisagree(why) from error

    def is_checked(self, proof: Proof | None) -> bool:
        """Return whether the reference has agreed about a batch. Hot payloads need no check: their `proof` is None."""
        if proof is None:
            return True
        checks = self._checks[proof.codec]
        return proof.batch <= checks.begun and proof.batch not in checks.open and not self.refuted

    @property
    def refuted(self) -> str:
        """Return the reason why a codec is not used any more, "" if there is none."""
        return next((checks.refuted for checks in self._checks.values() if checks.refuted), "")

    def _trust(self, codec_id: int) -> None:
        if self._checks[codec_id].refuted:
            raise EnginesDisagree(self._checks[codec_id].refuted)

    async def _work(
        self, op: Op, codec_id: int, data: bytes, plain: int, fingerprint: bytes, worker: str
    ) -> bytes | None:
        item = WorkItem(op, codec_id, data, plain, fingerprint, BACKGROUND, worker)
        result = await self._cold.run(item)
        assert result is None or isinstance(result, bytes)
        return result

    async def fast_enough(self, codec_id: int, kind: Kind = Kind.TEXT) -> bool:
        """Measure whether a codec decodes a kind of content within the limit of the mount, on this machine.

        A codec that was too slow is measured again, after longer and longer pauses: the machine may have been busy.
        """
        if math.isinf(self._limit):
            return True
        model = self._network(Rules(Policy.AUTO)) if codec_id == NEURAL else NO_MODEL
        if self.outages.has(codec_id, model):
            return False
        if self._speeds.get(key := (codec_id, kind), (math.inf,))[0] <= self._limit:
            return True
        async with self._measuring:
            known, when, wait = self._speeds.get(key, (math.inf, -math.inf, MEASURE_AGAIN / 2))
            if known > self._limit and time.monotonic() - when >= wait:
                try:
                    known = min(known, await self._measure(codec_id, kind))
                except NnfsError as error:
                    if not self.outages.failed(codec_id, model, error):
                        raise
                    return False
                self._speeds[key] = known, time.monotonic(), min(MEASURE_MOST, 2 * wait)
                log.info("codec %s: a reader waits %.1f s for a MiB", _named(codec_id, kind), known)
        return known <= self._limit

    async def _measure(self, codec_id: int, kind: Kind) -> float:
        """Return the seconds that the readers' worker takes to decode a MiB. Readers come first."""
        self.measuring += 1
        try:
            return await self._measured(codec_id, kind)
        finally:
            self.measuring -= 1

    async def _measured(self, codec_id: int, kind: Kind) -> float:
        await wait_while_busy(self._busy)
        plain = sample(kind)
        fingerprint = self._models.default() if codec_id == NEURAL else NO_MODEL
        payload = await self._work(Op.ENCODE, codec_id, plain, len(plain), fingerprint, READ)
        if payload is None:
            return math.inf
        item = WorkItem(Op.DECODE, codec_id, payload, len(plain), fingerprint, AHEAD, READ)
        await self._cold.run(item)  # the worker is started, and has its model
        started = time.monotonic()
        failures: list[NnfsError] = []

        async def decode() -> None:
            try:
                await self._cold.run(item)
            except NnfsError as error:
                failures.append(kept(error))

        async with trio.open_nursery() as nursery:
            for _ in range((1 << 20) // len(plain)):
                nursery.start_soon(decode)
        if failures:
            raise again(failures[0])
        return time.monotonic() - started

    def is_fast(self, codec_id: int, kind: Kind = Kind.TEXT) -> bool:
        """Return whether a codec is known to keep the limit of the mount. Does not measure."""
        key = codec_id, kind
        return key in self._speeds and self._speeds[key][0] <= self._limit

    @property
    def fast(self) -> int:
        """The codecs that are known to keep the limit, and those that run again, as bits."""
        bits = sum(swapping.bit(codec_id) for codec_id in RUNGS if self.is_fast(codec_id))
        bits |= self._revived & ~self.outages.bits
        return bits | (SPECIAL_BIT if all(self.is_fast(CM, kind) for kind in SPECIAL) else 0)

    @property
    def slow(self) -> int:
        """The codecs that were found not to keep the limit, and those that are out, as bits."""
        known = [key for key in self._speeds if not self.is_fast(*key)]
        bits = sum(swapping.bit(codec_id) for codec_id, kind in known if kind is Kind.TEXT)
        return bits | self.outages.bits | (SPECIAL_BIT if any(kind in SPECIAL for _, kind in known) else 0)

    def digest(self) -> int:
        """Return a digest of all that the choice of codecs depends on, but for what is measured or said by policies."""
        options = self._options
        try:
            default = self._models.default()
        except ModelMissing:
            default = b""
        gpus = sorted(glob.glob("/dev/nvidia[0-9]*"))
        of = (options.policy, options.neural, options.thaw_limit, options.device, gpus, default, RUNGS)
        return xxh3_64_intdigest(repr(of).encode())

    def waits_for(self, worker: str) -> bool:
        """Return whether a worker has not started yet: its first work item starts it."""
        return self._cold.waits_for(worker)

    def costs(self, worker: str) -> dict[str, float]:
        """Return seconds per MiB of each step, as measured lately: by this worker if it can be, else by another."""
        found: dict[str, float] = {}
        for state in sorted(self._cold.pool.states(), key=lambda state: state.name == worker):
            if state.name != REFERENCE:  # one thread, another engine
                found |= {f"encode {NAMES[number]}": cost for number, cost in state.encoding.items()}
                for number, cost in state.decoding.items():
                    found |= {f"prove {NAMES[number]}": cost, f"decode {NAMES[number]}": cost}
        return found

    def seconds(self, codec_id: int, worker: str) -> float:
        """Return the seconds that a worker takes to encode and prove a MiB, as measured or, before that, assumed."""
        costs = COSTS | self.costs(worker)
        return costs[f"encode {NAMES[codec_id]}"] + costs[f"prove {NAMES[codec_id]}"]

    def speeds(self) -> dict[str, float]:
        """Return measured seconds per MiB by codec."""
        found = {_named(*key): seconds for key, (seconds, *_) in self._speeds.items()}
        return {name: round(seconds, 2) for name, seconds in found.items() if math.isfinite(seconds)}


def _named(codec_id: int, kind: Kind) -> str:
    return f"{NAMES[codec_id]} {kind.value}".rstrip()
