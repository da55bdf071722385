"""Amendments: changes of the store that no request made, and that the next commit makes (DESIGN.md, "Swaps")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import trio

from nnfs.errors import OutOfSpace, again, kept

T = TypeVar("T")
Amend = Callable[[Any], None]  # changes the store in a commit's txn, after what was requested


class Amendment(Generic[T]):
    """A change that waits for the next commit, and its result. It is called in the commit thread."""

    def __init__(self, change: Callable[[Any], T]) -> None:
        self._change = change
        self._done = trio.Event()
        self._result: list[T] = []
        self._error: Exception | None = None

    def __call__(self, work: Any) -> None:
        try:
            self._result = [self._change(work)]
        except (OutOfSpace, MemoryError):
            raise  # half a change must not be committed
        except Exception as error:  # noqa: BLE001 - its owner's to know; changes fail before they change anything
            self._error = kept(error)

    def finish(self, error: Exception | None) -> None:
        """Tell the owner the outcome of the commit; `error` if it failed. An error of the change itself comes first."""
        self._error = self._error or error
        self._done.set()

    async def wait(self) -> T:
        """Return the result of the change once it is durable. Raises the error because of which there is none."""
        await self._done.wait()
        if self._error is not None:
            raise again(self._error)
        return self._result[0]


class Amendments:
    """The amendments that wait for the next commit. Used by the loop only."""

    def __init__(self) -> None:
        self._waiting: list[Amendment[Any]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, change: Callable[[Any], T]) -> Amendment[T]:
        amendment = Amendment(change)
        self._waiting.append(amendment)
        return amendment

    def take(self) -> Sequence[Amendment[Any]]:
        """Remove and return all amendments, for a commit that begins."""
        taken, self._waiting = self._waiting, []
        return taken

    def fail(self, error: Exception) -> None:
        """Tell the owners that there will be no commit."""
        for amendment in self.take():
            amendment.finish(error)
