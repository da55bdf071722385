"""The estimate of what recompression would save, from a sample of its chunks."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import trio

from nnfs.background.tasks import Task
from nnfs.errors import NnfsError, again, kept
from nnfs.fs.candidates import Candidate
from nnfs.fs.policy import Rules

SAMPLES = 16  # chunks
TOGETHER = 4  # of them in workers' hands: a pause waits for those

Size = Callable[[Candidate, Rules], Awaitable[int | None]]


class Sample:
    """A random sample of the chunks that are offered."""

    def __init__(self) -> None:
        self._chosen: list[tuple[Candidate, Rules]] = []
        self._offered = 0
        self._chance = random.Random(0)

    def offer(self, candidate: Candidate, rules: Rules) -> None:
        """Consider one chunk for the sample."""
        self._offered += 1
        place = self._chance.randrange(self._offered)
        if len(self._chosen) < SAMPLES:
            self._chosen.append((candidate, rules))
        elif place < SAMPLES:
            self._chosen[place] = candidate, rules

    async def sizes(self, task: Task, size: Size) -> list[tuple[int, int]]:
        """Return the stored bytes of each chunk, as they are and as `size` says; where it says None, the chunk is gone.

        Raises `Cancelled`, and what went wrong with a chunk when something did with all of them.
        """
        found: list[tuple[int, int]] = []
        failures: list[NnfsError] = []

        async def one(candidate: Candidate, rules: Rules) -> None:
            try:
                after = await size(candidate, rules)
            except NnfsError as error:
                failures.append(kept(error))
            else:
                if after is not None:
                    found.append((candidate.block.stored, after))

        for start in range(0, len(self._chosen), TOGETHER):
            await task.checkpoint()
            with task.cancellable():
                async with trio.open_nursery() as nursery:
                    for chosen in self._chosen[start : start + TOGETHER]:
                        nursery.start_soon(one, *chosen)
        if failures and not found:
            raise again(failures[0])
        return found
