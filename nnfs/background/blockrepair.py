"""Repair of damaged blocks: a scrub's search for the true stored bytes or for a copy; storing repaired bytes."""

from __future__ import annotations

import functools
import logging
import math
import time

import trio

from nnfs import codec
from nnfs.background.interfaces import Commits, Parts
from nnfs.background.tasks import Task
from nnfs.blockio.cold import BACKGROUND, READ
from nnfs.blockio.repairsearch import repair_beside
from nnfs.errors import NnfsError
from nnfs.fs import swapping
from nnfs.proof import WRONG_CHECKSUM, has_content, wrong_payload
from nnfs.store.blocks import Swap
from nnfs.store.schema import Block
from nnfs.workers.ladder import decode_hot

log = logging.getLogger(__name__)

SEARCH_S, SEARCHES_S = 10.0, 60.0  # seconds of one search; of vain ones before damage is only reported


class Repairer:
    """The repairs of one scrub."""

    def __init__(self, parts: Parts, threads: trio.CapacityLimiter) -> None:
        self._commits, self._reads, self._cold, self._threads = parts.commits, parts.reads, parts.cold, threads
        self._read_only = parts.read_only
        self.repaired = 0  # blocks
        self._in_vain = 0.0  # seconds

    async def repair(self, task: Task, number: int, block: Block, payload: bytes) -> bool:
        """Look for a small change that gives a block its stored bytes back; whether they are stored again.

        Raises `Cancelled`.
        """
        if self._in_vain >= SEARCHES_S or wrong_payload(payload, block.stored, block.xxh3) != WRONG_CHECKSUM:
            return False
        started = time.monotonic()
        with task.cancellable():
            whole = await repair_beside(payload, block.xxh3, min(SEARCH_S, SEARCHES_S - self._in_vain))
        if whole is None:
            self._in_vain += time.monotonic() - started
            return False
        repaired = Swap(number, block.payload, (0, 0), block.codec, block.model, whole)
        return await self._proved(number, block, whole) and await self._store(repaired)

    async def replace(self, number: int, block: Block) -> bool:
        """Store a block's content anew, from a copy in memory or on disk; whether there was one."""
        plain = self._reads.cache.get(number)
        if plain is None and self._reads.thawed is not None:
            plain = await trio.to_thread.run_sync(self._reads.thawed.get, number, block, limiter=self._threads)
        if plain is None or not has_content(plain, block.hash):
            return False
        codec_id, data = await trio.to_thread.run_sync(codec.encode_hot, plain, limiter=self._threads)
        return await self._store(Swap(number, block.payload, (0, 0), codec_id, 0, data))

    async def _proved(self, number: int, block: Block, payload: bytes) -> bool:
        """Return whether stored bytes decode to the block's content."""
        try:
            if block.codec < codec.FIRST_COLD:
                await trio.to_thread.run_sync(decode_hot, number, block, payload, limiter=self._threads)
            else:
                await self._cold.decode(number, block, payload, priority=BACKGROUND, worker=READ)
        except NnfsError as error:
            log.error("block %d: the repaired bytes cannot be decoded: %s", number, error)
            return False
        return True

    async def _store(self, repaired: Swap) -> bool:
        """Replace a damaged block's stored bytes by proved ones; whether that was possible."""
        if self._read_only or repaired.data is None:
            return False
        try:
            change = functools.partial(swapping.swap, swaps=[repaired])
            [done] = await self._commits.amend(change, len(repaired.data))
        except NnfsError as error:
            log.warning("block %d could be repaired, but that is not stored: %s", repaired.number, error)
            return False
        if done is not None:
            log.warning("block %d is repaired", repaired.number)
            self.repaired += 1
            self._reads.damaged.remove(repaired.number)
        return done is not None


class RepairedBlocks:
    """A queue of blocks that reads have repaired in memory, and whose true stored bytes are to be stored."""

    def __init__(self, *, read_only: bool = False) -> None:
        self._read_only = read_only
        self._send, self._receive = trio.open_memory_channel[Swap](math.inf)

    def put(self, number: int, block: Block, payload: bytes) -> None:
        """Add a block with its true stored bytes; a mount that is read-only forgets it."""
        if not self._read_only:
            self._send.send_nowait(Swap(number, block.payload, (0, 0), block.codec, block.model, payload))

    async def run(self, commits: Commits) -> None:
        """Store what is queued, until cancelled. Blocks that come together are stored in one commit."""
        async with trio.open_nursery() as nursery:
            async for repaired in self._receive:
                nursery.start_soon(_store_repaired, commits, repaired)


async def _store_repaired(commits: Commits, repaired: Swap) -> None:
    try:
        await commits.amend(functools.partial(swapping.swap, swaps=[repaired]), len(repaired.data or b""))
    except Exception as error:  # noqa: BLE001 - the mount goes on, the next read repairs it again
        log.warning("block %d was repaired, but that is not stored: %s", repaired.number, error)
