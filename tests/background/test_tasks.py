"""Long work: in order, once, beside a scrub, and ended in the middle."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from nnfs.background.tasks import KEPT, LOOKING, Run, Task, Tasks


class Work:
    """Work that waits for a gate, and notes when it is begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gates: dict[str, trio.Event] = {}

    def named(self, name: str) -> Run:
        gate = self.gates[name] = trio.Event()

        async def run(job: Task) -> None:
            self.begun.append(name)
            with job.cancellable():
                await gate.wait()

        return run


@asynccontextmanager
async def serving(jobs: Tasks) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(jobs.serve)
        yield
        nursery.cancel_scope.cancel()


def quiet() -> Tasks:
    return Tasks(None, 60, 5)


async def test_one_after_the_other_and_a_scrub_beside_them() -> None:
    jobs, work = quiet(), Work()
    async with serving(jobs):
        scrub, second = (jobs.add("scrub", work.named(name), name) for name in ("scrub", "second scrub"))
        warm = jobs.add("warm", work.named("warm"))
        compact, thaw = (jobs.add(name, work.named(name)) for name in ("compact", "thaw"))
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(work.begun) == ["compact", "scrub", "warm"]
        assert [jobs.before(job) for job in (scrub, second, warm, compact, thaw)] == [[], [scrub], [], [], [compact]]
        work.gates["compact"].set()
        await trio.testing.wait_all_tasks_blocked()
        assert (compact.state, thaw.state, scrub.state, second.state) == ("done", "running", "running", "queued")
        work.gates["scrub"].set()
        await trio.testing.wait_all_tasks_blocked()
        assert (scrub.state, second.state) == ("done", "running")


async def test_the_same_is_done_once() -> None:
    jobs, work = quiet(), Work()
    async with serving(jobs):
        first = jobs.add("compact", work.named("a"), (1, False))
        assert jobs.add("compact", work.named("b"), (1, False)) is first
        await trio.testing.wait_all_tasks_blocked()
        again = jobs.add("compact", work.named("b"), (1, False))  # the first one may have passed by what is meant now
        assert again is not first
        assert jobs.add("compact", work.named("b"), (1, False)) is again
        assert (first.joined, again.joined) == (1, 1)
        other = jobs.add("compact", work.named("c"), (1, True))
        assert other is not first
        assert jobs.add("thaw", work.named("d"), (1, True)) is not other
        again.cancel()
        assert jobs.add("compact", work.named("e"), (1, False)) is not again  # one that ends is not joined


async def test_cancelled_in_the_middle_of_a_long_step() -> None:
    jobs, work = quiet(), Work()
    async with serving(jobs):
        running, queued = (jobs.add(name, work.named(name)) for name in ("compact", "thaw"))
        await trio.testing.wait_all_tasks_blocked()
        for job in (queued, running):
            assert jobs.cancel(job.number) is job
        await trio.testing.wait_all_tasks_blocked()
        assert (running.state, queued.state) == ("cancelled", "cancelled")
        assert work.begun == ["compact"]


async def test_jobs_that_ended_are_forgotten_at_some_time() -> None:
    jobs = quiet()

    async def nothing(job: Task) -> None:
        pass

    async with serving(jobs):
        for n in range(2 * KEPT):
            jobs.add("compact", nothing, n)
            await trio.testing.wait_all_tasks_blocked()
        assert len(jobs.all()) == KEPT + 1


# -- in the background


async def test_what_is_due_is_looked_for_soon_and_then_now_and_then(autojump_clock: trio.testing.MockClock) -> None:
    """The longer it takes to look, the more rarely."""
    times: list[float] = []
    looked = [0.0, 1.0, 100.0, 0.0]

    async def idle(job: Task) -> None:
        times.append(trio.current_time() - began)
        job.looked = looked[len(times) - 1]

    began = trio.current_time()
    async with serving(Tasks(idle, 60, 5)):
        await trio.sleep(5 + 60 + 60 + (LOOKING - 1) * 100 + 1)
    assert times == [5, 65, 125, 125 + (LOOKING - 1) * 100]


@pytest.mark.parametrize(("kind", "state"), [("thaw", "cancelled"), ("scrub", "running")])
async def test_the_background_makes_way(kind: str, state: str, autojump_clock: trio.testing.MockClock) -> None:
    work = Work()
    jobs = Tasks(work.named("background"), 60, 5)
    async with serving(jobs):
        await trio.sleep(6)
        jobs.add(kind, work.named(kind))
        await trio.sleep(1)
        assert jobs.background is not None
        assert jobs.background.state == state
        assert work.begun == ["background", kind]


async def test_paused_nothing_is_looked_for(autojump_clock: trio.testing.MockClock) -> None:
    work = Work()
    jobs = Tasks(work.named("background"), 60, 5)
    jobs.gate.set(paused=True)
    async with serving(jobs):
        await trio.sleep(1000)
        assert work.begun == []
        jobs.gate.set(paused=False)
        await trio.sleep(61)
        assert work.begun == ["background"]
