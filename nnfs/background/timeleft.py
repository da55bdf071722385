"""The time left of a task of recompression, thawing or scrub. Pure: the caller passes the time.

A task is chunks of several *kinds* (known before a chunk is touched, they tell whether it will be skipped or takes
long), each of which goes through some *steps* ("look", "encode neural", "prove neural"). A step has a cost, seconds per
MiB as workers measure it; only the ratio of costs matters, since the work done so far and the time it took give the
scale. The share of a kind's bytes that goes through a step is learned from the chunks that have ended, so skipped,
encoded and proved chunks have rates of their own. While nothing can get on (a worker starts, something is measured,
work is paused) the clock stands still.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

MIB = 1 << 20
COSTS = {  # seconds per MiB until measured, on a small machine without a GPU
    "look": 0.05, "encode neural": 11.0, "prove neural": 13.0, "decode neural": 13.0,
    "encode cm": 1.1, "prove cm": 1.0, "decode cm": 1.0,
    "encode cm-light": 0.7, "prove cm-light": 0.7, "decode cm-light": 0.7,
    "encode ppm": 0.1, "prove ppm": 0.1, "decode ppm": 0.1,
}  # fmt: skip
OTHER = 1.0  # of a step that is not listed
LOOK = "look"  # the step without a worker: fetching, hashing, deciding that encoding is not worth it
HEAVY = 0.25  # share of the looked-at bytes that goes to workers; below it, looking decides how long a task takes
SMALL = 0.5  # of the mean of all batches
DOUBT = 64 << 10  # bytes by which the assumption about a kind is weighted, against the bytes of its chunks so far
LUMP_S, LUMP = 0.25, 0.03  # seconds, share of the time: chunks that end within this are one batch
WINDOW_S = 300.0  # seconds of the past that give the scale; half of the past if that is more: machines get busy

Kind = tuple[str, ...]  # a family and what tells its members apart
Steps = Mapping[str, float]  # share of the bytes that goes through each step


class _Mark(NamedTuple):
    """The work that was done by a time of the task's clock."""

    first: float  # of the batch
    last: float
    done: Counter[str]  # bytes by step


