"""What a job of recompression wants, and its chunks on their way."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from nnfs.blockio.cold import COMPACT, READ
from nnfs.errors import NnfsError
from nnfs.fs.candidates import Piece
from nnfs.mount.jobs import Job
from nnfs.store.blocks import Recode
from nnfs.store.schema import Block


@dataclass(frozen=True, slots=True)
class Aim:
    """What a job wants."""

    everything: bool = False  # ignore ages, the thaw limit and marks
    thaw: bool = False  # into the hot tier, not out of it
    marks: bool = True  # leave files alone that have been looked at
    parent: int = 0  # the directory of the file that is meant, as far as known


@dataclass(slots=True)
class Flow:
    """One job's chunks on their way."""

    job: Job
    aim: Aim
    flushed: float
    plain: int = 0  # bytes under way
    chunks: int = 0
    moved: trio.Event = field(default_factory=trio.Event)
    ready: list[tuple[Recode, Block]] = field(default_factory=list)
    ready_bytes: int = 0
    open: dict[int, int] = field(default_factory=dict)  # ino: chunks under way, 1 more until its last piece came
    failed: set[int] = field(default_factory=set)  # files of which a chunk could not be looked at
    ends: dict[int, Piece] = field(default_factory=dict)
    failures: int = 0  # of workers, in a row
    last_failure: NnfsError | None = None
    is_any_done: bool = False
    told: set[str] = field(default_factory=set)  # of failures: thousands of chunks may have the same one
    error: NnfsError | None = None
    changes: dict[int, int] = field(default_factory=dict)  # ino: growth of its stored bytes
    models: dict[int, bytes] = field(default_factory=dict)  # number: fingerprint, of those encoded with

    @property
    def worker(self) -> str:
        """Who codes: what a person waits for does not wait for an idle machine. Reads come first in both workers."""
        return READ if self.job.number else COMPACT

    def close(self, ino: int) -> None:
        """One of the things that a file waits for is done."""
        self.open[ino] = self.open.get(ino, 1) - 1
