"""The queue of a worker: order, batches, bounds."""

from __future__ import annotations

import threading

import pytest

from nnfs.workers.batches import GATHER_S, IDLE, RequestQueue
from nnfs.workers.wire import ALONE, Op, Request


def wanted() -> None:
    """The peer is there."""


def unwanted() -> None:
    raise EOFError


def batches(queue: RequestQueue, most: int = 1, below: int = IDLE) -> list[list[int]]:
    """Everything that waits, as it would be done."""
    taken: list[list[int]] = []
    while batch := queue.take(below, lambda _: most, wait=False):
        taken.append([request.number for request in batch])
    return taken


def filled(*requests: Request) -> RequestQueue:
    queue = RequestQueue(100)
    for request in requests:
        queue.add(request, wanted)
    return queue


def test_order() -> None:
    queue = filled(
        Request(1, Op.ENCODE, priority=1),
        Request(2, Op.DECODE, priority=2),
        Request(3, Op.DECODE, priority=1),
        Request(4, Op.ENCODE, priority=0),
        Request(5, Op.DECODE, priority=1),
        Request(6, Op.LOAD, priority=9),
        Request(7, Op.DECODE, priority=0),
    )
    assert batches(queue) == [[6], [7], [4], [3], [5], [1], [2]]
    assert not len(queue)


def test_threads_without_work_take_what_is_read_ahead() -> None:
    queue = RequestQueue(100, threads=3)
    for number, priority, plain in (
        (1, 1, 100),
        (2, 0, 90),
        (3, 1, 101),
        (4, 1, 60),
        (5, 1, 60),
        (6, 2, 5),
        (7, 1, 20),
    ):
        queue.add(Request(number, Op.DECODE, codec=16, plain=plain, priority=priority), wanted)
    assert batches(queue) == [[2, 1, 4, 7], [3], [5], [6]]


def test_what_goes_together() -> None:
    model = b"m" * 64
    queue = filled(
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
    assert batches(queue, 3) == [[9], [1, 5, 6], [2, 8], [3], [4], [7], [10]]


def test_batches_by_bytes() -> None:
    sizes = [50, 60, 40, 0, 10, 300, 1]
    queue = filled(*(Request(n, Op.DECODE, plain=size) for n, size in enumerate(sizes)))
    assert batches(queue, 100) == [[0, 2, 3, 6], [1, 4], [5]]


def test_only_what_is_more_urgent() -> None:
    queue = filled(
        Request(1, Op.ENCODE, priority=1), Request(2, Op.DECODE, priority=1), Request(3, Op.DECODE, priority=0)
    )
    assert queue.urgent == 0
    assert batches(queue, below=3) == [[3], [2]]
    assert queue.urgent == 3
    assert batches(queue) == [[1]]
    assert queue.urgent == IDLE


def test_cancel() -> None:
    queue = filled(Request(1, Op.ENCODE), Request(2, Op.DECODE))
    assert queue.cancel(2)
    assert not queue.cancel(2)
    assert queue.urgent == 3
    assert batches(queue) == [[1]]


def test_a_full_queue_holds_the_reader_back() -> None:
    queue = RequestQueue(2)
    added = []

    def add() -> None:
        for number in range(6):
            queue.add(Request(number, Op.DECODE), wanted)
            added.append(number)

    reader = threading.Thread(target=add)
    reader.start()
    taken: list[int] = []
    while len(taken) < 6:
        taken += [request.number for request in queue.take(IDLE, lambda _: 1, wait=True)]
        assert len(queue) <= 2
    reader.join()
    assert taken == added == list(range(6))


def test_closing_frees_both_sides() -> None:
    queue = RequestQueue(1)
    queue.add(Request(1, Op.DECODE), wanted)
    reader = threading.Thread(target=queue.add, args=(Request(2, Op.DECODE), wanted))
    reader.start()
    queue.close()
    reader.join()
    assert queue.take(IDLE, lambda _: 1, wait=True) == []
    queue.add(Request(3, Op.DECODE), wanted)
    assert queue.take(IDLE, lambda _: 1, wait=True) == []


def test_a_reader_whose_peer_is_gone_gives_up() -> None:
    queue = RequestQueue(1)
    queue.add(Request(1, Op.DECODE), wanted)
    with pytest.raises(EOFError):
        queue.add(Request(2, Op.DECODE), unwanted)
    assert batches(queue) == [[1]]


def test_what_comes_together_is_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was idle does not begin with the first of many alone."""
    queue, coming = RequestQueue(100), [Request(number, Op.DECODE) for number in (1, 2, 3)]

    def wait(_seconds: float | None = None) -> bool:
        if not coming:
            return False
        queue.add(coming.pop(0), wanted)
        return True

    monkeypatch.setattr(queue._changed, "wait", wait)
    assert [request.number for request in queue.take(IDLE, lambda _: 100, wait=True)] == [1, 2, 3]


def test_nobody_who_waits_for_nothing_keeps_others_out() -> None:
    """A long scrub decodes all the time: what is to be encoded has its turn all the same."""
    queue = filled(*(Request(number, Op.DECODE, codec=16, plain=10, priority=2) for number in range(40)))
    queue.add(Request(40, Op.ENCODE, codec=16, plain=10, priority=2), wanted)
    taken: list[int] = []
    for number in range(50, 60):
        queue.add(Request(number, Op.DECODE, codec=16, plain=10, priority=2), wanted)
        taken += [request.number for request in queue.take(IDLE, lambda _: 100, wait=False)]
    assert 40 in taken


def test_what_nobody_waits_for_gathers_to_a_full_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits as long as more comes, and until a reader does."""
    coming = [Request(number, Op.DECODE, codec=16, plain=10, priority=2) for number in range(1, 20)]
    queue = RequestQueue(100, patience=lambda _: 7.0)
    waited: list[float | None] = []

    def wait(seconds: float | None = None) -> bool:
        waited.append(seconds)
        if not coming:
            return False
        queue.add(coming.pop(0), wanted)
        return True

    monkeypatch.setattr(queue._changed, "wait", wait)
    assert [request.number for request in queue.take(IDLE, lambda _: 100, wait=True)] == list(range(1, 11))
    assert waited == [None] + [7.0] * 9
    assert [request.number for request in queue.take(IDLE, lambda _: 100, wait=True)] == list(range(11, 20))
    coming += [Request(30, Op.ENCODE, plain=10, priority=2), Request(31, Op.DECODE, plain=10, priority=0)]
    waited.clear()
    assert [request.number for request in queue.take(IDLE, lambda _: 100, wait=True)] == [31]
    assert waited == [None, 7.0, GATHER_S]
