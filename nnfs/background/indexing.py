"""Indexing: vectors for `nnfs search`, made in the background of what has been written.

It follows the commits, reads the first block of each file that has changed, and stores the vectors with the next
commit. It gives way to whoever uses the mount, and takes a part of `cpu_budget`: a tenth while recompression is at
work. Blocks of slow codecs are left to recompression, which offers what it decodes.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from nnfs.background.busy import wait_while_busy
from nnfs.background.interfaces import Parts
from nnfs.background.tasks import Tasks
from nnfs.blockio.cold import BACKGROUND, COMPACT, cores
from nnfs.codec.base import CM_LIGHT, PPM
from nnfs.config import Options
from nnfs.errors import NnfsError, OutOfSpace, StoreDamaged
from nnfs.fs.search import upkeep
from nnfs.fs.search.upkeep import ColdFile, Found, Made, Walk
from nnfs.store import vectors

if TYPE_CHECKING:
    from nnfs.fs.search.catalog import Catalog

log = logging.getLogger(__name__)

GATHER_S = 1.0  # seconds from a change to the look at it: files are written piece by piece
IDLE_S = 600.0  # seconds without a question, then the catalog's memory is given back
TOGETHER = 512  # vectors that are stored by one commit
MOST_CHANGES = 200_000  # files that are remembered, then a walk looks for them
OFFERED = 256  # blocks whose beginnings wait
SHARE, BESIDE = 0.5, 10  # of one core at most; so many times less while recompression is at work
RETRY_S = 60.0  # after a failure
SLOW_S = 8.0  # seconds per MiB: blocks of codecs that are slower here are not decoded for this

_QUICK = (PPM, CM_LIGHT)


class Indexer:
    """Keeps the vectors of a mount's files, and the catalog true. `busy()` tells whether the mount is used."""

    def __init__(self, parts: Parts, options: Options, tasks: Tasks, busy: Callable[[], bool]) -> None:
        self._store, self._commits, self._cold = parts.store, parts.commits, parts.cold
        self._read_only = parts.read_only
        self._tasks, self._busy = tasks, busy
        self._options = options
        self.catalog: Catalog | None = None  # after the first question
        self.asked = 0.0  # when the last question was asked
        self.made = 0  # vectors stored in this mount
        self._scope = trio.CancelScope()
        self._limiter = trio.CapacityLimiter(1)
        self._changed: set[int] = set()
        self._offered: list[tuple[int, int, bytes]] = []
        self._must_walk = True
        self._has_left_out = False  # files whose blocks are too slow to decode
        self._is_out = False  # damaged pages
        self._woken, self._is_at_work = trio.Event(), True
        self._ready: list[Made] = []

    @property
    def enabled(self) -> bool:
        """Whether vectors are made."""
        return self._options.search and not self._read_only and not self._is_out

    def set_options(self, options: Options) -> None:
        """Take over other options."""
        if options.search != self._options.search:
            self._must_walk = True
            self._woken.set()
        self._options = options
        if self.catalog is not None:
            self.catalog.limit = options.search_memory

    def note(self, epoch: Any, applied: Any) -> None:
        """Note what a commit has changed: names, and files whose chunks are others now."""
        if self.catalog is not None:
            self.catalog.note(epoch.dentries.keys(), ())
        if not self.enabled or not (applied.maps or epoch.release):
            return
        self._changed.update(applied.maps)
        self._changed.update(epoch.release)
        if len(self._changed) > MOST_CHANGES:
            self._changed, self._must_walk = set(), True
        self._woken.set()

    def offer(self, ino: int, chunk: int, number: int, plain: bytes) -> None:
        """Note the content of a block that has been decoded anyway."""
        if chunk == 0 and self.enabled and len(self._offered) < OFFERED:
            self._offered.append((ino, number, plain[: vectors.HEAD]))
            self._woken.set()

    def open_catalog(self) -> Catalog:
        """Return the catalog of names and vectors; one is made for the first question. Call it in a thread."""
        from nnfs.fs.search.catalog import Catalog  # late: numpy takes 17 MB of the daemon's memory

        self.asked, catalog = time.monotonic(), self.catalog
        if catalog is None:
            catalog = self.catalog = Catalog(self._store, self._options.search_memory)
        return catalog

    def report(self) -> dict[str, Any]:
        """Return the part of `nnfs status` about search."""
        return {
            "vectors": self._options.search,
            "made": self.made,
            "waiting": len(self._changed) + len(self._ready),
            "looking": self.enabled and (self._is_at_work or self._woken.is_set()),
            "memory_bytes": self.catalog.nbytes if self.catalog is not None else 0,
        }

    async def run(self) -> None:
        """Keep the vectors true until stopped."""
        with self._scope:
            await self._run()

    def stop(self) -> None:
        """Stop before the store is closed."""
        self._scope.cancel()

    async def _run(self) -> None:
        while True:
            try:
                await self._round()
                pause, self._is_at_work = 0.0, False
            except StoreDamaged as error:
                self._is_out = True
                log.error("no vectors for search are made until the next mount: %s", error)
                pause = 0.0
            except NnfsError as error:
                log.log(logging.DEBUG if isinstance(error, OutOfSpace) else logging.WARNING, "vectors wait: %s", error)
                self._must_walk, self._ready, pause = True, [], RETRY_S
            if pause:
                await trio.sleep(pause)
                continue
            with trio.move_on_after(IDLE_S):
                await self._woken.wait()
                await trio.sleep(GATHER_S)
            self._let_go()

    def _let_go(self) -> None:
        if self.catalog is not None and time.monotonic() - self.asked > IDLE_S:
            self.catalog = None

    async def _round(self) -> None:
        """Do all that there is to do now."""
        self._woken, self._is_at_work = trio.Event(), True
        if not self._options.search:
            await self._drop()
            return
        if not self.enabled:
            return
        commit, must_walk = self._store.state.commit, self._must_walk
        self._must_walk = self._has_left_out = False
        if must_walk:
            await self._walk()
        await self._renew_offered()
        while self._changed:
            inos, self._changed = sorted(self._changed, reverse=True), set()
            while inos:
                found = await self._in_thread(upkeep.look_at_some, self._store, inos)
                await self._take(found)
        is_whole = must_walk and not self._must_walk and not self._has_left_out
        await self._flush(commit if is_whole else 0)

    async def _walk(self) -> None:
        since = await self._in_thread(_progress, self._store)
        if since >= self._store.state.commit:
            return
        walk = Walk(self._store, since)
        while (found := await self._in_thread(walk.next)) is not None:
            await self._take(found)
            if not self.enabled:
                return

    async def _renew_offered(self) -> None:
        offered, self._offered = self._offered, []
        if offered:
            self._ready += await self._in_thread(upkeep.renewable, self._store, offered)

    async def _take(self, found: Found) -> None:
        """Take over the result of a slice, rest, and store what is enough for a commit."""
        self._ready += found.made
        for cold in found.cold:
            await self._decode(cold)
        await self._renew_offered()
        if len(self._ready) >= TOGETHER:
            await self._flush()
        await self._rest(found.seconds)

    async def _rest(self, seconds: float) -> None:
        threads, share = self._options.background(cores())
        part = min(SHARE, threads * share)
        task = self._tasks.background
        if task is not None and task.state == "running" and task.done_chunks:
            part /= BESIDE
        await trio.sleep(seconds * (1 / part - 1))
        await wait_while_busy(self._busy)
        while self._tasks.gate.paused:
            await self._tasks.gate.changed.wait()

    async def _decode(self, cold: ColdFile) -> None:
        """Have a worker decode a block, if that is quick here."""
        codec_id = cold.block.codec
        if codec_id not in _QUICK and self._cold.slow.get(codec_id, SLOW_S + 1) > SLOW_S:
            self._has_left_out = True
            return
        try:
            plain = await self._cold.decode(
                cold.number, cold.block, cold.payload, priority=BACKGROUND, worker=COMPACT
            )  # fmt: skip
        except NnfsError as error:
            log.debug("inode %d: no vector: %s", cold.ino, error)
            return
        self._offered.append((cold.ino, cold.number, plain[: vectors.HEAD]))

    async def _flush(self, done: int = 0) -> None:
        """Store the vectors that are ready; `done` is the commit up to which all files have been looked at."""
        made, self._ready = self._ready[:TOGETHER], self._ready[TOGETHER:]
        while made or done:
            last = done if not self._ready else 0
            await self._in_thread(upkeep.check_pages, self._store, made)
            change = functools.partial(upkeep.store_vectors, made=made, done=last)
            changed = await self._commits.amend(change, upkeep.size_of(made))
            self.made += sum(bool(one.values) for one in made)
            if self.catalog is not None:
                self.catalog.note((), changed)
            if last or not self._ready:
                return
            made, self._ready = self._ready[:TOGETHER], self._ready[TOGETHER:]

    async def _drop(self) -> None:
        """Delete all vectors: they are not wanted."""
        self._ready, self._offered, self._changed = [], [], set()
        if self._read_only or not await self._in_thread(upkeep.stored, self._store):
            return
        await self._in_thread(upkeep.check_pages, self._store, ())
        while not self._options.search and await self._commits.amend(upkeep.drop_some, 1 << 20, frees=1 << 20):
            await self._rest(upkeep.SLICE_S)
        self.catalog = None

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await trio.to_thread.run_sync(function, *args, limiter=self._limiter)


def _progress(store: Any) -> int:
    with store.read() as snapshot:
        return vectors.progress(snapshot)
