"""Passes over the tree for recompression: by command, by time, and the dry run that changes nothing."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from nnfs.background.dryrun import Sample
from nnfs.background.encoder import ColdEncoder
from nnfs.background.flight import Aim
from nnfs.background.interfaces import Parts
from nnfs.background.recompression import Recompression
from nnfs.background.tasks import Task
from nnfs.codec.base import CM, NEURAL
from nnfs.config import Options
from nnfs.errors import Cancelled, NnfsError
from nnfs.fs import swapping
from nnfs.store.schema import ROOT_INO, State

log = logging.getLogger(__name__)

REST, REST_MOST = 30.0, 3600.0  # seconds without background passes after the first failure, doubled by each further one


class Passes:
    """The work of `nnfs compact`, of `nnfs thaw`, and of the passes that are due."""

    def __init__(self, parts: Parts, recompression: Recompression, encoder: ColdEncoder, options: Options) -> None:
        self._store, self._commits = parts.store, parts.commits
        self._recompression, self._encoder, self._options = recompression, encoder, options
        self._rest_until, self._rests = 0.0, 0  # after failures, background passes wait
        self._last_error = ""

    def set_options(self, options: Options) -> None:
        """Go by other options from the next walk on."""
        self._options = options
        self._recompression.set_options(options)

    def compact(self, ino: int, *, everything: bool, parent: int = 0) -> Callable[[Task], Any]:
        """Return the work of `nnfs compact` on an inode; `parent` is the directory of a file, for its policy."""
        if everything:
            return lambda task: self._recompression.run(
                task, ino, Aim(everything=True, marks=False, tries=False, parent=parent)
            )
        return lambda task: self._pass(task, ino, parent)

    def thaw(self, ino: int, parent: int = 0) -> Callable[[Task], Any]:
        """Return the work of `nnfs thaw`."""
        return lambda task: self._recompression.run(
            task, ino, Aim(thaw=True, everything=True, marks=False, parent=parent)
        )

    async def background(self, task: Task) -> None:
        """Recompress the files that have become cold."""
        if time.monotonic() < self._rest_until:
            return
        try:
            await self._pass(task, ROOT_INO)
        except Cancelled:
            raise
        except NnfsError as error:
            self._last_error = str(error)
            self._rest_until = time.monotonic() + min(REST_MOST, REST * 2.0 ** min(self._rests, 20))
            self._rests += 1
            raise
        self._last_error, self._rests = "", 0

    async def _pass(self, task: Task, ino: int, parent: int = 0) -> None:
        """Recompress files that are not settled, or all where a policy or model has changed since they were."""
        with task.cancellable():
            await self._encoder.revive(self._store.state.settings)
        if self._has_changed():
            with task.cancellable():
                await self._weigh()
            begin = functools.partial(swapping.begin_pass, digest=self._encoder.digest(), fast=self._encoder.fast)
            await self._commits.amend(begin)
        unsettles = bool(self._store.state.flags & State.FLAG_UNSETTLING)
        await self._recompression.run(task, ino, Aim(marks=not unsettles, parent=parent))
        if unsettles and ino == ROOT_INO:
            await self._commits.amend(swapping.end_pass)

    def _has_changed(self) -> bool:
        """Return whether a policy, model, option or speed has changed since the last round began."""
        state = self._store.state
        is_flagged = bool(state.flags & State.FLAG_UNSETTLED)
        return is_flagged or swapping.has_changed(state.settings, self._encoder.digest(), self._encoder.fast)

    async def _weigh(self) -> None:
        """Measure the network before the walk, since it may replace the classical codec if it is quick enough."""
        with self._store.read() as snapshot:
            matters = self._options.neural and swapping.has_blocks(snapshot, CM)
        if matters:
            try:
                await self._encoder.fast_enough(NEURAL)
            except NnfsError as error:
                log.debug("the network's speed is not known: %s", error)

    def try_again(self) -> None:
        """Try again what has failed, since a model has come."""
        self._recompression.forget_failures()
        self._encoder.outages.clear()
        self._rest_until, self._rests = 0.0, 0

    async def estimate(self, task: Task, ino: int, *, everything: bool, parent: int = 0) -> None:
        """Work of `nnfs compact --dry-run`: count what would be looked at, and encode a sample of it."""
        void = everything or self._has_changed()
        unsettles = bool(self._store.state.flags & State.FLAG_UNSETTLING)
        aim = Aim(everything=everything, marks=not (void or unsettles), tries=not void, parent=parent)
        sample = Sample()
        async for piece in self._recompression.walk(task, ino, aim):
            for candidate in piece.candidates:
                task.total_chunks += 1
                task.total_bytes += candidate.block.plain
                task.stored_before += candidate.block.stored
                sample.offer(candidate, piece.rules)
        task.note = "" if task.total_chunks else aim.why_nothing(self._options)
        task.phase = "encoding a sample"
        sizes = await sample.sizes(
            task, functools.partial(self._recompression.chunks.encoded_size, everything=everything)
        )
        before, after = sum(b for b, _ in sizes), sum(a for _, a in sizes)
        task.stored_after = task.stored_before * after // before if before else task.stored_before
        task.result = {
            "chunks": task.total_chunks, "plain_bytes": task.total_bytes, "stored_bytes": task.stored_before,
            "estimated_bytes": task.stored_after, "sampled_chunks": len(sizes),
        }  # fmt: skip

    def report(self) -> dict[str, Any]:
        """Return what `nnfs status` shows of recompression."""
        error = self._encoder.refuted or self._last_error
        return {"policy": self._options.policy, "saved_bytes": self._recompression.swaps.saved, "last_error": error}
