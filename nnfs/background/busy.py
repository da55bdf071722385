"""Waiting of background work while somebody uses the mount."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import trio

BURST_S = 5.0  # seconds of work before a pause, where work may take only a share of the time
BUSY_S, BUSY_MOST = 0.25, 40  # seconds between looks at a busy mount; looks after which work goes on


async def wait_while_busy(busy: Callable[[], bool], between: Callable[[], Awaitable[None]] | None = None) -> None:
    """Wait until the mount is idle, or has been busy for long. `between` is called after each pause, and may raise."""
    for _ in range(BUSY_MOST):
        if not busy():
            return
        await trio.sleep(BUSY_S)
        if between is not None:
            await between()


class Duty:
    """Limits work to a share of the time, in bursts, where `cpu_budget` allows less than one core."""

    def __init__(self, share: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.share, self._clock = share, clock
        self._began: float | None = None

    def is_over(self) -> bool:
        """Return whether the burst has used up its time. The first call begins a burst."""
        if self.share >= 1:
            return False
        if self._began is None:
            self._began = self._clock()
        return self._clock() - self._began >= BURST_S

    async def rest(self, between: Callable[[], Awaitable[None]]) -> None:
        """Pause until the burst is no more than its share of the time. `between` is called meanwhile, and may raise."""
        now = self._clock()
        worked = 0.0 if self._began is None else now - self._began
        until = now + worked * (1 / self.share - 1)
        while (left := until - self._clock()) > 0:
            await trio.sleep(min(left, 1.0))
            await between()
        self._began = None
