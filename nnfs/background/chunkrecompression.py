"""The recompression of one chunk: fetch and verify it, encode it, and prove the new payload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import trio

from nnfs import codec
from nnfs.background.checks import Proof
from nnfs.background.encoder import ColdEncoder
from nnfs.background.expectation import Way
from nnfs.background.flight import Aim, Flight, Ready
from nnfs.background.interfaces import Parts
from nnfs.background.modelchanges import ModelChanges
from nnfs.blockio.cold import BACKGROUND
from nnfs.codec.base import FIRST_COLD, NEURAL, format_of
from nnfs.codec.compressible import compressible
from nnfs.constants import Policy
from nnfs.errors import NnfsError, again, kept
from nnfs.fs.candidates import Candidate
from nnfs.fs.policy import Rules
from nnfs.store.blocks import Swap, load_block
from nnfs.store.env import Store
from nnfs.store.schema import Block
from nnfs.store.txn import Snapshot
from nnfs.workers.ladder import decode_hot

T = TypeVar("T")

LOOKING, DECODING, ENCODING, PROVING, THAWING = "looking", "decoding", "encoding", "proving", "thawing"  # phases


class Looked(NamedTuple):
    """A block as it is stored, and its verified plain bytes; for a cold one, which a worker decodes, its payload."""

    block: Block
    data: bytes
    is_compressible: bool


class ChunkRecompression:
    """Makes new payloads of single chunks, in the tier that policy and task ask for."""

    def __init__(self, parts: Parts, models: ModelChanges, encoder: ColdEncoder) -> None:
        self._store, self._cold, self._models, self._encoder = parts.store, parts.cold, models, encoder
        self.on_plain: Callable[[int, int, int, bytes], None] = _nobody  # inode, chunk, block, content of cold ones

    async def recompressed(
        self, flight: Flight, candidate: Candidate, rules: Rules, way: Way, looked: Looked | NnfsError | None,
        *, retired: bool,
    ) -> Ready | None:  # fmt: skip
        """Return a chunk's new payload, proved; a result without a payload where none is worth the swap.

        `looked` is what `look` has returned for it.

        Returns None when the chunk has changed meanwhile, or when a slower codec is still to try it.
        With `retired` its model is retired, so it gets another payload even if that is larger.
        """
        block = candidate.block

        def ready(codec_id: int = 0, model: int = 0, data: bytes | None = None, proof: Proof | None = None) -> Ready:
            owner = (candidate.ino, candidate.chunk)
            return Ready(Swap(candidate.number, block.payload, owner, codec_id, model, data), block, proof)

        with flight.stage(DECODING if block.codec >= FIRST_COLD else LOOKING):
            plain = await self._plain(candidate.number, looked, flight.worker)
        if block.codec >= FIRST_COLD:
            way(f"decode {codec.NAMES[block.codec]}")
        way("look")
        if plain is None or not isinstance(looked, Looked) or looked.block.payload != block.payload:
            return None  # somebody was faster
        if block.codec >= FIRST_COLD:
            self.on_plain(candidate.ino, candidate.chunk, candidate.number, plain)
        if flight.aim.thaw or rules.policy is Policy.HOT:
            return ready(*await self.hot(plain))
        best = None
        if looked.is_compressible:
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
        return ready(format_of(best.codec, best.data), model, best.data, proof)

    async def encoded_size(self, candidate: Candidate, rules: Rules, aim: Aim, worker: str) -> int | None:
        """Return the bytes that a chunk would take after a task with this aim, None when the chunk is gone."""
        (looked,) = await self.look([candidate])
        plain = await self._plain(candidate.number, looked, worker)
        if plain is None or not isinstance(looked, Looked):
            return None
        block, best = candidate.block, None
        if looked.is_compressible:
            best = await self._encoder.encode(
                plain, block, rules, everything=aim.everything, only=aim.rung, worker=worker
            )
        return block.stored if best is None else len(best.data)

    async def look(self, candidates: Sequence[Candidate]) -> list[Looked | NnfsError | None]:
        """Return for each chunk its block, None when that is gone, or the error that it met."""
        return await self._in_thread(_look, self._store, [candidate.number for candidate in candidates])

    async def _plain(self, number: int, looked: Looked | NnfsError | None, worker: str) -> bytes | None:
        """Return a chunk's verified plain bytes, None when the chunk is gone. Raises the error that it met."""
        if isinstance(looked, NnfsError):
            raise again(looked)
        if looked is None or looked.block.codec < FIRST_COLD:
            return looked and looked.data
        return await self._cold.decode(number, looked.block, looked.data, priority=BACKGROUND, worker=worker)

    async def hot(self, plain: bytes) -> tuple[int, int, bytes]:
        """Return codec, model and payload in the hot tier."""
        codec_id, data = await self._in_thread(codec.encode_hot, plain)
        return codec_id, 0, data

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(function, *args, limiter=self._encoder.threads)


def _nobody(_ino: int, _chunk: int, _number: int, _plain: bytes) -> None:
    pass


def _look(store: Store, numbers: Sequence[int]) -> list[Looked | NnfsError | None]:
    with store.read() as snapshot:
        found: list[Looked | NnfsError | None] = []
        for number in numbers:
            try:
                found.append(_looked(number, snapshot))
            except NnfsError as error:
                found.append(kept(error))
    return found


def _looked(number: int, snapshot: Snapshot) -> Looked | None:
    block = load_block(snapshot, number)
    if block is None:
        return None
    payload = snapshot.payload(block.payload, block.stored)
    if block.codec >= FIRST_COLD:
        return Looked(block, payload, is_compressible=True)
    plain = decode_hot(number, block, payload)
    return Looked(block, plain, compressible(plain))
