"""Work in flight of recompression, without a mount: swaps, failures, outages, threads."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from nnfs.background import recompression, swaps
from nnfs.background.checks import Proof
from nnfs.background.flight import Aim, Flight, Ready
from nnfs.background.interfaces import Parts
from nnfs.background.recompression import Recompression
from nnfs.background.tasks import Gate, Task
from nnfs.blockio.damagelist import DamageList
from nnfs.codec import encode_hot
from nnfs.codec.base import CM
from nnfs.codec.compressible import compressible
from nnfs.config import Options
from nnfs.errors import CodecError, EnginesDisagree, KillsWorkers, NnfsError, OutOfSpace, WorkerError
from nnfs.fs import swapping
from nnfs.fs.candidates import Candidate, Piece
from nnfs.fs.policy import Rules
from nnfs.store.blocks import Swap
from tests.background.flightkit import PLAIN, RULES, block, coder
from tests.harness import WAIT_S


class Commits:
    """Runs nothing, and notes the marks."""

    def __init__(self) -> None:
        self.swaps: list[int] = []
        self.marks: dict[int, bool] = {}
        self.answer: Callable[[Swap], int | NnfsError | None] = lambda one: -1
        self.written: set[int] = set()  # blocks over which something is dirty
        self.cooled: set[int] = set()  # blocks of which swaps wait for a commit

    @property
    def bases(self) -> Commits:
        return self

    def in_use(self) -> set[int]:
        return self.written

    @contextlib.contextmanager
    def cooling(self, numbers: set[int]) -> Iterator[None]:
        self.cooled = numbers
        yield
        self.cooled = set()

    async def amend(self, change: Any, size: int = 0, frees: int = 0) -> Any:
        await trio.lowlevel.checkpoint()
        if change.func is swapping.settle:
            self.marks.update((file.ino, file.rung == swapping.ALL_RUNGS) for file in change.keywords["files"])
            return None
        assert change.func is swapping.swap
        answers = [self.answer(one) for one in change.keywords["swaps"]]
        if error := next((answer for answer in answers if isinstance(answer, NnfsError)), None):
            raise error
        self.swaps += [one.number for one in change.keywords["swaps"]]
        return answers


class Tried(Recompression):
    """Takes files of one chunk each, and makes of them what `outcome` says."""

    def __init__(self, files: Sequence[int], outcome: Callable[[Candidate], Any]) -> None:
        self.commits = Commits()
        self.reads: Any = SimpleNamespace(damaged=DamageList())
        parts: Any = Parts(None, self.commits, self.reads, None)  # type: ignore[arg-type]
        models: Any = SimpleNamespace(known=None)
        super().__init__(parts, models, coder(), Options(), busy=lambda: False, changed=lambda _: None)
        self.chunks.recompressed = self._recompressed  # type: ignore[method-assign, assignment]
        self.chunks.look = self._look_at  # type: ignore[method-assign]
        self._files, self._outcome = files, outcome
        self.tried: list[int] = []

    async def walk(self, job: Task, ino: int, aim: Aim) -> AsyncGenerator[Piece]:
        for number in self._files:
            yield Piece(
                number, RULES, [Candidate(number, 0, number, block(number))], last=True, rung=swapping.ALL_RUNGS
            )

    async def _look_at(self, candidates: Sequence[Candidate]) -> list[Any]:
        return [candidate.number for candidate in candidates]

    async def _recompressed(
        self, flight: Flight, candidate: Candidate, rules: Rules, _way: Any, looked: Any, *, retired: bool
    ) -> Ready | None:
        assert looked == candidate.number
        self.tried.append(candidate.number)
        await trio.lowlevel.checkpoint()
        found = self._outcome(candidate)
        if isinstance(found, Exception):
            raise found
        one = Swap(candidate.number, candidate.block.payload, (candidate.ino, 0), CM, 0, b"x")
        return Ready(one, candidate.block, found)

    async def once(self, number: int = 0) -> Task:
        async def nothing(job: Task) -> None:
            raise AssertionError

        job = Task(number, "background", nothing, Gate())
        await self.run(job, 1, Aim())
        return job


@pytest.mark.parametrize("seconds", [-1.0, 1e9], ids=["while chunks are under way", "at the end"])
async def test_files_whose_swaps_fail_are_not_done(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    under_test = Tried(range(1, 5), lambda _: None)
    under_test.commits.answer = lambda one: OutOfSpace("full")
    monkeypatch.setattr(swaps, "FLUSH_S", seconds)
    with pytest.raises(OutOfSpace):
        await under_test.once()
    assert not any(under_test.commits.marks.values())
    under_test.commits.answer = lambda one: None if one.number == 2 else -1  # its model has been dropped
    await under_test.once()
    assert under_test.commits.marks == {1: True, 2: False, 3: True, 4: True}


async def test_what_somebody_writes_to_in_part_is_not_swapped() -> None:
    """Its commit would have to wait for a worker. A write that begins while the swap waits is noticed."""
    under_test = Tried(range(1, 4), lambda _: None)
    under_test.commits.written = {2}
    cooling: list[int] = []

    def answer(_: object) -> int:
        cooling.extend(under_test.commits.cooled)
        return -1

    under_test.commits.answer = answer
    await under_test.once()
    assert sorted(under_test.commits.swaps) == [1, 3]
    assert set(cooling) == {1, 3}
    assert not under_test.commits.cooled
    assert under_test.commits.marks == {1: True, 2: False, 3: True}


async def test_what_was_not_checked_is_not_swapped() -> None:
    """A batch whose check came to nothing, as when a worker dies."""
    under_test = Tried(range(1, 5), lambda one: Proof(CM, 1) if one.number > 2 else None)
    await under_test.once()
    assert sorted(under_test.commits.swaps) == [1, 2]
    assert under_test.commits.marks == {1: True, 2: True, 3: False, 4: False}


async def test_nothing_is_swapped_after_the_engines_have_disagreed() -> None:
    under_test = Tried(range(1, 9), lambda one: EnginesDisagree("they do") if one.number == 8 else None)
    with pytest.raises(EnginesDisagree):
        await under_test.once()
    assert under_test.commits.swaps == []
    assert not any(under_test.commits.marks.values())


async def test_an_outage_of_workers_puts_no_chunk_aside() -> None:
    """A few files, so that the job does not end by it."""
    outcome: list[Exception | None] = [WorkerError("worker compact cannot be started")]
    under_test = Tried(range(1, 5), lambda _: outcome[0])
    for _ in range(5):
        await under_test.once()
    assert len(under_test.tried) == 20
    assert under_test.commits.swaps == []
    outcome[0] = None
    await under_test.once()
    assert sorted(under_test.commits.swaps) == [1, 2, 3, 4]


async def test_a_codec_that_refuses_everything_puts_no_chunk_aside() -> None:
    outcome: list[Exception | None] = [CodecError("codec 16 refuses it")]
    under_test = Tried(range(1, 20), lambda _: outcome[0])
    for _ in range(5):
        with pytest.raises(CodecError):
            await under_test.once()
    outcome[0] = None
    await under_test.once()
    assert sorted(under_test.commits.swaps) == list(range(1, 20))


@pytest.mark.parametrize(
    "error", [KillsWorkers("has killed 2 workers"), CodecError("worker read decodes something else")]
)
async def test_a_chunk_that_fails_by_itself_is_put_aside(error: NnfsError) -> None:
    under_test = Tried(range(1, 5), lambda one: error if one.number == 2 else None)
    for _ in range(5):
        await under_test.once()
    assert under_test.tried.count(2) == recompression.CHUNK_FAILURES
    assert under_test.tried.count(3) == 5
    assert under_test.commits.marks == {1: True, 2: False, 3: True, 4: True}


async def test_failures_are_told_once_and_take_no_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recompression, "FAILURES", 1000)
    monkeypatch.setattr(recompression, "FAILURES_KEPT", 10)
    under_test = Tried(range(1, 100), lambda one: KillsWorkers(f"block {one.number}: has killed 2 workers"))
    await under_test.once()
    assert len(under_test._chunk_failures) == 10
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


@pytest.mark.parametrize(
    ("cold", "gain"),
    [((), None), ((("neural", 1000, 200), ("cm", 1000, 200)), 2000), ((("cm", 100, 90),), 0), ((("cm", 99, 0),), 4000)],
)
def test_the_gain_of_a_store_that_this_mount_has_not_recompressed(cold: Any, gain: int | None) -> None:
    from nnfs.background.service import Service

    tiers = Service.__new__(Service)
    tiers._recompression = Tried([], lambda _: None)
    lines = [
        {"codec": name, "plain_bytes": plain, "stored_bytes": stored}
        for name, plain, stored in (("raw", 7, 7), ("zstd", 10_000, 4000), *cold)
    ]
    assert tiers.gain(lines) == gain
    tiers._recompression.swaps.before, tiers._recompression.swaps.after = 1000, 700
    assert tiers.gain(lines) == 1200
    tiers._recompression.swaps.after = 2000  # what was thawed counts, too
    assert tiers.gain(lines) == 0


async def test_recompression_has_threads_of_its_own() -> None:
    """Else hundreds of chunks under way would make requests wait that need a thread, too."""
    limiter = trio.to_thread.current_default_thread_limiter()
    for number in range(int(limiter.total_tokens)):
        await limiter.acquire_on_behalf_of(number)
    under_test = Tried([], lambda _: None)
    with trio.fail_after(WAIT_S):
        assert await under_test.chunks.hot(PLAIN) == (1, 0, encode_hot(PLAIN)[1])
        assert await under_test.chunks._in_thread(compressible, PLAIN)


async def test_a_shared_block_is_coded_once_and_only_its_file_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome is not known while the other file is looked at: its chunk may fail, its policy may differ."""
    both = block()
    both.refs = 2

    async def walk(job: Task, ino: int, aim: Aim) -> AsyncGenerator[Piece]:
        for file in (1, 2):
            yield Piece(file, RULES, [Candidate(file, 0, 1, both)], last=True, rung=swapping.ALL_RUNGS)

    under_test = Tried([], lambda _: None)
    monkeypatch.setattr(under_test, "walk", walk)
    await under_test.once()
    assert under_test.tried == [1]
    assert under_test.commits.marks == {1: True, 2: False}
