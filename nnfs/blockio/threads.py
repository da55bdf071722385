"""Running functions in threads so that they get their share of the GIL beside a busy loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

Args = TypeVarTuple("Args")
T = TypeVar("T")

GIVE_WAY_EVERY, GIVE_WAY_MOST = 0.005, 0.001  # seconds
GIVE_WAY_SHARE = 1 / 200  # of the time that the work has taken so far


async def run_fairly(function: Callable[[*Args], T], *args: *Args, limiter: trio.CapacityLimiter) -> T:
    """Do as `trio.to_thread.run_sync`, for work that needs the GIL often, such as a commit.

    A loop thread that gives the GIL up for microseconds at a time (an LMDB get, a look at a descriptor) takes it back
    before a waiting thread has woken up, and the waiter's switch interval begins anew: a commit of 4 ms took seconds
    beside a loop that never rested. So the loop rests every 5 ms while the work goes on, and the longer it takes, the
    longer are the rests: short work costs nothing, and work that starves gets the GIL for itself.
    """
    failure: Exception | None = None
    # The limiter first: calls that only queue must not make the loop rest (hundreds of small batches stopped it).
    async with limiter, trio.open_nursery() as nursery:
        nursery.start_soon(_give_way)
        try:
            result = await trio.to_thread.run_sync(function, *args)
        except Exception as error:  # noqa: BLE001 - raised below: a nursery would wrap it
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # else the error's traceback and this frame hold each other
    return result


async def _give_way() -> None:
    started = time.monotonic()
    while True:
        await trio.sleep(GIVE_WAY_EVERY)
        rest = min(GIVE_WAY_MOST, (time.monotonic() - started) * GIVE_WAY_SHARE)
        time.sleep(rest)  # noqa: ASYNC251 - blocks the loop on purpose, without the GIL
