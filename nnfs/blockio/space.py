"""How much the filesystem below can still take: ENOSPC goes to the writer, before anything is promised."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

log = logging.getLogger(__name__)

RESERVE = 16 << 20  # bytes kept free so that deleting, which copies tree pages first, always works
RESERVE_SHARE = 64  # of a small filesystem: at most 1/64 of it
PER_COMMIT = 1 << 20  # tree pages that a commit may copy
_RETRY = 1.0  # seconds between two attempts to make room


class Space:
    """Free space below the store, looked up after each commit, and the limits that follow from it."""

    def __init__(self, path: Path, dirty_limit: int) -> None:
        self.path = path
        self.dirty_limit = dirty_limit
        self.free = 0  # bytes for new data, the reserve taken off
        self.reserve = 0
        self._tried = 0.0
        self.refresh()

    def refresh(self) -> None:
        """Ask the filesystem below."""
        try:
            lower = os.statvfs(self.path)
        except OSError as error:
            log.warning("free space below %s is not known: %s", self.path, error)
            return
        self.reserve = min(RESERVE, lower.f_blocks * lower.f_frsize // RESERVE_SHARE)
        self.free = lower.f_bavail * lower.f_frsize - self.reserve - PER_COMMIT

    def fits(self, dirty: int) -> bool:
        """Whether `dirty` bytes would find room, stored raw (with 3 % for fragments and records)."""
        return dirty + dirty // 32 <= self.free

    def bears(self, size: int) -> bool:
        """Whether `size` bytes may be added for a short time, by what frees more: half of the reserve is for that."""
        return size + size // 32 <= max(0, self.free) + self.reserve // 2

    def may_try(self) -> bool:
        """Whether it is time to try to make room again."""
        now = time.monotonic()
        if now - self._tried < _RETRY:
            return False
        self._tried = now
        return True
