"""The recompression of one chunk: fetch and verify it, encode it, and prove the new payload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import trio

from nnfs import codec
from nnfs.background.checks import Proof
from nnfs.background.encoder import ColdEncoder
from nnfs.background.expectation import Way
from nnfs.background.flight import Aim, Flight, Ready
from nnfs.background.interfaces import Parts
from nnfs.background.modelchanges import ModelChanges
from nnfs.blockio.cold import BACKGROUND
from nnfs.codec.base import FIRST_COLD, NEURAL
from nnfs.constants import Policy
from nnfs.fs.candidates import Candidate
from nnfs.fs.policy import Rules
from nnfs.store.blocks import Swap, load_block
from nnfs.store.env import Store
from nnfs.store.schema import Block
from nnfs.workers.ladder import decode_hot

T = TypeVar("T")

LOOKING, DECODING, ENCODING, PROVING, THAWING = "looking", "decoding", "encoding", "proving", "thawing"  # phases


class ChunkRecompression:
    """Makes new payloads of single chunks, in the tier that policy and task ask for."""

    def __init__(self, parts: Parts, models: ModelChanges, encoder: ColdEncoder) -> None:
        self._store, self._cold, self._models, self._encoder = parts.store, parts.cold, models, encoder

    async def recompressed(
        self, flight: Flight, candidate: Candidate, rules: Rules, way: Way, *, retired: bool
    ) -> Ready | None:
        """Return a chunk's new payload, proved; a result without a payload where none is worth the swap.

        Returns None when the chunk has changed meanwhile, or when a slower codec is still to try it.
        With `retired` its model is retired, so it gets another payload even if that is larger.
        """
        block = candidate.block

        def ready(codec_id: int = 0, model: int = 0, data: bytes | None = None, proof: Proof | None = None) -> Ready:
            owner = (candidate.ino, candidate.chunk)
            return Ready(Swap(candidate.number, block.payload, owner, codec_id, model, data), block, proof)

        with flight.stage(DECODING if block.codec >= FIRST_COLD else LOOKING):
            found = await self._plain(candidate, flight.worker)
        if block.codec >= FIRST_COLD:
            way(f"decode {codec.NAMES[block.codec]}")
        way("look")
        if found is None or found[1] != block.payload:
            return None  # somebody was faster
        plain = found[0]
        if flight.aim.thaw or rules.policy is Policy.HOT:
            return ready(*await self.hot(plain))
        with flight.stage(ENCODING):
            best = await self._encoder.encode(
                plain, block, rules, everything=flight.aim.everything, only=0 if retired else flight.aim.rung,
                leave=retired, worker=flight.worker, note=way,
            )  # fmt: skip
        if best is None and not retired:
            slowest = self._encoder.top(rules, everything=flight.aim.everything)
            return None if flight.aim.rung and flight.aim.rung < slowest else ready()
        if best is None:
            return ready(*await self.hot(plain))
        with flight.stage(PROVING):
            proof = await self._encoder.prove(block, best, flight.worker, way)
        model = 0
        if best.codec == NEURAL:
            model = await self._models.keep(best.model)
            flight.models[model] = best.model
        return ready(best.codec, model, best.data, proof)

    async def encoded_size(self, candidate: Candidate, rules: Rules, aim: Aim, worker: str) -> int | None:
        """Return the bytes that a chunk would take after a task with this aim, None when the chunk is gone."""
        found = await self._plain(candidate, worker)
        if found is None:
            return None
        block = candidate.block
        best = await self._encoder.encode(
            found[0], block, rules, everything=aim.everything, only=aim.rung, worker=worker
        )
        return block.stored if best is None else len(best.data)

    async def _plain(self, candidate: Candidate, worker: str) -> tuple[bytes, int] | None:
        """Return a chunk's verified plain bytes and the number of their payload, None when the chunk is gone."""
        loaded = await self._in_thread(_load, self._store, candidate.number)
        if loaded is None:
            return None
        block, payload = loaded
        if block.codec >= FIRST_COLD:
            plain = await self._cold.decode(candidate.number, block, payload, priority=BACKGROUND, worker=worker)
        else:
            plain = await self._in_thread(decode_hot, candidate.number, block, payload)
        return plain, block.payload

    async def hot(self, plain: bytes) -> tuple[int, int, bytes]:
        """Return codec, model and payload in the hot tier."""
        codec_id, data = await self._in_thread(codec.encode_hot, plain)
        return codec_id, 0, data

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(function, *args, limiter=self._encoder.threads)


def _load(store: Store, number: int) -> tuple[Block, bytes] | None:
    """Return a block's header and payload, None when it is gone. Raises `StoreDamaged`."""
    with store.read() as snapshot:
        block = load_block(snapshot, number)
        if block is None:
            return None
        return block, snapshot.payload(block.payload, block.stored)
