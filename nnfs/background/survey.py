"""The survey of what recompression has before it: its chunks by kind, and what a codec makes of a sample of each kind.

Chunks of one kind (codec, and how well that has done) are alike enough to say what a slower codec will save of them,
long before it has gone through terabytes: so a dry run tells hours and bytes, and the slow codecs begin where they save
most per second.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from nnfs.background.expectation import kind_of
from nnfs.background.flight import Band
from nnfs.background.tasks import Task
from nnfs.background.timeleft import Kind
from nnfs.codec.base import rung
from nnfs.errors import NnfsError, again, kept
from nnfs.fs.candidates import Candidate
from nnfs.fs.policy import Rules

SAMPLES = 16  # chunks that are encoded of all
TOGETHER = 4  # of them in workers' hands: a pause waits for those
STEP, BANDS = 2.0, 4  # between the bounds of bands; each band is another walk

Size = Callable[[Candidate, Rules], Awaitable[int | None]]


class Sampled(NamedTuple):
    """One chunk of the sample: its kind, and its bytes plain, stored as it is, and as they would be."""

    kind: Kind
    plain: int
    before: int
    after: int


@dataclass(slots=True)
class _Stratum:
    """All chunks of one kind; `rung` is that of the codec that they have."""

    rung: int
    chunks: int = 0
    plain: int = 0
    stored: int = 0
    chosen: list[tuple[Candidate, Rules]] = field(default_factory=list)


class Survey:
    """Counts the chunks that are offered, and keeps a random sample of each kind."""

    def __init__(self) -> None:
        self._strata: dict[Kind, _Stratum] = {}
        self._chance = random.Random(0)
        self.rules: set[Rules] = set()  # of the files that the chunks are in
        self.files = 0  # that a task would look at, also those without such chunks

    def offer(self, candidate: Candidate, rules: Rules) -> None:
        """Count one chunk; at random, take it into the sample."""
        block = candidate.block
        stratum = self._strata.setdefault(kind_of(block, thaw=False), _Stratum(rung(block.codec)))
        self.rules.add(rules)
        stratum.chunks += 1
        stratum.plain += block.plain
        stratum.stored += block.stored
        if len(stratum.chosen) < SAMPLES:
            stratum.chosen.append((candidate, rules))
        elif (place := self._chance.randrange(stratum.chunks)) < SAMPLES:
            stratum.chosen[place] = candidate, rules

    @property
    def kinds(self) -> set[Kind]:
        """Kinds of the chunks that were offered."""
        return set(self._strata)

    @property
    def chunks(self) -> int:
        return sum(stratum.chunks for stratum in self._strata.values())

    @property
    def plain(self) -> int:
        """Bytes of all chunks."""
        return sum(stratum.plain for stratum in self._strata.values())

    def ahead(self, codec_id: int) -> int:
        """Return the plain bytes of the chunks that have a quicker codec than this one."""
        return sum(stratum.plain for stratum in self._strata.values() if stratum.rung < rung(codec_id))

    @property
    def stored(self) -> int:
        """Bytes of the payloads of all chunks."""
        return sum(stratum.stored for stratum in self._strata.values())

    def chosen(self) -> list[tuple[Candidate, Rules]]:
        """Return the sample: as many of each kind as there is room for, the kinds with most bytes first."""
        strata = sorted(self._strata.values(), key=lambda stratum: -stratum.plain)
        rows = itertools.zip_longest(*(stratum.chosen for stratum in strata))
        return list(itertools.islice((one for row in rows for one in row if one is not None), SAMPLES))

    async def sampled(self, task: Task, size: Size) -> list[Sampled]:
        """Measure the sample by `size`, which returns a chunk's bytes, or None when the chunk is gone.

        Raises `Cancelled`, and the error of a chunk when all chunks have failed.
        """
        found: list[Sampled] = []
        failures: list[NnfsError] = []

        async def one(candidate: Candidate, rules: Rules) -> None:
            block = candidate.block
            try:
                after = await size(candidate, rules)
            except NnfsError as error:
                failures.append(kept(error))
            else:
                if after is not None:
                    found.append(Sampled(kind_of(block, thaw=False), block.plain, block.stored, after))

        chosen = self.chosen()
        for start in range(0, len(chosen), TOGETHER):
            await task.checkpoint()
            with task.cancellable():
                async with trio.open_nursery() as nursery:
                    for each in chosen[start : start + TOGETHER]:
                        nursery.start_soon(one, *each)
        if failures and not found:
            raise again(failures[0])
        return found

    def savings(self, sampled: list[Sampled]) -> dict[Kind, float]:
        """Return for each kind the share of its plain bytes that is saved; for a kind without sample that of all."""
        plain, saved = Counter[Kind](), Counter[Kind]()
        for one in sampled:
            plain[one.kind] += one.plain
            saved[one.kind] += one.before - one.after
        mean = saved.total() / max(1, plain.total())
        return {kind: saved[kind] / plain[kind] if plain[kind] else mean for kind in self._strata}

    def saved(self, savings: dict[Kind, float]) -> int:
        """Return the bytes that are saved of all chunks."""
        return int(sum(savings.get(kind, 0.0) * stratum.plain for kind, stratum in self._strata.items()))


def bands(savings: dict[Kind, float]) -> Iterator[Band]:
    """Yield bands of kinds, those that save most first. The kinds of one band save about as much as each other."""
    rest = sorted(savings.values(), reverse=True)
    below = float("inf")
    for number in range(1, BANDS + 1):
        least = rest[0] / STEP if rest and rest[0] > 0 and number < BANDS else float("-inf")
        rest = [saving for saving in rest if saving < least]
        if not rest:
            least = float("-inf")
        yield Band(least, below, savings)
        if not rest:
            return
        below = least
