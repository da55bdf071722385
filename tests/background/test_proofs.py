"""Proofs of new payloads by the reference, and the measuring of codecs, without a mount."""

from __future__ import annotations

import itertools
from collections import Counter
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from nnfs.background import busy, encoder
from nnfs.background.checks import BATCH, Proof
from nnfs.background.encoder import Payload
from nnfs.blockio.cold import COMPACT, REFERENCE
from nnfs.codec.base import CM, NEURAL
from nnfs.errors import CodecError, EnginesDisagree, NnfsError, WorkerError
from nnfs.fs import swapping
from nnfs.workers import pool
from nnfs.workers.pool import URGENT
from nnfs.workers.wire import Op
from tests.background.flightkit import PLAIN, RULES, block, coder


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


async def test_each_codec_is_checked_once_in_a_batch_and_batches_grow() -> None:
    workers = Workers()
    under_test = coder(workers)
    number = 15 * BATCH // len(PLAIN)
    for _ in range(number):
        for codec in (NEURAL, CM):
            assert under_test.is_checked(await under_test.prove(block(), payload(codec)))
    checked = Counter(job.codec for job in workers.jobs if job.worker == REFERENCE)
    assert checked == {NEURAL: 4, CM: 4}


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
    """Checks end in any order. If a batch's own check has no result, another payload of the batch is checked."""
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
