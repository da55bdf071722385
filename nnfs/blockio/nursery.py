"""A nursery for tasks whose exceptions must not end the mount."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

log = logging.getLogger(__name__)

Task = Callable[..., Awaitable[None]]


class Nursery(Protocol):
    """A place to start tasks in: a `Guarded`, or in tests trio's own nursery."""

    def start_soon(self, task: Task, /, *args: Any) -> None: ...


class Guarded:
    """Starts tasks that end nothing but themselves: a bug in one costs neither the mount nor the last commit."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(self, task: Task, /, *args: Any) -> None:
        """Start a task. Its exceptions are logged."""
        self._nursery.start_soon(self._survive, task, args)

    @staticmethod
    async def _survive(task: Task, args: tuple[Any, ...]) -> None:
        try:
            await task(*args)
        except Exception:
            log.exception("a bug in %s: the mount goes on without it", getattr(task, "__qualname__", task))
