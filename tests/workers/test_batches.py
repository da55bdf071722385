"""The queue of a worker: order, batches, bounds."""

from __future__ import annotations

import threading

import pytest

from nnfs.workers.batches import IDLE, RequestQueue
from nnfs.workers.wire import ALONE, Op, Request


def wanted() -> None:
    """The peer is there."""


def unwanted() -> None:
    raise EOFError


def batches(jobs: RequestQueue, most: int = 1, below: int = IDLE) -> list[list[int]]:
    """Everything that waits, as it would be done."""
    taken: list[list[int]] = []
    while batch := jobs.take(below, lambda _: most, wait=False):
        taken.append([request.job for request in batch])
    return taken


def filled(*requests: Request) -> RequestQueue:
    jobs = RequestQueue(100)
    for request in requests:
        jobs.add(request, wanted)
    return jobs


def test_order() -> None:
    jobs = filled(
        Request(1, Op.ENCODE, priority=1),
        Request(2, Op.DECODE, priority=2),
        Request(3, Op.DECODE, priority=1),
        Request(4, Op.ENCODE, priority=0),
        Request(5, Op.DECODE, priority=1),
        Request(6, Op.LOAD, priority=9),
        Request(7, Op.DECODE, priority=0),
    )
    assert batches(jobs) == [[6], [7], [4], [3], [5], [1], [2]]
    assert not len(jobs)


def test_threads_without_work_take_what_is_read_ahead() -> None:
    jobs = RequestQueue(100, threads=3)
    for job, priority, plain in ((1, 1, 100), (2, 0, 90), (3, 1, 101), (4, 1, 60), (5, 1, 60), (6, 2, 5), (7, 1, 20)):
        jobs.add(Request(job, Op.DECODE, codec=16, plain=plain, priority=priority), wanted)
    assert batches(jobs) == [[2, 1, 4, 7], [3], [5], [6]]


def test_what_goes_together() -> None:
    model = b"m" * 64
    jobs = filled(
        Request(1, Op.DECODE, codec=16),
        Request(2, Op.DECODE, codec=17),
        Request(3, Op.DECODE, codec=16, flags=ALONE),
        Request(4, Op.DECODE, codec=16, model=model),
        Request(5, Op.DECODE, codec=16),
        Request(6, Op.DECODE, codec=16),
        Request(7, Op.DECODE, codec=16),
        Request(8, Op.DECODE, codec=17),
        Request(9, Op.DECODE, codec=16, priority=0),
        Request(10, Op.ENCODE, codec=16),
    )
    assert batches(jobs, 3) == [[9], [1, 5, 6], [2, 8], [3], [4], [7], [10]]


def test_batches_by_bytes() -> None:
    sizes = [50, 60, 40, 0, 10, 300, 1]
    jobs = filled(*(Request(n, Op.DECODE, plain=size) for n, size in enumerate(sizes)))
    assert batches(jobs, 100) == [[0, 2, 3, 6], [1, 4], [5]]


def test_only_what_is_more_urgent() -> None:
    jobs = filled(
        Request(1, Op.ENCODE, priority=1), Request(2, Op.DECODE, priority=1), Request(3, Op.DECODE, priority=0)
    )
    assert jobs.urgent == 0
    assert batches(jobs, below=3) == [[3], [2]]
    assert jobs.urgent == 3
    assert batches(jobs) == [[1]]
    assert jobs.urgent == IDLE


def test_cancel() -> None:
    jobs = filled(Request(1, Op.ENCODE), Request(2, Op.DECODE))
    assert jobs.cancel(2)
    assert not jobs.cancel(2)
    assert jobs.urgent == 3
    assert batches(jobs) == [[1]]


def test_a_full_queue_holds_the_reader_back() -> None:
    jobs = RequestQueue(2)
    added = []

    def add() -> None:
        for number in range(6):
            jobs.add(Request(number, Op.DECODE), wanted)
            added.append(number)

    reader = threading.Thread(target=add)
    reader.start()
    taken: list[int] = []
    while len(taken) < 6:
        taken += [request.job for request in jobs.take(IDLE, lambda _: 1, wait=True)]
        assert len(jobs) <= 2
    reader.join()
    assert taken == added == list(range(6))


def test_closing_frees_both_sides() -> None:
    jobs = RequestQueue(1)
    jobs.add(Request(1, Op.DECODE), wanted)
    reader = threading.Thread(target=jobs.add, args=(Request(2, Op.DECODE), wanted))
    reader.start()
    jobs.close()
    reader.join()
    assert jobs.take(IDLE, lambda _: 1, wait=True) == []
    jobs.add(Request(3, Op.DECODE), wanted)
    assert jobs.take(IDLE, lambda _: 1, wait=True) == []


def test_a_reader_whose_peer_is_gone_gives_up() -> None:
    jobs = RequestQueue(1)
    jobs.add(Request(1, Op.DECODE), wanted)
    with pytest.raises(EOFError):
        jobs.add(Request(2, Op.DECODE), unwanted)
    assert batches(jobs) == [[1]]


def test_what_comes_together_is_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was idle does not begin with the first of many alone."""
    jobs, coming = RequestQueue(100), [Request(number, Op.DECODE) for number in (1, 2, 3)]

    def wait(_seconds: float | None = None) -> bool:
        if not coming:
            return False
        jobs.add(coming.pop(0), wanted)
        return True

    monkeypatch.setattr(jobs._changed, "wait", wait)
    assert [request.job for request in jobs.take(IDLE, lambda _: 100, wait=True)] == [1, 2, 3]


def test_nobody_who_waits_for_nothing_keeps_others_out() -> None:
    """A long scrub decodes all the time: what is to be encoded has its turn all the same."""
    jobs = filled(*(Request(number, Op.DECODE, codec=16, plain=10, priority=2) for number in range(40)))
    jobs.add(Request(40, Op.ENCODE, codec=16, plain=10, priority=2), wanted)
    taken: list[int] = []
    for number in range(50, 60):
        jobs.add(Request(number, Op.DECODE, codec=16, plain=10, priority=2), wanted)
        taken += [request.job for request in jobs.take(IDLE, lambda _: 100, wait=False)]
    assert 40 in taken
