"""Recompression without a mount: what may be swapped and when, which files are done, which chunks are left alone."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from nnfs.background import busy, encoder, recompression, swaps
from nnfs.background.checks import BATCH, Proof
from nnfs.background.encoder import ColdEncoder, Payload
from nnfs.background.flight import Aim, Flight, Ready
from nnfs.background.interfaces import Parts
from nnfs.background.recompression import Recompression
from nnfs.background.tasks import Gate, Task
from nnfs.blockio.cold import COMPACT, REFERENCE
from nnfs.blockio.damagelist import DamageList
from nnfs.codec import encode_hot
from nnfs.codec.base import CM, NEURAL
from nnfs.config import Options
from nnfs.constants import Policy
from nnfs.errors import CodecError, EnginesDisagree, KillsWorkers, NnfsError, OutOfSpace, WorkerError
from nnfs.fs import swapping
from nnfs.fs.candidates import Candidate, Piece
from nnfs.fs.policy import Rules
from nnfs.store.blocks import Recode
from nnfs.store.schema import Block
from nnfs.workers import pool
from nnfs.workers.pool import URGENT
from nnfs.workers.wire import Op
from tests.harness import WAIT_S

RULES = Rules(Policy.AUTO)
PLAIN = b"plain " * 20_000


def block(number: int = 1, plain: bytes = PLAIN) -> Block:
    return Block(1, 0, len(plain), 30_000, 0, 0, number, 1, blake2b(plain).digest())


# -- proofs


class Workers:
    """Decode a payload to what `wrong` says of a worker, once its gate is open."""

    def __init__(self) -> None:
        self.wrong: dict[str, bytes | NnfsError] = {}
        self.gates: dict[str, trio.Event] = {}
        self.jobs: list[pool.WorkItem] = []

    async def run(self, job: pool.WorkItem) -> bytes:
        self.jobs.append(job)
        if job.worker in self.gates:
            await self.gates[job.worker].wait()
        found = self.wrong.get(job.worker, PLAIN)
        if isinstance(found, NnfsError):
            raise found
        return b"payload" if job.op == Op.ENCODE else found


def coder(workers: Any = None, **options: Any) -> ColdEncoder:
    models = SimpleNamespace(wanted=lambda _: b"", default=lambda: b"")
    return ColdEncoder(workers, models, Options(**options))  # type: ignore[arg-type]


def payload(codec: int = NEURAL) -> Payload:
    return Payload(codec, bytes(64), b"payload")


async def test_a_batch_waits_for_the_reference() -> None:
    workers = Workers()
    workers.gates[REFERENCE] = trio.Event()
    under_test = coder(workers)
    first: list[Proof] = []

    async def prove() -> None:
        first.append(await under_test.prove(block(), payload()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(prove)
        await trio.testing.wait_all_tasks_blocked()
        second = await under_test.prove(block(), payload())
        assert not under_test.is_checked(second)
        assert under_test.is_checked(None)
        workers.gates[REFERENCE].set()
    assert under_test.is_checked(second)
    assert under_test.is_checked(first[0])


async def test_each_codec_is_checked_once_in_a_batch() -> None:
    workers = Workers()
    under_test = coder(workers)
    number = 3 * BATCH // len(PLAIN)
    for _ in range(number):
        for codec in (NEURAL, CM):
            assert under_test.is_checked(await under_test.prove(block(), payload(codec)))
    checked = Counter(job.codec for job in workers.jobs if job.worker == REFERENCE)
    assert checked == {NEURAL: 3, CM: 3}


@pytest.mark.parametrize("wrong", [b"something else", CodecError("a payload that is none")])
async def test_what_the_reference_refutes_ends_all_of_it(
    wrong: bytes | NnfsError, caplog: pytest.LogCaptureFixture
) -> None:
    workers = Workers()
    workers.wrong[REFERENCE] = wrong
    under_test = coder(workers)
    with pytest.raises(EnginesDisagree, match=r"codec cm.*device=cpu"):
        await under_test.prove(block(), payload(CM))
    assert "disagree" in under_test.refuted
    assert "disagree" in caplog.text
    assert not under_test.is_checked(Proof(CM, 0))
    with pytest.raises(EnginesDisagree):  # nothing else is made of it
        await under_test.encode(PLAIN, block(), RULES, everything=True)


async def test_a_reference_that_is_not_there_says_nothing() -> None:
    """The next chunk is checked in place of the one that could not be, and what lies between waits."""
    workers = Workers()
    workers.wrong[REFERENCE] = WorkerError("cannot be started")
    under_test = coder(workers)
    with pytest.raises(WorkerError):
        await under_test.prove(block(), payload())
    assert not under_test.refuted
    waits = Proof(NEURAL, 1)
    assert not under_test.is_checked(waits)
    del workers.wrong[REFERENCE]
    assert under_test.is_checked(await under_test.prove(block(), payload()))
    assert under_test.is_checked(waits)


async def test_a_batch_is_not_checked_by_the_next_one() -> None:
    """Checks end in any order. What a batch's own check could not say, another payload of that batch does."""
    workers = Workers()
    first, under_test = trio.Event(), coder(workers)
    failures: list[NnfsError] = []

    async def prove() -> None:
        try:
            await under_test.prove(block(), payload())
        except WorkerError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        workers.gates[REFERENCE] = first
        nursery.start_soon(prove)
        await trio.testing.wait_all_tasks_blocked()
        waits = Proof(NEURAL, 1)
        workers.gates[REFERENCE] = trio.Event()
        workers.gates[REFERENCE].set()
        while (proof := await under_test.prove(block(), payload())).batch == 1:
            pass
        assert under_test.is_checked(proof)
        assert not under_test.is_checked(waits)
        workers.wrong[REFERENCE] = WorkerError("has died")
        first.set()
    assert failures
    assert not under_test.is_checked(waits)
    del workers.wrong[REFERENCE]
    assert (await under_test.prove(block(), payload())).batch == 1
    assert under_test.is_checked(waits)


