"""Passes over the tree for recompression: by command, by time, and the dry run that changes nothing."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from nnfs.background.encoder import ColdEncoder
from nnfs.background.flight import ALL, Aim, Band
from nnfs.background.interfaces import Parts
from nnfs.background.outlook import outlook
from nnfs.background.recompression import Recompression
from nnfs.background.survey import Survey, bands
from nnfs.background.tasks import LOOKING, Task
from nnfs.background.timeleft import MIB, Kind
from nnfs.blockio.cold import COMPACT, READ
from nnfs.codec import NAMES
from nnfs.codec.base import CM, FIELDS, NEURAL, RUNGS, rung
from nnfs.config import Options
from nnfs.constants import Policy
from nnfs.errors import Cancelled, NnfsError
from nnfs.fs import swapping
from nnfs.fs.policy import Rules
from nnfs.store.schema import ROOT_INO, State

log = logging.getLogger(__name__)

QUICK_EVERY = 60.0  # seconds, at least, between two looks for what has become cold while slow codecs are at work
SLOW = RUNGS[1:]
REST, REST_MOST = 30.0, 3600.0  # seconds without background passes after the first failure, doubled by each further one


class Passes:
    """The work of `nnfs compact`, of `nnfs thaw`, and of the passes that are due."""

    def __init__(self, parts: Parts, recompression: Recompression, encoder: ColdEncoder, options: Options) -> None:
        self._store, self._commits = parts.store, parts.commits
        self._recompression, self._encoder, self._options = recompression, encoder, options
        self._rest_until, self._rests = 0.0, 0  # after failures, background passes wait
        self._last_error = ""
        self._savings: dict[int, dict[Kind, float]] = {}  # by codec: shares of plain bytes, as sampled in this mount
        self._outlook: dict[int, tuple[int, int]] = {}  # by codec: plain bytes that it has ahead, what it saves of them

    def set_options(self, options: Options) -> None:
        """Take over other options, from the next walk on."""
        self._options = options
        self._savings.clear()
        self._recompression.set_options(options)

    def compact(self, ino: int, *, everything: bool, quick: bool = False, parent: int = 0) -> Callable[[Task], Any]:
        """Return the work of `nnfs compact` on an inode; `parent` is the directory of a file, for its policy.

        With `quick` only the quickest codec is used.
        """
        aim = Aim(rung=1 if quick else 0, parent=parent)
        if everything:
            aim = replace(aim, everything=True, marks=False, tries=False)
            return lambda task: self._recompression.run(task, ino, aim)
        return lambda task: self._pass(task, ino, aim)

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
            await self._climb(task)
        except Cancelled:
            raise
        except NnfsError as error:
            self._last_error = str(error)
            self._rest_until = time.monotonic() + min(REST_MOST, REST * 2.0 ** min(self._rests, 20))
            self._rests += 1
            raise
        self._last_error, self._rests = "", 0

    async def _pass(self, task: Task, ino: int, aim: Aim) -> None:
        """Recompress files that are not settled, or all where a policy or model has changed since they were."""
        unsettles = await self._begin(task)
        await self._recompression.run(task, ino, replace(aim, marks=not unsettles))
        await self._end(unsettles=unsettles and ino == ROOT_INO and not aim.rung)

    async def _climb(self, task: Task) -> None:
        """Recompress the files of the store that are not settled, rung by rung: the quick codecs go first."""
        unsettles = await self._begin(task)
        quick = Aim(rung=1, marks=not unsettles)
        if (await self._survey(task, ROOT_INO, replace(quick, rung=0))).files:
            await self._recompression.run(task, ROOT_INO, quick)
            try:
                for place, codec_id in enumerate(SLOW):
                    # Of the slower ones, too: status tells of all that is ahead.
                    orders = [await self._order(task, one, quick) for one in SLOW[place:]]
                    await self._climb_to(task, codec_id, orders[0], quick)
                    self._outlook.pop(codec_id, None)
            finally:
                self._outlook.clear()
        await self._end(unsettles=unsettles)

    async def _climb_to(self, task: Task, codec_id: int, order: list[Band], quick: Aim) -> None:
        """Recompress with one of the slow codecs, the kinds of content of which it saves most per second first.

        This may take days, so files that become cold meanwhile get the quick codec in between.
        """
        due = time.monotonic() + QUICK_EVERY
        lately = replace(quick, marks=True)  # even if marks are void, files that have become cold since have none

        async def between() -> None:
            nonlocal due
            if time.monotonic() >= due:
                looked = task.looked
                await self._recompression.run(task, ROOT_INO, lately)
                due = time.monotonic() + max(QUICK_EVERY, LOOKING * (task.looked - looked))

        for band in order:
            aim = replace(quick, rung=rung(codec_id), band=band)
            await self._recompression.run(task, ROOT_INO, aim, between)

    async def _order(self, task: Task, codec_id: int, quick: Aim) -> list[Band]:
        """Return the bands in which a codec takes up its candidates, and note the expected savings for the status."""
        aim = replace(quick, rung=rung(codec_id))
        survey = await self._survey(task, ROOT_INO, aim)
        if survey.chunks and any(rules.policy is not Policy.COLD for rules in survey.rules):
            with task.cancellable():
                await self._encoder.fast_enough(codec_id)
        self._outlook.pop(codec_id, None)
        if not self._may_reach(codec_id, survey, everything=False):
            return [ALL]
        savings = self._savings.get(codec_id, {})
        if not survey.kinds <= savings.keys():
            size = functools.partial(self._recompression.size, aim=aim, worker=COMPACT)
            try:
                savings = self._savings[codec_id] = survey.savings(await survey.sampled(task, size))
            except Cancelled:
                raise
            except NnfsError as error:  # with all their chunks: each chunk is decided when its turn comes
                log.debug("codec %s: no sample: %s", NAMES[codec_id], error)
                return [ALL]
        self._outlook[codec_id] = survey.plain, survey.saved(savings)
        return list(bands(savings))

    async def _begin(self, task: Task) -> bool:
        """Begin another round if anything has changed that the marks depend on; return whether they are void."""
        with task.cancellable():
            await self._encoder.revive(self._store.state.settings)
        if self._has_changed():
            with task.cancellable():
                await self._weigh()
            begin = functools.partial(swapping.begin_pass, digest=self._encoder.digest(), fast=self._encoder.fast)
            await self._commits.amend(begin)
        return bool(self._store.state.flags & State.FLAG_UNSETTLING)

    async def _end(self, *, unsettles: bool) -> None:
        if unsettles:
            await self._commits.amend(swapping.end_pass)

    def _has_changed(self) -> bool:
        """Return whether a policy, model, option or speed has changed since the last round began."""
        state = self._store.state
        is_flagged = bool(state.flags & State.FLAG_UNSETTLED)
        return is_flagged or swapping.has_changed(state.settings, self._encoder.digest(), self._encoder.fast)

    async def _weigh(self) -> None:
        """Measure the network before the walk, since it may replace the classical codec if it is quick enough."""
        with self._store.read() as snapshot:
            matters = self._options.neural and any(swapping.has_blocks(snapshot, one) for one in (CM, FIELDS))
        if matters:
            try:
                await self._encoder.fast_enough(NEURAL)
            except NnfsError as error:
                log.debug("the network's speed is not known: %s", error)

    def try_again(self) -> None:
        """Try failed chunks again, since a model has come."""
        self._recompression.forget_failures()
        self._encoder.outages.clear()
        self._savings.clear()
        self._rest_until, self._rests = 0.0, 0

    async def estimate(self, task: Task, ino: int, *, everything: bool, parent: int = 0) -> None:
        """Do the work of `nnfs compact --dry-run`: count the candidates, and encode a sample of them."""
        void = everything or self._has_changed()
        unsettles = bool(self._store.state.flags & State.FLAG_UNSETTLING)
        aim = Aim(everything=everything, marks=not (void or unsettles), tries=not void, parent=parent)
        survey = await self._survey(task, ino, aim)
        task.total_chunks, task.total_bytes, task.stored_before = survey.chunks, survey.plain, survey.stored
        task.note = "" if survey.chunks else aim.why_nothing(self._options)
        task.phase = "encoding a sample"
        rungs, least, count = [], survey.stored, 0
        for rules in survey.rules:
            self._encoder.ensure_any_runs(rules)
        for codec_id in RUNGS:
            if not survey.ahead(codec_id) or not self._may_reach(codec_id, survey, everything=everything):
                continue
            size = functools.partial(self._recompression.size, aim=replace(aim, rung=rung(codec_id)), worker=READ)
            sampled = await survey.sampled(task, size)
            if not self._may_reach(codec_id, survey, everything=everything):
                continue  # its speed has been measured now
            count = max(count, len(sampled))
            least = min(least, survey.stored - survey.saved(survey.savings(sampled)))
            seconds = survey.ahead(codec_id) / MIB * self._encoder.seconds(codec_id, READ)
            rungs.append({"codec": NAMES[codec_id], "stored_bytes": least, "seconds": round(seconds, 1)})
        task.stored_after = least
        task.result = {
            "chunks": survey.chunks, "plain_bytes": survey.plain, "stored_bytes": survey.stored,
            "estimated_bytes": least, "sampled_chunks": count, "rungs": rungs,
        }  # fmt: skip

    def _may_reach(self, codec_id: int, survey: Survey, *, everything: bool) -> bool:
        """Return whether any of the chunks may get this codec, as far as known."""
        tops = (self._encoder.top(rules, everything=everything) for rules in survey.rules)
        return any(top >= rung(codec_id) for top in tops)

    async def _survey(self, task: Task, ino: int, aim: Aim) -> Survey:
        """Return a survey of the chunks that a task with this aim would take up."""
        survey = Survey()
        async for piece in self._recompression.walk(task, ino, aim):
            for candidate in piece.candidates:
                if task.number or not self._recompression.is_put_aside(candidate):
                    survey.offer(candidate, piece.rules)
            survey.files += piece.last
        return survey

    def report(self) -> dict[str, Any]:
        """Return the part of `nnfs status` about recompression."""
        error = self._encoder.refuted or self._last_error
        return {
            "policy": self._options.policy, "saved_bytes": self._recompression.swaps.saved, "last_error": error,
            "rungs": outlook([], self._outlook, self._outlook, self._seconds_per_byte),
        }  # fmt: skip

    def outlook(self, codecs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return what each codec has before it that the mount's policy allows.

        `codecs` are the store's totals by codec. Policies of directories are left out of account.
        """
        policy = Policy(self._options.policy)
        if policy in (Policy.HOT, Policy.NEVER):
            return []
        top = self._encoder.top(Rules(policy), everything=False)
        return outlook(codecs, RUNGS[:top], self._outlook, self._seconds_per_byte)

    def _seconds_per_byte(self, codec_id: int) -> float:
        """Return the seconds in which the background encodes and proves a byte, its pauses included."""
        return self._encoder.seconds(codec_id, COMPACT) / MIB / self._recompression.duty.share