class TimeLeft:
    """One task's clock, work and expectations."""

    def __init__(self) -> None:
        self._expected: Counter[Kind] = Counter()  # bytes
        self._ended: Counter[Kind] = Counter()
        self._assumed: dict[Kind, Steps] = {}
        self._seen: Counter[tuple[Kind, str]] = Counter()  # bytes of chunks that have ended, by step
        self._flying: Counter[tuple[Kind, str]] = Counter()  # of those that have not
        self._done: Counter[str] = Counter()
        self._active, self._since = 0.0, -1.0  # the clock; negative: it stands still
        self._at_stop: Counter[str] = Counter()  # what was done when it was stopped
        self._marks: list[_Mark] = []

    # -- the clock

    def go(self, now: float) -> None:
        """Start the clock: something is being worked on."""
        if self._since >= 0:
            return
        self._since = now
        if not self._marks:
            self._marks.append(_Mark(self._active, self._active, self._at_stop.copy()))
        for mark in self._marks:  # what was done meanwhile took no time that was counted: it tells nothing
            mark.done.update(self._done - self._at_stop)

    def stop(self, now: float) -> None:
        """Stop the clock."""
        if self._since >= 0:
            self._active, self._since, self._at_stop = self.active(now), -1.0, self._done.copy()

    def active(self, now: float) -> float:
        """Seconds for which the clock has run."""
        return self._active + (max(0.0, now - self._since) if self._since >= 0 else 0.0)

    # -- what there is to do, and what has been done

    def expect(self, kind: Kind, size: int, steps: Steps) -> None:
        """Add a chunk (or all of a kind) that is ahead; `steps` is the share of each step assumed of its kind."""
        self._expected[kind] += size
        self._assumed[kind] = steps

    def did(self, kind: Kind, step: str, size: int, now: float) -> None:
        """Note that a chunk has gone through a step."""
        self._flying[kind, step] += size
        self._done[step] += size
        if self._since >= 0:
            self._mark(self.active(now))

    def drop(self, kind: Kind, size: int) -> None:
        """Take a chunk off what is ahead: it shares its block with another chunk."""
        self._expected[kind] -= size

    def ended(self, kind: Kind, size: int, steps: Mapping[str, int]) -> None:
        """Note that a chunk has ended: `steps` are the bytes that `did` was told of it."""
        self._ended[kind] += size
        for step, done in steps.items():
            self._flying[kind, step] -= done
            self._seen[kind, step] += done

    def _mark(self, at: float) -> None:
        lump = max(LUMP_S, LUMP * at)
        if len(self._marks) > 1 and at - self._marks[-1].first <= lump:
            self._marks[-1] = _Mark(self._marks[-1].first, at, self._done.copy())
            return
        self._marks.append(_Mark(at, at, self._done.copy()))

    # -- what is left

    def left(self, now: float, measured: Mapping[str, float] | None = None) -> float | None:
        """Return the seconds until the end, None while the speed is not known. `measured`: costs of steps."""
        costs = _costs(measured or {})
        rest: Counter[str] = Counter()  # bytes by step
        for kind, todo in self._todo():
            for step, share in self._shares(kind).items():
                rest[step] += max(0, int(todo * share) - self._flying[kind, step])
        ahead = sum(size * _cost(step, costs) for step, size in rest.items())
        scale = self._scale(costs)
        main = max(rest, key=lambda step: rest[step] * _cost(step, costs), default=LOOK)
        if main != LOOK and self._batches() < 2:
            # Looking tells nothing about workers, and a worker's first batch compiles, and reads what its caches lack:
            # unless nothing but looking is ahead, only what was measured before tells how long it takes.
            known = main in (measured or {})
            if known or rest[main] > HEAVY * rest[LOOK] or scale is None:
                waited = self.active(now) - (self._marks[-1].last if self._marks else 0.0)
                return max(0.0, ahead - waited) if known else None
        if scale is None:
            return None
        last = self._last(costs)
        waited = self.active(now) - last.last
        since = _between(last, self._marks[-1], costs)  # was ahead when that batch had ended
        return max(scale * (ahead + since) - waited, waited / 4) if ahead else 0.0  # a late task is not over

    def _last(self, costs: Mapping[str, float]) -> _Mark:
        """The last batch that counts: a small one, or the first words of a large one, tells no rate."""
        least = SMALL * _between(self._marks[0], self._marks[-1], costs) / len(self._marks)
        for at in range(len(self._marks) - 1, 1, -1):
            if _between(self._marks[at - 1], self._marks[at], costs) >= least:
                return self._marks[at]
        return self._marks[-1]

    def _batches(self) -> int:
        """Return how many batches of workers have ended, 2 at most."""
        return sum(_is_by_workers(mark) for mark in self._marks[-2:])

    def _todo(self) -> list[tuple[Kind, int]]:
        return [(kind, size - self._ended[kind]) for kind, size in self._expected.items() if size > self._ended[kind]]

    def _scale(self, costs: Mapping[str, float]) -> float | None:
        """Seconds of the clock that one unit of cost has taken lately."""
        if len(self._marks) < 2:
            return None
        last = self._last(costs)
        begin = last.last - max(WINDOW_S, (last.last - self._marks[0].last) / 2)
        past = [mark for mark in self._marks if mark.last <= begin]
        base = past[-1] if past else self._marks[0]
        first = next((mark for mark in self._marks if _is_by_workers(mark)), last)
        if base.last < first.last < last.last:
            base = first
        cost = _between(base, last, costs)
        return (last.last - base.last) / cost if cost > 0 else None

    def _shares(self, kind: Kind) -> dict[str, float]:
        """The share of a kind's bytes that goes through each step: as seen, else as of its family, else as assumed."""
        family = [other for other in self._expected if other[0] == kind[0]]
        bytes_of_family = sum(self._ended[other] for other in family)
        steps = {step for other in family for step in self._assumed[other]} | {
            step for other, step in self._seen if other in family
        }
        found = {}
        for step in sorted(steps):
            seen = sum(self._seen[other, step] for other in family)
            assumed = self._assumed[kind].get(step, 0.0)
            of_family = (seen + DOUBT * assumed) / (bytes_of_family + DOUBT)
            found[step] = (self._seen[kind, step] + DOUBT * of_family) / (self._ended[kind] + DOUBT)
        return found


def _is_by_workers(mark: _Mark) -> bool:
    return any(size for step, size in mark.done.items() if step != LOOK)


def _between(base: _Mark, last: _Mark, costs: Mapping[str, float]) -> float:
    """Return the costs of the work between two marks."""
    return sum((size - base.done[step]) * _cost(step, costs) for step, size in last.done.items())


def _costs(measured: Mapping[str, float]) -> dict[str, float]:
    """Return the costs of steps: as measured; else as assumed, times the slowness that measured ones show."""
    slow: dict[str, float] = {}  # by codec: measured cost divided by the assumed one
    for step, cost in measured.items():
        if step in COSTS:
            codec = step.rpartition(" ")[2]
            slow[codec] = max(slow.get(codec, 0.0), cost / COSTS[step])
    other = max([1.0, *slow.values()])  # of a codec that has not been measured, which a GPU may not help
    return {step: cost * slow.get(step.rpartition(" ")[2], other) for step, cost in COSTS.items()} | dict(measured)


def _cost(step: str, costs: Mapping[str, float]) -> float:
    return costs.get(step, OTHER) / MIB
