"""The space that the filesystem below can still give. A writer gets ENOSPC before anything is accepted."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVarTuple

from nnfs.errors import NnfsError, OutOfSpace, StoreError
from nnfs.store.env import Store
from nnfs.store.mapsize import MAP_FULL
from nnfs.store.reserve import NO_ROOM, Reserve, no_room

Args = TypeVarTuple("Args")

log = logging.getLogger(__name__)

KEEP_MIN, KEEP_MAX = 1 << 20, 16 << 20  # bytes held so that deleting, which copies tree pages first, always works
KEEP_SHARE = 32  # of the filesystem below: so much of it between these bounds
PER_COMMIT = 1 << 20  # tree pages that a commit may copy; where nothing can be held
PLENTY = 1 << 30  # free bytes with which tree pages, of which many might have to be copied, need not be held
PAGE = 4096
SPARE = 8  # one of so many free pages is taken to be of no use: those around it may be too few
A_NAME = 256 << 10  # bytes that a change of the filesystem's own trees may need: xfs makes inodes by the chunk
RECORD_PAGES, RECORD_BYTES = 2, 512  # costs of a changed record: pages to copy, and bytes added to a small tree
NODE_PAGES = 3 * 64 + 4  # pages that releasing a map node may copy
ENDLESS = 1 << 62
_RETRY = 1.0  # seconds between two attempts to make room


class Space:
    """Free space below the store, the part of it that is held in the reserve, and the limits that follow.

    Nothing is accepted for which no space is held, that no other program can take. `keep` bytes of it are for removals.
    As much again is held in advance: growing costs a system call and, on a full disk, a flush.
    """

    def __init__(self, path: Path, dirty_limit: int, *, read_only: bool = False) -> None:
        self.path = path
        self.dirty_limit = dirty_limit
        self.free = 0  # bytes for new data, without those that are kept for removals
        self.lower = 0  # bytes that are free for anybody
        self.keep = KEEP_MIN
        self.tree = 0  # bytes of tree pages that a commit could have to copy at most
        self.in_place = 0  # bytes that the data file can take without growing: see `keeps_pages`
        self.map_left = ENDLESS  # bytes that the map can take, where it is limited
        self.overhead = 0  # bytes that it writes besides what was requested: the list of free pages
        self.reserve = None if read_only else Reserve(path)
        self._tried = 0.0
        self.refresh()
        if self.reserve is not None:
            self.reserve.shrink(self.keep)
            self.refill()
            if not self.is_tight:  # as later: the first write must not reduce statfs's space by more
                self.hold(0, 0)
            self.refresh()

    @property
    def held(self) -> int:
        """Bytes that the store has already; without a reserve, those that statvfs promises."""
        if self.reserve is not None and self.reserve.works:
            return self.reserve.held
        return self.free + self.keep

    @property
    def lends(self) -> bool:
        """Whether the reserve can lend room to a commit that finds none."""
        return self.reserve is not None and self.reserve.works

    @property
    def keeps_pages(self) -> bool:
        """Whether free pages are to be kept for the store itself: punching them would give nothing back.

        btrfs frees whole extents only, and needs room to do so.
        """
        return self.reserve is not None and self.reserve.on_btrfs and self.is_tight

    def shown(self) -> int:
        """Return the free bytes that statfs(2) and `df` show. Asks the filesystem below, which others may have filled.

        It is no more than the filesystem below shows, or than is held when that is more. Free pages that are kept
        (btrfs) are free for the next writes, too.
        """
        self.refresh()
        on_disk = max(0, min(self.free, max(self.lower, self.held - self.keep))) + self.in_place
        return max(0, min(on_disk, self.map_left - self.keep))

    @property
    def is_low(self) -> bool:
        """Whether less is held than should be kept for removals."""
        return self.reserve is not None and self.reserve.works and self.reserve.held < self.keep

    @property
    def is_tight(self) -> bool:
        """Whether the filesystem below has refused space lately, or is about to."""
        return self.free < 2 * self.keep or (self.reserve is not None and self.reserve.refusal != 0)

    def refresh(self) -> None:
        """Ask the filesystem below how much is free."""
        try:
            lower = os.statvfs(self.path)
        except OSError as error:
            log.warning("free space below %s is not known: %s", self.path, error)
            return
        total = lower.f_blocks * lower.f_frsize
        self.keep = min(KEEP_MAX, max(KEEP_MIN, total // KEEP_SHARE), max(PAGE, total // 4))
        if self.reserve is not None:
            self.reserve.floor = self.keep
        free = self.lower = lower.f_bavail * lower.f_frsize
        if self.reserve is not None and self.reserve.works:
            if self.reserve.refusal == errno.EDQUOT:
                free = 0  # statvfs may not know the quota
            self.free = free + self.reserve.held - self.keep
        else:
            self.free = free - self.keep - PER_COMMIT

    def need(self, data: int, records: int) -> int:
        """Return the most bytes that a commit may write: data stored raw, 3 % for fragments and records, tree pages."""
        copied = min(records * RECORD_PAGES * PAGE, self.tree + records * RECORD_BYTES)
        return data + data // 32 + copied

    def fits(self, data: int, records: int = 0) -> bool:
        """Return whether there is room for so many dirty bytes and records; see `hold`."""
        return self._has(data, records, self.keep)

    def may_remove(self, data: int, records: int) -> bool:
        """Return whether there is room for a change that needs hardly any, together with all others."""
        return self._has(data, records, 0)

    def _has(self, data: int, records: int, kept: int) -> bool:
        if not self._is_mapped(data, records, kept):
            return False
        need, held = self.need(data, records) + self.overhead, self.held - kept + self.in_place
        return need <= held or (data + data // 32 <= held and self.free > PLENTY + 4 * need)

    def _is_mapped(self, data: int, records: int, kept: int) -> bool:
        """Return whether LMDB's map has that room besides the part that is kept for removals."""
        return self.need(data, records) + self.overhead <= self.map_left - kept

    def hold(self, data: int, records: int, *, removing: bool = False) -> bool:
        """Try to hold the room that `fits` (or `may_remove`) asks for. Return whether it is held. For a thread."""
        if self.reserve is None or not self._is_mapped(data, records, 0 if removing else self.keep):
            return False
        need = self.need(data, records) + self.overhead
        return self.reserve.grow(need + (0 if removing else 2 * self.keep))

    def refill(self, *, at_once: bool = False) -> bool:
        """Hold the space that is kept for removals. Return whether all of it is held. Call it in a thread."""
        if self.reserve is None or not self.reserve.works:
            return True
        if at_once and self.is_low:
            self.reserve.grow(self.keep, at_once=True)
        self.reserve.grow(self.keep * (2 if self.reserve.refusal else 1))  # is there room again?
        return self.reserve.held >= self.keep

    def helping(self, free: Callable[[*Args], int], *args: *Args) -> int:
        """Call `free`; where freeing needs room at first (btrfs), lend that from the reserve. Raises as `free` does."""
        try:
            return free(*args)
        except StoreError as error:
            if error.errno not in NO_ROOM or self.reserve is None or not self.reserve.spend(2 * A_NAME):
                raise
        return free(*args)

    def follow(self, store: Store) -> None:
        """Look up the cost of the next commits of a store, and the space that is free now."""
        self.tree, self.overhead = store.write_cost[:2]
        self.refresh()
        self.in_place, pages = 0, store.superblock.chunk_size // PAGE + 1
        if store.is_limited:
            with contextlib.suppress(NnfsError, OSError):
                self.map_left = store.map_left(pages)
        if self.keeps_pages:
            with contextlib.suppress(NnfsError, OSError):
                self.in_place = store.in_place(pages) // SPARE * (SPARE - 1)

    def free_at_once(self) -> None:
        """Make the filesystem below free at once the space that it would free later (btrfs)."""
        if self.reserve is not None:
            self.reserve.free_at_once()

    def take_back(self) -> None:
        """Grow the reserve to its size before commits took some of it, as far as there is room."""
        if self.reserve is not None:
            self.reserve.take_back(at_once=True)

    def relax(self) -> None:
        """Give back the space that no dirty data needs, except that which requests under way may have been promised."""
        if self.reserve is not None:
            self.reserve.shrink(2 * self.keep)

    def lend_a_name(self) -> None:
        """Give back as much space as a new name in the store's folder may cost."""
        if self.reserve is not None:
            self.reserve.shrink(max(0, self.reserve.held - A_NAME))

    def bears(self, size: int) -> bool:
        """Return whether a change that frees more may add `size` bytes for a while, from half of what is kept."""
        room = min(self.held, self.map_left) - self.keep // 2
        return size + size // 32 + self.overhead <= room

    def release_nodes(self, most: int) -> int:
        """Return how many map nodes, at most `most`, a commit may release, since it copies pages for each."""
        if not self.is_tight or self.tree + self.overhead <= self.held:
            return most
        return max(1, min(most, self.held // (NODE_PAGES * PAGE)))

    def refused(self) -> OutOfSpace:
        """Return the error for a writer that finds no room."""
        if not self._is_mapped(0, 1, 2 * self.keep):
            return OutOfSpace(MAP_FULL)
        return no_room(self.reserve.refusal if self.reserve is not None else errno.ENOSPC)

    def may_try(self) -> bool:
        """Return whether it is time to try to make room again."""
        now = time.monotonic()
        if now - self._tried < _RETRY:
            return False
        self._tried = now
        return True

    def close(self) -> None:
        """Close the reserve. The part for removals stays with the store, for a mount on a full disk."""
        if self.reserve is not None:
            self.reserve.shrink(self.keep)
            self.reserve.close()
