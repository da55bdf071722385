"""The aim of a task of recompression, and the chunks that it has under way."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import trio

from nnfs.background.checks import Proof
from nnfs.background.expectation import kind_of, weight
from nnfs.background.tasks import Task
from nnfs.background.timeleft import Kind
from nnfs.blockio.cold import COMPACT, READ
from nnfs.config import Options, format_duration
from nnfs.errors import NnfsError
from nnfs.fs.candidates import Candidate, Piece
from nnfs.fs.policy import Rules
from nnfs.store.blocks import Swap
from nnfs.store.schema import Block


class Band(NamedTuple):
    """The kinds of content whose expected saving, as a share of their plain bytes, is in [least, below)."""

    least: float
    below: float
    savings: Mapping[Kind, float]  # by kind; what is not listed is in the last band

    def has(self, block: Block) -> bool:
        """Return whether a chunk belongs to it."""
        return self.least <= self.savings.get(kind_of(block, thaw=False), -math.inf) < self.below

    @property
    def is_last(self) -> bool:
        """Whether this is the last band, after which files have been looked at whole."""
        return self.least == -math.inf


ALL = Band(-math.inf, math.inf, {})


@dataclass(frozen=True, slots=True)
class Aim:
    """The data that a task takes up, and the tier that it goes to."""

    everything: bool = False  # ignore ages, the thaw limit and marks
    thaw: bool = False  # into the hot tier, not out of it
    marks: bool = True  # leave files alone that have been looked at
    tries: bool = True  # leave chunks alone that no codec made smaller
    parent: int = 0  # the directory of the file that is meant, as far as known
    rung: int = 0  # the rung of the only codec to try; 0: the smallest result of all codecs that may be used
    band: Band = ALL  # of kinds of content; other kinds are not taken up now

    def why_nothing(self, options: Options) -> str:
        """Return for a person the reason why there is nothing to do."""
        if self.thaw:
            return "nothing to do: all of it is hot already, or has the policy never"
        if self.everything:
            return "nothing to do: all of it is cold or tiny already, or has the policy hot or never"
        write_age, read_age = map(format_duration, (options.write_age, options.read_age))
        return (
            f"nothing is due: a file is cold when nobody has written it for {write_age} nor read it for {read_age} "
            "(options write_age and read_age), and it is looked at once; --all takes everything"
        )


class Ready(NamedTuple):
    """A swap that waits for its commit. `proof` is None for a hot payload."""

    swap: Swap
    block: Block  # as it was
    proof: Proof | None


@dataclass(slots=True)
class Flight:
    """The chunks that one task has under way."""

    task: Task
    aim: Aim
    between: Callable[[], Awaitable[None]]  # of a background task, before each chunk
    flushed: float
    plain: int = 0  # bytes under way
    chunks: int = 0
    together: list[tuple[Candidate, Rules]] = field(default_factory=list)  # admitted, and not begun yet
    moved: trio.Event = field(default_factory=trio.Event)
    ready: list[Ready] = field(default_factory=list)
    ready_bytes: int = 0  # plain
    ready_stored: int = 0  # bytes of the payloads
    open: dict[int, int] = field(default_factory=dict)  # ino: chunks under way, 1 more until its last piece came
    shared: set[int] = field(default_factory=set)  # blocks of several chunks that were taken in hand
    failed: set[int] = field(default_factory=set)  # files of which a chunk could not be looked at
    ends: dict[int, Piece] = field(default_factory=dict)
    failures: int = 0  # of workers, in a row
    last_failure: NnfsError | None = None
    is_any_done: bool = False
    told: set[str] = field(default_factory=set)  # of failures, without numbers: thousands of chunks may have the same
    refused: list[int] = field(default_factory=list)  # payloads that a codec refuses, unless all are
    error: NnfsError | None = None
    changes: dict[int, int] = field(default_factory=dict)  # ino: growth of its stored bytes
    models: dict[int, bytes] = field(default_factory=dict)  # number: fingerprint, of those encoded with
    stages: Counter[str] = field(default_factory=Counter)  # number of chunks by stage

    @property
    def worker(self) -> str:
        """The worker that encodes: for a command that of reads, since that of recompression needs an idle machine."""
        return READ if self.task.number else COMPACT

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count a chunk in this stage while the body runs."""
        self.stages[name] += 1
        try:
            yield
        finally:
            self.stages[name] -= 1

    def take(self, is_checked: Callable[[Proof | None], bool]) -> list[Ready]:
        """Take out the swaps that may be committed."""
        taken = [one for one in self.ready if is_checked(one.proof)]
        self.ready = [one for one in self.ready if not is_checked(one.proof)]
        self.ready_bytes = sum(one.block.plain for one in self.ready)
        self.ready_stored = sum(len(one.swap.data or b"") for one in self.ready)
        return taken

    def drop(self, ready: Iterable[Ready]) -> None:
        """Give up swaps: their files are not done."""
        self.failed.update(one.swap.owner[0] for one in ready)

    def has_taken(self, candidate: Candidate) -> bool:
        """Note a chunk. Return whether its block, which other chunks share, was taken up for one of those already."""
        if candidate.block.refs == 1:
            return False
        if candidate.number in self.shared:
            self.task.done_chunks += 1
            self.task.done_bytes += candidate.block.plain
            self.task.left.drop(kind_of(candidate.block, thaw=self.aim.thaw), weight(candidate.block))
            return True
        self.shared.add(candidate.number)
        return False

    def close(self, ino: int) -> None:
        """Note that one chunk of a file is done, or that its last piece has come."""
        self.open[ino] = self.open.get(ino, 1) - 1
