"""Punching free pages out of the data file, so that the filesystem below gets them back (DESIGN.md, "Space")."""

from __future__ import annotations

from nnfs.blockio.backlog import Backlog
from nnfs.blockio.space import PAGE, Space
from nnfs.store.env import Store

BUDGET = 4096  # holes per turn
STEP_BYTES, STEP = 1 << 20, 64  # bytes and holes at a time while others could take what they give


class Puncher:
    """Punches free pages of one store. Used by the commit thread only."""

    def __init__(self, store: Store, space: Space, backlog: Backlog) -> None:
        self._store, self._space, self._backlog = store, space, backlog

    def punch(self, keep: int, everything: bool = False) -> None:
        """Punch free pages except `keep`. Space that is kept for removals is held first, before others take it.

        While space is short, the pages that the next commits take stay: giving them up and taking them again loses
        some. With `everything` they do not stay, since they turned out to be the wrong ones.
        """
        space = self._space
        if space.keeps_pages:
            space.free_at_once()
            space.refill()
            return
        short = space.is_tight and not everything
        if short:
            keep = max(keep, 2 * self._store.write_cost.total // PAGE)
        while not space.refill(at_once=True):
            if not space.helping(self._store.punch, keep, STEP):
                break
        if not (short and space.is_low):
            while space.helping(self._store.unclaim, STEP_BYTES):
                space.take_back()
        space.helping(self._store.punch, keep, BUDGET)
        if short:
            space.free_at_once()
        space.refill()
        if self._backlog.empty:
            space.relax()