async def test_a_busy_mount_is_not_held_up_by_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for a while, and then readers overtake it."""
    monkeypatch.setattr(busy, "BUSY_S", 0.0)
    workers, looks = Workers(), [True, True, False]
    under_test = coder(workers)
    under_test._busy = lambda: looks.pop(0)
    assert await under_test.fast_enough(CM)
    assert not looks
    assert URGENT not in {job.priority for job in workers.jobs}
    assert (under_test.fast, under_test.slow) == (swapping.bit(CM), 0)


async def test_another_workers_mistake_is_the_chunks() -> None:
    workers = Workers()
    workers.wrong[COMPACT] = b"something else"
    under_test = coder(workers)
    with pytest.raises(CodecError, match="worker compact decodes something else"):
        await under_test.prove(block(), payload())
    assert not under_test.refuted


async def test_a_slow_machine_is_measured_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    now, times = [0.0], []
    monkeypatch.setattr(encoder, "time", SimpleNamespace(monotonic=lambda: now[0]))
    under_test = coder(Workers(), thaw_limit=1.0)

    async def measure(*_: object) -> float:
        times.append(now[0])
        return 100.0

    monkeypatch.setattr(under_test, "_measure", measure)
    while now[0] < 3 * 86400:
        assert not await under_test.fast_enough(NEURAL)
        now[0] += 60.0
    between = [after - before for before, after in itertools.pairwise(times)]
    assert between[:4] == [600, 1200, 2400, 4800]
    assert between[-1] == 86400
    assert under_test.speeds() == {"neural": 100.0}


# -- jobs


class Commits:
    """Runs nothing, and notes the marks."""

    def __init__(self) -> None:
        self.swaps: list[int] = []
        self.marks: dict[int, bool] = {}
        self.answer: Callable[[Recode], int | NnfsError | None] = lambda one: -1
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
        assert change.func is swapping.recode
        answers = [self.answer(one) for one in change.keywords["recodes"]]
        if error := next((answer for answer in answers if isinstance(answer, NnfsError)), None):
            raise error
        self.swaps += [one.number for one in change.keywords["recodes"]]
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
        self._files, self._outcome = files, outcome
        self.tried: list[int] = []

    async def walk(self, job: Task, ino: int, aim: Aim) -> AsyncGenerator[Piece]:
        for number in self._files:
            yield Piece(
                number, RULES, [Candidate(number, 0, number, block(number))], last=True, rung=swapping.ALL_RUNGS
            )

    async def _recompressed(
        self, flight: Flight, candidate: Candidate, rules: Rules, _way: Any, *, retired: bool
    ) -> Ready | None:
        self.tried.append(candidate.number)
        await trio.lowlevel.checkpoint()
        found = self._outcome(candidate)
        if isinstance(found, Exception):
            raise found
        one = Recode(candidate.number, candidate.block.payload, (candidate.ino, 0), CM, 0, b"x")
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
    """Its commit would have to wait for a worker. Who begins to write while the swap waits for its commit is told."""
    under_test = Tried(range(1, 4), lambda _: None)
    under_test.commits.written = {2}
    cooling: list[int] = []

    def answer(_: object) -> int:
        cooling.extend(under_test.commits.cooled)
        return -1

    under_test.commits.answer = answer
    await under_test.once()
    assert under_test.commits.swaps == [1, 3]
    assert set(cooling) == {1, 3}
    assert not under_test.commits.cooled
    assert under_test.commits.marks == {1: True, 2: False, 3: True}


async def test_what_was_not_checked_is_not_swapped() -> None:
    """A batch whose check came to nothing, as when a worker dies."""
    under_test = Tried(range(1, 5), lambda one: Proof(CM, 1) if one.number > 2 else None)
    await under_test.once()
    assert under_test.commits.swaps == [1, 2]
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
    assert under_test.commits.swaps == [1, 2, 3, 4]


async def test_a_codec_that_refuses_everything_puts_no_chunk_aside() -> None:
    outcome: list[Exception | None] = [CodecError("codec 16 refuses it")]
    under_test = Tried(range(1, 20), lambda _: outcome[0])
    for _ in range(5):
        with pytest.raises(CodecError):
            await under_test.once()
    outcome[0] = None
    await under_test.once()
    assert under_test.commits.swaps == list(range(1, 20))


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


# -- what is still to be saved


@pytest.mark.parametrize(
    ("cold", "gain"),
    [((), None), ((("neural", 1000, 200), ("cm", 1000, 200)), 2000), ((("cm", 100, 90),), 0), ((("cm", 99, 0),), 4000)],
)
def test_the_gain_of_a_store_that_this_mount_has_not_compacted(cold: Any, gain: int | None) -> None:
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


# -- threads


async def test_recompression_has_threads_of_its_own() -> None:
    """Else hundreds of chunks under way would make requests wait that need a thread, too."""
    limiter = trio.to_thread.current_default_thread_limiter()
    for number in range(int(limiter.total_tokens)):
        await limiter.acquire_on_behalf_of(number)
    under_test = Tried([], lambda _: None)
    with trio.fail_after(WAIT_S):
        assert await under_test.chunks.hot(PLAIN) == (1, 0, encode_hot(PLAIN)[1])
        assert await coder().encode(os.urandom(10_000), block(), RULES, everything=False) is None


async def test_a_shared_block_is_coded_once_and_only_its_file_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes of it is not known while the other file is looked at: its chunk may fail, its policy be another."""
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
