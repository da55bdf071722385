"""Signs of a worker's progress, by clocks that tests move."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nnfs.codec.progress import Stage
from nnfs.workers.liveness import LONGEST, MOST_CPU, RunClock, Vitality, cpu_of, wants_cpu
from nnfs.workers.wire import Progress
from tests.harness import wait_for


class Time:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.runs = RunClock(lambda: self.now)

    def runs_for(self, seconds: float) -> None:
        """We look at the clock every second."""
        for _ in range(int(seconds)):
            self.now += 1.0
            self.runs.now()


@pytest.fixture
def time() -> Time:
    return Time()


def test_a_time_in_which_we_did_not_run_does_not_count(time: Time) -> None:
    before = time.runs.now()
    time.runs_for(100)
    assert time.runs.now() == before + 100
    time.now += 8 * 3600.0  # SIGSTOP of the whole group, a laptop that sleeps, a debugger
    assert time.runs.now() == before + 100 + LONGEST
    time.runs_for(5)
    assert time.runs.now() == before + 105 + LONGEST


def test_a_worker_that_was_stopped_with_us_does_not_hang(time: Time) -> None:
    vitality = Vitality(time.runs)
    vitality.told(Progress(Stage.CODING, 1, 0))
    time.runs_for(20)
    time.now += 3600.0
    assert vitality.silent == 20 + LONGEST
    vitality.told(Progress(Stage.CODING, 2, 0))
    assert vitality.silent == 0


def test_columns_move_a_worker_however_slow_it_is(time: Time) -> None:
    """300 s of CPU for a chunk, on a machine that is as busy as can be."""
    vitality = Vitality(time.runs)
    for column in range(100):
        time.runs_for(29)
        assert vitality.silent < 30
        vitality.told(Progress(Stage.CODING, column + 1, 0))
    time.runs_for(30)
    assert vitality.silent == 30


def test_the_cpu_time_of_opening_moves_it(time: Time) -> None:
    """Kernels are being compiled: there are no columns for minutes."""
    vitality = Vitality(time.runs)
    for second in range(600):
        time.runs_for(1)
        vitality.told(Progress(Stage.OPENING, 0, second * 1_000_000))
        assert vitality.silent <= 1


def test_the_cpu_time_of_threads_that_wait_does_not(time: Time) -> None:
    vitality = Vitality(time.runs)
    vitality.told(Progress(Stage.CODING, 7, 5_000_000))
    for second in range(30):
        time.runs_for(1)
        vitality.told(Progress(Stage.CODING, 7, 5_000_000 + 1000 * second))
    assert vitality.silent == 30


@pytest.mark.parametrize("stage", Stage)
def test_an_endless_loop_is_found_out(time: Time, stage: Stage) -> None:
    vitality, seconds = Vitality(time.runs), 0
    vitality.told(Progress(stage, 1, 0))
    while vitality.silent < 30:
        time.runs_for(1)
        seconds += 1
        vitality.told(Progress(stage, 1, seconds * 1_000_000))
    assert MOST_CPU[stage] <= seconds <= MOST_CPU[stage] + 31


def test_what_has_moved_is_counted_for_those_who_wait(time: Time) -> None:
    vitality = Vitality(time.runs)
    before = vitality.moves
    vitality.told(Progress(Stage.OPENING, 0, 0))
    assert vitality.moves == before
    vitality.told(Progress(Stage.CODING, 0, 0))
    vitality.spent(1.0)
    vitality.spent(1.01)
    assert vitality.moves == before + 2


@pytest.fixture
def child(request: pytest.FixtureRequest) -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", request.param]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("child", ["while True: pass"], indirect=True)
def test_who_wants_the_cpu_and_does_not_get_it_is_starved(child: int) -> None:
    wait_for("some CPU time", lambda: cpu_of(child) > 0)
    assert wants_cpu(child)
    os.kill(child, signal.SIGSTOP)
    wait_for("the stop", lambda: not wants_cpu(child))
    os.kill(child, signal.SIGCONT)
    wait_for("the rest", lambda: wants_cpu(child))


@pytest.mark.parametrize("child", ["import signal; signal.pause()"], indirect=True)
def test_who_waits_is_not(child: int) -> None:
    wait_for("the wait", lambda: not wants_cpu(child))


def test_a_process_that_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert cpu_of(process.pid) == 0
    assert not wants_cpu(process.pid)
