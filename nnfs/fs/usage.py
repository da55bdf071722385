"""Use of files: which ones are open, and when others were used last, as far as their atime does not tell.

The kernel answers most reads from its page cache, and reads of mapped pages always: the daemon
is not told of them. It is told of every open, and of the end of the last use of a handle, which a mapping delays.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

KEPT = 1 << 16  # files of which it is known when they were used last


class Usage:
    """Counts open handles of files. `clock` gives ns, as `time.time_ns` does."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._handles: Counter[int] = Counter()
        self._read: set[int] = set()  # those of which a handle can read
        self._last: dict[int, int] = {}  # inode to ns of the last reading, the latest last

    @property
    def handles(self) -> int:
        """Number of open handles."""
        return self._handles.total()

    def opened(self, ino: int, *, reads: bool = True) -> None:
        """Count one more handle. `reads`: the handle can read."""
        self._handles[ino] += 1
        if reads:
            self._read.add(ino)

    def closed(self, ino: int) -> bool:
        """Count one handle less. Return whether it was the last one and the file may have been read until now."""
        was_read = ino in self._read
        if was_read:
            self.used(ino)
        self._handles[ino] -= 1
        if self._handles[ino] > 0:
            return False
        del self._handles[ino]
        self._read.discard(ino)
        return was_read

    def reads(self, ino: int) -> bool:
        """Return whether an open handle of a file reads it, other than with O_NOATIME."""
        return ino in self._read

    def used(self, ino: int) -> None:
        """Note that a file is being read."""
        self._last.pop(ino, None)
        self._last[ino] = self._clock()
        if len(self._last) > KEPT:
            del self._last[next(iter(self._last))]

    def last(self, ino: int) -> int:
        """Return the time of a file's last use in ns: now if it is open, 0 if unknown. Any thread may call it."""
        return self._clock() if self._handles.get(ino) else self._last.get(ino, 0)
