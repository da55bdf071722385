"""Access times: the uses of a file that move its atime, and the time of its last use."""

from __future__ import annotations

import time

from nnfs.fs.filesystem import Filesystem
from nnfs.fs.pasts import is_past
from nnfs.fs.usage import Usage
from nnfs.store.schema import Inode

RELATIME = 24 * 3600 * 10**9  # ns
GRAIN = 10**7  # ns: the kernel's mtimes come from a clock that may be so late, and ours from one that is not


class AccessTimes:
    """The mount's rule for atimes, applied to what is opened, read and closed.

    `option` is `relatime`, `strictatime` or `noatime`. `read_age` is the number of seconds after which recompression
    takes a file for unread; 0: reading does not matter. Without `may_store` uses are noted, but no atime moves.
    """

    def __init__(self, fs: Filesystem, option: str, read_age: float = 0.0) -> None:
        self.option = option
        self.read_age = read_age
        self.usage = Usage()
        self._fs = fs

    def accessed(self, inode: Inode, *, may_store: bool) -> bool:
        """Note that a file or directory is being read. Return whether its atime has moved."""
        if is_past(inode.ino):
            return False
        self.usage.used(inode.ino)
        if not may_store or not (self.option == "strictatime" or (self.option == "relatime" and self._is_due(inode))):
            return False
        return self._move(inode)

    def opened(self, inode: Inode, *, reads: bool, may_store: bool) -> bool:
        """Note a new handle. Return whether the atime has moved.

        An open for reading counts as the reading: the kernel reads its page cache without the daemon's knowing.
        """
        if is_past(inode.ino):
            return False
        self.usage.opened(inode.ino, reads=reads)
        return reads and self.accessed(inode, may_store=may_store)

    def closed(self, ino: int, *, may_store: bool) -> None:
        """Note the end of a handle. The last one moves the atime, so that the next mount knows of the reading."""
        if not is_past(ino) and self.usage.closed(ino) and self.option != "noatime" and may_store:
            inode = self._fs.inode(ino)
            if inode.nlink and self._is_old(inode):
                self._move(inode)

    def last_read(self, ino: int) -> int:
        """Return when a file was last in use in this mount, in ns, 0 if unknown. Any thread may call it."""
        return self.usage.last(ino)

    def _is_due(self, inode: Inode) -> bool:
        return inode.atime <= max(inode.mtime, inode.ctime) + GRAIN or self._is_old(inode)

    def _is_old(self, inode: Inode) -> bool:
        """Return whether an atime is so old that relatime wants another one.

        relatime(8) says a day; but a file that is read every day must not look as if nobody had read it for a day.
        """
        return time.time_ns() - inode.atime > (min(RELATIME, int(self.read_age * 1e9 / 2)) or RELATIME)

    def _move(self, inode: Inode) -> bool:
        before, inode.atime = inode.atime, time.time_ns()
        self._fs.touch(inode)
        return inode.atime != before
