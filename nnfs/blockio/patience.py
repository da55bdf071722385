"""Patience: ends waits for cold blocks when nothing has moved for too long, while this process could run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import trio

from nnfs.errors import TimedOut
from nnfs.workers.liveness import RunClock

LOOKS = 16  # within the bound
LEAST_S = 0.02  # between two looks


class Patience:
    """The waits of one mount, each ended after `timeout` seconds in which no worker got on. `run` is its task."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._pause = max(LEAST_S, timeout / LOOKS)
        self._clock: RunClock | None = None
        self._waits: dict[trio.CancelScope, float] = {}  # and when something last moved

    @contextlib.contextmanager
    def bound(self) -> Iterator[None]:
        """Raise `TimedOut` when no worker makes progress for `timeout` seconds while the body runs."""
        with trio.CancelScope() as scope:
            self._waits[scope] = self._now()
            try:
                yield
            finally:
                del self._waits[scope]
        if scope.cancelled_caught:
            raise TimedOut(f"nothing was decoded for {self.timeout:g} s, and no worker got on")

    def go_on(self) -> None:
        """Note that a worker makes progress: every wait begins anew, since hundreds may wait for one worker."""
        now = self._now()
        self._waits = dict.fromkeys(self._waits, now)

    def _now(self) -> float:
        if self._clock is None:  # the loop's time: tests have their own
            self._clock = RunClock(trio.current_time, 2 * self._pause)
        return self._clock.now()

    async def run(self) -> None:
        """End the waits that have taken too long, until cancelled."""
        while True:
            await trio.sleep(self._pause)
            now = self._now()
            for scope, since in self._waits.items():
                if now - since >= self.timeout:
                    scope.cancel()
