"""The liveness of a worker: it is alive while it makes progress, however long the work takes.

A worker counts the columns that it has done, and reports them about once a second. While it has none to count (imports,
kernels that are compiled, a chunk that is coded in one call), the CPU time of its work counts, up to a bound: an
endless loop moves, too. Time in which the daemon itself was stopped, with the worker or without, does not count.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from nnfs.codec.progress import Stage
from nnfs.workers.wire import Progress

LONGEST = 2.0  # seconds between two looks at the clock: for the rest of a longer time we did not run
LEAST_CPU = 0.05  # seconds of CPU time that are work: threads that only wait use a thousandth of that
MOST_CPU = {Stage.OPENING: 1800.0, Stage.CODING: 600.0}  # CPU seconds, of all cores, without a column


class RunClock:
    """Counts the seconds in which this process ran, by a clock that goes on while it is stopped (by SIGSTOP, say).

    While time counts, `now` must be called at least every `longest` seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, longest: float = LONGEST) -> None:
        self._clock, self._longest = clock, longest
        self._seconds, self._looked = 0.0, clock()

    def now(self) -> float:
        """Return the seconds during which this process ran."""
        looked = self._clock()
        self._seconds += min(looked - self._looked, self._longest)
        self._looked = looked
        return self._seconds


class Vitality:
    """The signs of life of one worker process."""

    def __init__(self, clock: RunClock) -> None:
        self._clock = clock
        self._moved = clock.now()
        self._stage, self._columns = Stage.OPENING, 0
        self._cpu = self._burnt = 0.0  # seconds: in all; since the last column
        self.moves = 0  # how often something has moved

    def move(self) -> None:
        """Note that work is done, or begins."""
        self._burnt = 0.0
        self._move()

    def _move(self) -> None:
        self._moved = self._clock.now()
        self.moves += 1

    def told(self, progress: Progress) -> None:
        """Take in a report of the worker."""
        if (progress.stage, progress.columns) != (self._stage, self._columns):
            self._stage, self._columns = progress.stage, progress.columns
            self.move()
        self.spent(progress.cpu_us / 1e6)

    def spent(self, cpu: float) -> None:
        """Note the CPU seconds that the work has used so far."""
        if cpu - self._cpu >= LEAST_CPU:
            self._burnt += cpu - self._cpu
            self._cpu = cpu
            if self._burnt < MOST_CPU[self._stage]:
                self._move()

    @property
    def silent(self) -> float:
        """The seconds without progress."""
        return self._clock.now() - self._moved


def cpu_of(pid: int) -> float:
    """Return the CPU time of a process in seconds, 0 if it is gone."""
    try:
        fields = _stat(f"/proc/{pid}/stat")
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wants_cpu(pid: int) -> bool:
    """Return whether a thread of a process could run, or waits for a disk: then the process is not hung."""
    try:
        return any(_stat(f"/proc/{pid}/task/{task}/stat")[0] in "RD" for task in os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return False


def _stat(path: str) -> list[str]:
    """Return the fields of a stat file from the state on. The name before it may have blanks and brackets."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()
