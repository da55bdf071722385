"""The survey of a store: kinds of chunks, a sample of each, and the order in which a slow codec takes them up."""

from __future__ import annotations

import itertools
import math

import pytest
import trio
import trio.testing

from nnfs.background.survey import BANDS, SAMPLES, TOGETHER, Survey, bands
from nnfs.background.tasks import Gate, Task
from nnfs.codec.base import CM, CM_LIGHT, NEURAL, PPM
from nnfs.constants import Policy
from nnfs.errors import Cancelled, WorkerError
from nnfs.fs.candidates import Candidate
from nnfs.fs.policy import Rules
from nnfs.store.schema import Block

RULES = Rules(Policy.AUTO)
PLAIN = 8000


def candidate(number: int, stored: int, codec: int = 1) -> Candidate:
    return Candidate(number, 0, number, Block(codec, 0, PLAIN, stored, 0, 0, number, 1, bytes(64)))


def survey_of(number: int) -> Survey:
    survey = Survey()
    for n in range(1, number + 1):
        survey.offer(candidate(n, 100), RULES)
    return survey


def task() -> Task:
    async def nothing(task: Task) -> None:
        raise AssertionError

    return Task(1, "dry run", nothing, Gate())


async def half(candidate: Candidate, rules: Rules) -> int | None:
    return candidate.block.stored // 2


async def test_each_chunk_is_as_likely_as_any_other() -> None:
    survey = Survey()
    for n in range(4000):
        survey.offer(candidate(n, 1 + n % 100), RULES)
    chosen = [one.number for one, _ in survey.chosen()]
    assert len(set(chosen)) == SAMPLES
    assert not any(number < SAMPLES for number in chosen)  # they were all replaced: the chance is 1 in 250 each
    assert (survey.chunks, survey.plain, survey.stored) == (4000, 4000 * PLAIN, 4000 * 101 // 2)


async def test_large_kinds_come_first_and_small_ones_have_a_part() -> None:
    survey = Survey()
    for kind in range(8):
        for n in range(10 + kind):
            survey.offer(candidate(100 * kind + n, PLAIN * kind // 8), RULES)
    survey.offer(candidate(1, 3000, PPM), RULES)
    chosen = [one.number // 100 for one, _ in survey.chosen()]
    assert len(chosen) == SAMPLES
    assert chosen[:9] == [7, 6, 5, 4, 3, 2, 1, 0, 0]
    assert {chosen.count(kind) for kind in range(8)} <= {1, 2, 3}


def test_what_a_codec_has_ahead_is_what_quicker_ones_have() -> None:
    survey = Survey()
    for number, codec in enumerate((0, 1, PPM, PPM, CM_LIGHT, CM, NEURAL)):
        survey.offer(candidate(number, 4000, codec), RULES)
    assert [survey.ahead(codec) // PLAIN for codec in (PPM, CM_LIGHT, CM, NEURAL)] == [2, 4, 5, 6]


async def test_savings_by_kind_and_of_all() -> None:
    survey = Survey()
    for n in range(10):
        survey.offer(candidate(n, 4000), RULES)
        survey.offer(candidate(100 + n, 7000), RULES)

    async def size(candidate: Candidate, rules: Rules) -> int | None:
        return 2000 if candidate.block.stored == 4000 else 6900

    savings = survey.savings(await survey.sampled(task(), size))
    assert savings == {("zstd", "4"): 0.25, ("zstd", "7"): 0.0125}
    assert survey.saved(savings) == 10 * 2000 + 10 * 100


async def test_a_kind_without_a_sample_is_like_all_others() -> None:
    survey = survey_of(3)
    survey.offer(candidate(9, 7000), RULES)

    async def size(candidate: Candidate, rules: Rules) -> int | None:
        return None if candidate.number == 9 else 60

    savings = survey.savings(await survey.sampled(task(), size))
    assert savings == {("zstd", "0"): 0.005, ("zstd", "7"): 0.005}
    assert Survey().savings([]) == {}


async def test_what_is_gone_and_what_fails() -> None:
    async def size(candidate: Candidate, rules: Rules) -> int | None:
        if candidate.number == 1:
            return None
        if candidate.number == 2:
            raise WorkerError("it died")
        return 7

    assert [one.after for one in await survey_of(3).sampled(task(), size)] == [7]
    with pytest.raises(WorkerError):
        await survey_of(2).sampled(task(), size)
    assert await survey_of(0).sampled(task(), size) == []


async def test_paused_between_a_few_and_cancelled_at_once() -> None:
    asked: list[int] = []
    gate = trio.Event()

    async def size(candidate: Candidate, rules: Rules) -> int | None:
        asked.append(candidate.number)
        await gate.wait()
        return 1

    under_way = task()
    survey = Survey()
    for n in range(3 * TOGETHER):
        survey.offer(candidate(n, PLAIN * (n % 8) // 8), RULES)
    assert len(survey.chosen()) > 2 * TOGETHER

    async def cancelled() -> None:
        with pytest.raises(Cancelled):
            await survey.sampled(under_way, size)

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


@pytest.mark.parametrize(
    ("savings", "bounds"),
    [
        ([], [-math.inf]),
        ([0.0], [-math.inf]),
        ([0.1], [-math.inf]),
        ([0.1, 0.06], [-math.inf]),
        ([0.1, 0.04, 0.03], [0.05, -math.inf]),
        ([0.1, 0.04, 0.0], [0.05, 0.02, -math.inf]),
        ([0.4, 0.1, 0.04, 0.01, 0.002, -0.1], [0.2, 0.05, 0.02, -math.inf]),
    ],
)
def test_bands_hold_every_kind_once_those_that_save_most_first(savings: list[float], bounds: list[float]) -> None:
    kinds: dict[tuple[str, ...], float] = {(f"kind {n}",): saving for n, saving in enumerate(savings)}
    found = list(bands(kinds))
    assert [band.least for band in found] == pytest.approx(bounds)
    assert [band.is_last for band in found] == [False] * (len(found) - 1) + [True]
    assert len(found) <= BANDS
    assert found[0].below == math.inf
    for one, other in itertools.pairwise(found):
        assert other.below == one.least


def test_a_kind_that_nobody_has_seen_is_in_the_last_band() -> None:
    known: dict[tuple[str, ...], float] = {("zstd", "0"): 0.5, ("zstd", "7"): 0.01}
    first, last = bands(known)
    unseen = candidate(1, 4000).block
    assert not first.has(unseen)
    assert last.has(unseen)
    assert first.has(candidate(1, 10).block)
    assert not last.has(candidate(1, 10).block)
