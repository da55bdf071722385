"""Bounds what waits for cold blocks: not by the clock alone, but by the time in which nothing moved while we ran."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import trio

from nnfs.errors import TimedOut
from nnfs.workers.liveness import RunClock

LOOKS = 16  # within the bound
LEAST_S = 0.02  # between two looks


class Patience:
    """The waits of one mount. `timeout` is in seconds. `run` is its task, without which nothing ends."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._pause = max(LEAST_S, timeout / LOOKS)
        self._clock: RunClock | None = None
        self._waits: dict[trio.CancelScope, float] = {}  # and when something last moved for each

    @contextlib.contextmanager
    def bound(self) -> Iterator[None]:
        """Raises `TimedOut` when for `timeout` seconds nothing moves while the body runs."""
        with trio.CancelScope() as scope:
            self._waits[scope] = self._now()
            try:
                yield
            finally:
                del self._waits[scope]
        if scope.cancelled_caught:
            raise TimedOut(f"nothing was decoded for {self.timeout:g} s, and no worker got on")

    def go_on(self) -> None:
        """A worker gets on: hundreds of reads may wait for it, and none of them for nothing."""
        now = self._now()
        self._waits = dict.fromkeys(self._waits, now)

    def _now(self) -> float:
        if self._clock is None:  # the loop's time: tests have their own
            self._clock = RunClock(trio.current_time, 2 * self._pause)
        return self._clock.now()

    async def run(self) -> None:
        """Look now and then whether something has waited for too long."""
        while True:
            await trio.sleep(self._pause)
            now = self._now()
            for scope, since in self._waits.items():
                if now - since >= self.timeout:
                    scope.cancel()
