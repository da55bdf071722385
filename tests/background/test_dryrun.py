"""The sample of a dry run."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
import trio.testing

from nnfs.background.dryrun import SAMPLES, TOGETHER, Sample
from nnfs.background.tasks import Gate, Task
from nnfs.constants import Policy
from nnfs.errors import Cancelled, WorkerError
from nnfs.fs.candidates import Candidate
from nnfs.fs.policy import Rules
from nnfs.store.schema import Block

RULES = Rules(Policy.AUTO)


def sample_of(number: int) -> Sample:
    sample = Sample()
    for n in range(1, number + 1):
        sample.offer(Candidate(n, 0, n, Block(1, 0, 1000, 100 * n, 0, 0, n, 1, bytes(64))), RULES)
    return sample


def job() -> Task:
    async def nothing(job: Task) -> None:
        raise AssertionError

    return Task(1, "dry run", nothing, Gate())


async def half(candidate: Candidate, rules: Rules) -> int | None:
    return candidate.block.stored // 2


async def test_each_chunk_is_as_likely_as_any_other() -> None:
    assert sorted(await sample_of(3).sizes(job(), half)) == [(100, 50), (200, 100), (300, 150)]
    assert len(await sample_of(1000).sizes(job(), half)) == SAMPLES
    sample, drawn = Sample(), Counter[int]()
    for n in range(4000):
        sample.offer(Candidate(n, 0, n, Block(1, 0, 1000, n, 0, 0, n, 1, bytes(64))), RULES)
    for before, _ in await sample.sizes(job(), half):
        drawn[before // 1000] += 1
    assert len(drawn) == 4


async def test_what_is_gone_and_what_fails() -> None:
    async def size(candidate: Candidate, rules: Rules) -> int | None:
        if candidate.number == 1:
            return None
        if candidate.number == 2:
            raise WorkerError("it died")
        return 7

    assert await sample_of(3).sizes(job(), size) == [(300, 7)]
    with pytest.raises(WorkerError):
        await sample_of(2).sizes(job(), size)
    assert await sample_of(0).sizes(job(), size) == []


async def test_paused_between_a_few_and_cancelled_at_once() -> None:
    asked: list[int] = []
    gate = trio.Event()

    async def size(candidate: Candidate, rules: Rules) -> int | None:
        asked.append(candidate.number)
        await gate.wait()
        return 1

    under_way = job()

    async def cancelled() -> None:
        with pytest.raises(Cancelled):
            await sample_of(2 * TOGETHER + 1).sizes(under_way, size)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancelled)
        await trio.testing.wait_all_tasks_blocked()
        assert len(asked) == TOGETHER
        under_way._gate.set(paused=True)
        gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(asked) == TOGETHER
        gate = trio.Event()
        under_way._gate.set(paused=False)
        await trio.testing.wait_all_tasks_blocked()
        assert len(asked) == 2 * TOGETHER
        under_way.cancel()
    assert len(asked) == 2 * TOGETHER
