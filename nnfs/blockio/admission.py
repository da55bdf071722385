"""Admission: no request is accepted for which memory or the disk may lack room (DESIGN.md, "Writes", "Space")."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

import trio

from nnfs.blockio.backlog import Backlog
from nnfs.blockio.space import Space

COMMIT_BYTES = 12 << 20  # of dirty chunks begin a commit; LMDB holds about as much again in dirty pages meanwhile


class Admission:
    """Makes requests wait, or fail, before they change anything. `make_room()` makes room on a full disk, if it can."""

    def __init__(self, backlog: Backlog, space: Space, make_room: Callable[[], Awaitable[None]]) -> None:
        self._backlog, self._space, self._make_room = backlog, space, make_room

    async def admit(self, size: int) -> None:
        """Wait until `size` more dirty bytes may be taken in. Raises `OutOfSpace` when they would not fit the disk."""
        self._backlog.raise_failure()
        await self.throttle(size)
        if not await self.hold(size):
            await self._make_room()
            if not await self.hold(size):
                raise self._space.refused()

    async def throttle(self, size: int = 0) -> None:
        """Wait while memory has no room for `size` more bytes of uncommitted changes.

        Raises `Backlog.failure`, and `OutOfSpace` while nothing can be committed for lack of it.
        """
        self._backlog.raise_failure()
        await self._bound_removals()
        if self._backlog.active_size + size <= min(COMMIT_BYTES, self._space.dirty_limit // 2):
            return
        self._backlog.want_commit()
        while self._backlog.size + size > self._space.dirty_limit:
            self._backlog.raise_trouble()
            if not self._backlog.size:
                return
            self._backlog.want_commit()
            await self._backlog.commit_ended()

    async def hold(self, size: int) -> bool:
        """Hold room on disk for the backlog and for `size` bytes and a record more. Return whether there is enough."""
        while not self._fits(size):
            if not await trio.to_thread.run_sync(self._space.hold, *self._need(size)):
                return self._fits(size)
            # Enough is held; but others were admitted meanwhile, or some of it was given back after a commit.
        return True

    def has_room_to_spare(self) -> bool:
        """Return whether there is room for a change that nobody asked for, such as a new atime."""
        return not self._space.is_tight or (self._backlog.no_space is None and self._may_remove())

    async def _bound_removals(self) -> None:
        """On a full disk, wait before a removal while the backlog is as large as can be committed at once."""
        while self._backlog.no_space is None and not self._may_remove():
            hold = functools.partial(self._space.hold, removing=True)
            await trio.to_thread.run_sync(hold, *self._need())
            if self._may_remove() or self._backlog.empty:
                return
            self._backlog.want_commit()
            await self._backlog.commit_ended()

    def _need(self, size: int = 0) -> tuple[int, int]:
        """Return the bytes and the records of the backlog, and of `size` bytes more."""
        return self._backlog.data.size + size, self._backlog.records + 1

    def _fits(self, size: int) -> bool:
        return self._space.fits(*self._need(size))

    def _may_remove(self) -> bool:
        return self._space.may_remove(*self._need())
