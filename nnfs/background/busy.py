"""Waiting of background work while somebody uses the mount."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

BUSY_S, BUSY_MOST = 0.25, 40  # seconds between two looks at a busy mount; looks before work goes on all the same


async def wait_while_busy(busy: Callable[[], bool], between: Callable[[], Awaitable[None]] | None = None) -> None:
    """Wait until the mount is not busy, or has been for long. `between` is called after each pause, and may raise."""
    for _ in range(BUSY_MOST):
        if not busy():
            return
        await trio.sleep(BUSY_S)
        if between is not None:
            await between()
