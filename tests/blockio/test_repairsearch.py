"""The search for the change after which stored bytes have their XXH3-64 again."""

from __future__ import annotations

import itertools
import math
import random
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import trio
from xxhash import xxh3_64_intdigest

from nnfs.blockio import repairsearch
from nnfs.blockio.repairsearch import LEAST_S, MOST_S, SHORT, Repairs, repair

LONG_S = 600.0  # never reached: what is asked for is found long before
# XXH3 works in stripes of 64 bytes and blocks of 1,024, the last stripe overlaps the one before it.
SIZES = (1, 8, 17, 129, SHORT, SHORT + 1, 256, 257, 320, 321, 1023, 1024, 1025, 1088, 1089, 2049, 20_000)


def damaged(plain: bytes, place: int, *changes: int) -> bytes:
    """`plain` with bytes XORed from a place on."""
    changed = bytearray(plain)
    for at, change in enumerate(changes, place):
        changed[at] ^= change
    return bytes(changed)


@pytest.mark.parametrize("size", SIZES)
def test_one_bit_and_one_byte(size: int) -> None:
    chance = random.Random(size)
    whole = chance.randbytes(size)
    xxh3 = xxh3_64_intdigest(whole)
    for place in {0, size // 2, size - 1, *(chance.randrange(size) for _ in range(4))}:
        assert repair(damaged(whole, place, 1 << chance.randrange(8)), xxh3, LONG_S) == whole
    if size < 5000:
        for place in (0, max(0, size - 65), size - 1):
            assert repair(damaged(whole, place, chance.randrange(1, 256)), xxh3, LONG_S) == whole


def test_two_bits_of_a_word() -> None:
    whole = random.Random(1).randbytes(3000)
    assert repair(damaged(whole, 1600, 1, 0, 0, 0, 0, 64), xxh3_64_intdigest(whole), LONG_S) == whole


def test_two_neighbouring_bytes() -> None:
    whole = random.Random(2).randbytes(300)
    assert repair(damaged(whole, 2, 77, 1), xxh3_64_intdigest(whole), LONG_S) == whole


def test_whole_already() -> None:
    assert repair(b"whole", xxh3_64_intdigest(b"whole"), 0.0) == b"whole"


@pytest.mark.parametrize("size", [100, 5000])
def test_the_search_is_bounded(size: int) -> None:
    """The bound is by a clock that only runs when it is asked."""
    seconds = itertools.count()
    whole = random.Random(3).randbytes(size)
    lost = damaged(whole, 0, 1, 2, 3, 4, 5)
    assert repair(lost, xxh3_64_intdigest(whole), 100.0, lambda: float(next(seconds))) is None
    assert 100 <= next(seconds) <= 110


async def test_searches_that_fail_get_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def search(payload: bytes, _: int, limit_s: float, _clock: object) -> bytes | None:
        limits.append(limit_s)
        return payload or None

    monkeypatch.setattr(repairsearch, "repair", search)
    repairs = Repairs(timeout=60.0)
    for payload in (b"", b"", b"found", b"", *[b""] * 50):
        await repairs.find(payload, 0)
    assert limits[:5] == [MOST_S, MOST_S / 2, MOST_S / 3, MOST_S, MOST_S / 2]
    assert limits[-1] == LEAST_S
    assert sum(limits) < 60


@pytest.mark.parametrize(("wall", "found"), [(0.0, True), (29.0, True), (31.0, False)])
async def test_a_busy_machine_does_not_end_a_search(monkeypatch: pytest.MonkeyPatch, wall: float, found: bool) -> None:
    """Its own processor time counts; by the clock it has half of a read's time."""
    now = [0.0]
    clocks = SimpleNamespace(monotonic=lambda: now[0], thread_time=lambda: 0.0)
    monkeypatch.setattr(repairsearch, "time", clocks)
    search = repairsearch.repair

    def later(*args: object) -> bytes | None:
        now[0] += wall
        return search(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(repairsearch, "repair", later)
    whole = random.Random(5).randbytes(5000)
    lost = damaged(whole, 900, 7)
    assert (await Repairs(timeout=60.0).find(lost, xxh3_64_intdigest(whole)) == whole) == found


async def test_a_cancelled_search_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    started, ended = threading.Event(), threading.Event()

    def search(payload: bytes, xxh3: int, limit_s: float, clock: Callable[[], float]) -> None:
        started.set()
        while clock() < limit_s:
            pass
        ended.set()

    monkeypatch.setattr(repairsearch, "repair", search)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(repairsearch.repair_beside, b"", 0, math.inf)
        assert await trio.to_thread.run_sync(started.wait, LONG_S)
        nursery.cancel_scope.cancel()
    assert await trio.to_thread.run_sync(ended.wait, LONG_S)
