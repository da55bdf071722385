"""The time left of a task, on traces of known ends. The clock is the trace's own."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nnfs.background import timeleft
from nnfs.background.expectation import assumed
from nnfs.background.timeleft import MIB, TimeLeft
from nnfs.codec.base import CM

CHUNK = 128 << 10
RAW, TEXT, LOGS = ("raw",), ("zstd", "2"), ("zstd", "0")
ASSUMED = {
    RAW: {"look": 1.0, "encode neural": 0.02, "prove neural": 0.02},
    TEXT: {"look": 1.0, "encode neural": 1.0, "prove neural": 1.0, "encode cm": 0.3},
    LOGS: {"look": 1.0, "encode neural": 1.0, "prove neural": 1.0, "encode cm": 0.3},
}


@dataclass
class Machine:
    """Does chunks as workers do: looks at each, encodes batches, and decodes them; time passes accordingly."""

    seconds: dict[str, float] = field(
        default_factory=lambda: {"look": 0.01, "encode neural": 9.0, "prove neural": 14.0, "encode cm": 5.0}
    )  # per MiB
    batch: int = 8  # chunks that workers answer together
    setup: float = 0.0  # seconds until a worker is there
    opening: float = 0.0  # seconds of the first batch that are not its own
    busy_from: int = 1 << 60  # chunk from which everything takes twice as long
    now: float = 1000.0

    def steps(self, kind: tuple[str, ...]) -> list[str]:
        if kind == RAW:
            return ["look"]
        return ["look", "encode neural", *(["encode cm"] if kind == LOGS else []), "prove neural"]

    def run(self, kinds: list[tuple[str, ...]], left: TimeLeft) -> Iterator[float]:
        """Do all of it; yields the time after every batch's step."""
        for kind in kinds:
            left.expect(kind, CHUNK, ASSUMED[kind])
        self.now += self.setup
        left.go(self.now)
        left.stop(self.now)  # the worker is there, and opens a model
        self.now += self.opening
        left.go(self.now)
        for start in range(0, len(kinds), self.batch):
            batch = kinds[start : start + self.batch]
            slow = 2.0 if start >= self.busy_from else 1.0
            for step in ("look", "encode neural", "encode cm", "prove neural"):
                mine = [kind for kind in batch if step in self.steps(kind)]
                self.now += slow * self.seconds[step] * len(mine) * CHUNK / MIB
                for kind in mine:
                    left.did(kind, step, CHUNK, self.now)
                yield self.now
            for kind in batch:
                left.ended(kind, CHUNK, dict.fromkeys(self.steps(kind), CHUNK))


def predictions(machine: Machine, kinds: list[tuple[str, ...]]) -> list[tuple[float, float, float]]:
    """(share of the time that has passed, seconds predicted, seconds that were true) after each step."""
    left, begin = TimeLeft(), machine.now + machine.setup + machine.opening
    found = [(now, left.left(now)) for now in machine.run(kinds, left)]
    end = machine.now
    return [((now - begin) / (end - begin), predicted, end - now) for now, predicted in found if predicted is not None]


def mixed(count: int, seed: int = 1) -> list[tuple[str, ...]]:
    """Return files as in a tree: those of a kind lie together."""
    chance = random.Random(seed)
    kinds: list[tuple[str, ...]] = []
    while len(kinds) < count:
        kinds += [chance.choice([RAW, TEXT, LOGS])] * chance.randrange(1, 12)
    return kinds[:count]


def check(found: list[tuple[float, float, float]], limit: float = 0.30) -> None:
    worst = [(share, predicted, true) for share, predicted, true in found if 0.1 <= share <= 0.9]
    assert worst
    for share, predicted, true in worst:
        assert abs(predicted - true) <= limit * true, f"at {share:.0%}: {predicted:.0f} s predicted, {true:.0f} s true"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("batch", [1, 8, 16])
def test_mixed_files(seed: int, batch: int) -> None:
    check(predictions(Machine(batch=batch), mixed(160, seed)))


@pytest.mark.parametrize(
    "kinds",
    [[RAW] * 80 + [TEXT] * 80, [TEXT] * 80 + [RAW] * 80, [LOGS] * 40 + [TEXT] * 120, [TEXT] * 120 + [LOGS] * 40,
     [RAW] * 160, [TEXT] * 160],
)  # fmt: skip
def test_kinds_that_come_one_after_the_other(kinds: list[tuple[str, ...]]) -> None:
    """Skipped chunks must not change the rate of encoded ones, in any order."""
    check(predictions(Machine(), kinds))


def test_setting_up_is_no_rate() -> None:
    check(predictions(Machine(setup=900.0), mixed(160)))
    check(predictions(Machine(opening=600.0), mixed(160)))


@pytest.mark.parametrize("factor", [0.02, 0.3, 5.0])
def test_any_machine(factor: float) -> None:
    machine = Machine()
    machine.seconds = {step: factor * seconds for step, seconds in machine.seconds.items()}
    check(predictions(machine, mixed(160)))


def test_a_gpu_has_other_ratios_and_measures_them() -> None:
    machine, left = Machine(), TimeLeft()
    machine.seconds |= {"encode neural": 0.4, "prove neural": 0.5}
    found = [(now, left.left(now, machine.seconds)) for now in machine.run(mixed(160), left)]
    begin, end = 1000.0, machine.now
    check([((now - begin) / (end - begin), left, end - now) for now, left in found if left is not None])


