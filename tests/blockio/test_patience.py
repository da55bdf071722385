"""The time that reads wait, by the clock of a loop that tests move."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from nnfs.blockio.patience import LOOKS, Patience
from nnfs.errors import TimedOut

TIMEOUT = 120.0


@pytest.fixture
def clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(autojump_threshold=0)


async def waits(patience: Patience, seconds: float = 1e6) -> float:
    """Wait in vain; return for how long."""
    began = trio.current_time()
    try:
        with patience.bound():
            await trio.sleep(seconds)
    except TimedOut as error:
        assert "nothing was decoded for 120 s" in str(error)
    return trio.current_time() - began


async def test_where_nothing_moves_a_read_ends(clock: trio.testing.MockClock) -> None:
    patience = Patience(TIMEOUT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(patience.run)
        assert TIMEOUT <= await waits(patience) <= TIMEOUT * (1 + 2 / LOOKS)
        assert await waits(patience, TIMEOUT / 2) == TIMEOUT / 2  # what is decoded in time is
        assert not patience._waits
        nursery.cancel_scope.cancel()


async def test_while_a_worker_gets_on_it_does_not(clock: trio.testing.MockClock) -> None:
    patience = Patience(TIMEOUT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(patience.run)

        async def worker() -> None:
            for _ in range(300):
                await trio.sleep(1.0)
                patience.go_on()

        nursery.start_soon(worker)
        assert 300 + TIMEOUT <= await waits(patience) <= 300 + TIMEOUT * (1 + 2 / LOOKS)
        nursery.cancel_scope.cancel()


async def test_a_stop_of_the_whole_mount_ends_no_read(clock: trio.testing.MockClock) -> None:
    """The clock goes on, and nobody looks at it: an hour later all deadlines would have passed at once."""
    patience = Patience(TIMEOUT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(patience.run)

        async def stop() -> None:
            await trio.sleep(10.0)
            clock.jump(3600.0)

        nursery.start_soon(stop)
        waited = await waits(patience)
        assert 3600 + TIMEOUT - 2 * TIMEOUT / LOOKS <= waited <= 3600 + TIMEOUT * (1 + 2 / LOOKS)
        assert await waits(patience, 1.0) == 1.0
        nursery.cancel_scope.cancel()


async def test_cancelling_a_read_is_not_its_end_by_the_clock(clock: trio.testing.MockClock) -> None:
    patience = Patience(TIMEOUT)
    with trio.CancelScope() as scope, patience.bound():
        scope.cancel()
        await trio.sleep_forever()
    assert scope.cancelled_caught
    assert not patience._waits
