"""Tasks in a nursery whose end would be the mount's."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

log = logging.getLogger(__name__)

Task = Callable[..., Awaitable[None]]


class Nursery(Protocol):
    """Where tasks are started: a `Guarded`, or in tests trio's own."""

    def start_soon(self, task: Task, /, *args: Any) -> None: ...


class Guarded:
    """A nursery of tasks that end nothing but themselves: a bug in one costs neither the mount nor the last commit."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(self, task: Task, /, *args: Any) -> None:
        """Start a task. What it raises is logged."""
        self._nursery.start_soon(self._survive, task, args)

    @staticmethod
    async def _survive(task: Task, args: tuple[Any, ...]) -> None:
        try:
            await task(*args)
        except Exception:
            log.exception("a bug in %s: the mount goes on without it", getattr(task, "__qualname__", task))