def test_a_machine_that_gets_busy_is_noticed() -> None:
    found = predictions(Machine(busy_from=80), [TEXT] * 400)
    check([one for one in found if one[0] > 0.5])


def test_a_pause_stops_the_clock() -> None:
    left, machine, kinds = TimeLeft(), Machine(), mixed(160)
    for n, now in enumerate(machine.run(kinds, left)):
        if n == 20:
            before = left.left(now)
            left.stop(now)
            assert left.left(now + 5000) == before
            left.go(now + 5000)
            machine.now += 5000
            assert left.left(now + 5000) == before
        if n == 60:
            assert left.left(now) is not None
            predicted, at = left.left(now), now
    assert predicted is not None
    assert abs(predicted - (machine.now - at)) < 0.3 * (machine.now - at)


def test_nothing_is_said_before_anything_is_known() -> None:
    left = TimeLeft()
    assert left.left(5.0) is None
    left.expect(TEXT, CHUNK, ASSUMED[TEXT])
    left.go(5.0)
    assert left.left(10.0) is None
    left.did(TEXT, "look", CHUNK, 10.0)
    assert left.left(10.0) is None  # looking says nothing about workers
    assert left.left(10.0, {"encode neural": 800.0, "prove neural": 800.0}) == pytest.approx(203, abs=5)  # a past task
    left.expect(TEXT, CHUNK, ASSUMED[TEXT])
    left.did(TEXT, "encode neural", CHUNK, 105.0)
    assert left.left(105.0) is None  # the first batch compiles, or reads a model
    left.did(TEXT, "encode neural", CHUNK, 205.0)
    assert left.left(205.0) == pytest.approx(260, abs=40)


def test_the_end_is_none_left() -> None:
    left, machine = TimeLeft(), Machine()
    for _ in machine.run(mixed(32), left):
        pass
    assert left.left(machine.now) == 0.0


def measured(now: float) -> dict[str, float]:
    """Return the costs that workers had measured in the recorded task: encoding first, proving estimated by it."""
    return {"encode cm": 47.0, "prove cm": 28.0} if now > 320 else {"encode cm": 47.0} if now > 175 else {}


class Recording:
    """A recorded task of tools/bench_eta: lines of time in seconds, kind, step and bytes, to be replayed."""

    def __init__(self, name: str) -> None:
        rows = [line.split() for line in Path(__file__).with_name(name).read_text().splitlines()]
        self._events = [
            (float(at), tuple(kind.split("-")), step.replace("-", " "), int(size)) for at, kind, step, size in rows
        ]
        self._flying = Counter[tuple[tuple[str, ...], str]]()
        self.end = self._events[-1][0]

    def chunks(self) -> list[tuple[tuple[str, ...], int]]:
        """Return kind and bytes of the chunks that are still to end."""
        return [(kind, size) for _, kind, step, size in self._events if step == "end"]

    def replay(self, left: TimeLeft, now: float) -> None:
        """Tell `left` the events up to a time, each once."""
        while self._events and self._events[0][0] <= now:
            at, kind, step, size = self._events.pop(0)
            if step == "end":
                steps = {name: min(size, self._flying[kind, name]) for name in ("look", "encode cm", "prove cm")}
                self._flying.subtract({(kind, name): done for name, done in steps.items()})
                left.ended(kind, size, steps)
            else:
                self._flying[kind, step] += size
                left.did(kind, step, size, at)


def test_a_recorded_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """6 MB with `tools/bench_eta --options neural=off --trace`, two busy cores: 410 s. The first batch compiled."""
    monkeypatch.setattr(timeleft, "COSTS", timeleft.COSTS | {"encode cm": 8.0, "prove cm": 6.0})  # as it was then
    recording, begin = Recording("timeleft-cm.txt"), 40.0
    left, end, sizes = TimeLeft(), recording.end, Counter[tuple[str, ...]]()
    for kind, size in recording.chunks():
        sizes[kind] += size
    for kind, size in sizes.items():
        left.expect(kind, size, assumed(kind, CM))
    left.go(begin)
    told: list[tuple[float, float | None]] = []
    for now in range(int(begin), int(end), 5):
        recording.replay(left, now)
        told.append((now, left.left(now, measured(now))))
    known = [((now - begin) / (end - begin), one, end - now) for now, one in told if one is not None]
    assert len(known) > 50
    check(known, 0.33)  # once, before a batch that took twice as long as the one before: other work came to the machine


def test_a_recorded_task_of_files_of_all_sizes() -> None:
    """20 MB with `tools/bench_eta --options neural=off --trace`, two quiet cores: 92 s, a third of the chunks small.

    Sizes are as expectations count them: with what beginning a chunk takes, else the rate of small files that come
    first is taken for that of all (25 % too long for most of the way).
    """
    recording = Recording("timeleft-cm-20mb.txt")
    left, end = TimeLeft(), recording.end
    for kind, size in recording.chunks():
        left.expect(kind, size, assumed(kind, CM))
    left.go(0.0)
    told: list[tuple[float, float | None, float]] = []
    for tenth in range(1, 10):
        now = end * tenth / 10
        recording.replay(left, now)
        told.append((tenth / 10, left.left(now, {"encode cm": 4.6, "prove cm": 4.0}), end - now))
    check([(way, one, true) for way, one, true in told if one is not None], 0.3)
    assert len(told) == 9
