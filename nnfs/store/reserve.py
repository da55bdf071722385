"""The reserve: blocks of the filesystem below that belong to the store already, so that no other program can take them.

statvfs(2) tells what was free a moment ago and knows no quotas; only allocated blocks are sure. So the room that is
promised to a writer, and the room that removals need on a full disk, is first allocated in a file beside the data file,
and lent to a commit that does not find room: the file is cut just before LMDB writes its pages, and grows again after
it.

Where the filesystem below cannot allocate (`works` is False) there is no reserve, and statvfs is trusted.
Thread-safe: the commit thread lends, writers make it grow.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from pathlib import Path

from nnfs.constants import RESERVE_FILE
from nnfs.errors import OutOfSpace
from nnfs.store import btrfs, freepages, privacy

log = logging.getLogger(__name__)

AT_ONCE = 2 << 20  # bytes
STEP = 64 << 10  # bytes: less than that is not asked for
LEFT_MIN, LEFT_SHARE = 4 << 20, 32  # bytes, or a share, that btrfs is left for its own trees
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def no_room(code: int = errno.ENOSPC) -> OutOfSpace:
    """Return the error for a writer: EDQUOT for a quota of the filesystem below, ENOSPC when that is full."""
    if code == errno.EDQUOT:
        error = OutOfSpace("the quota of the store's owner on the filesystem below is used up")
        error.errno = errno.EDQUOT
        return error
    return OutOfSpace("the filesystem below the store is full")


def write_zeros(descriptor: int, offset: int, size: int) -> int:
    """Write zeros as far as there is room. Return the number of bytes.

    This takes blocks at once that were freed just now, where fallocate(2) waits for a journal until they may be used
    again, and another program may have them by then.
    """
    try:
        return os.pwrite(descriptor, bytes(size), offset)
    except OSError:
        return 0


def refuses(folder: Path, size: int) -> int:
    """Return the errno with which the filesystem below refuses `size` more bytes in a folder, 0 if it grants them."""
    try:
        lower = os.statvfs(folder)
        if lower.f_bavail * lower.f_frsize < size:
            return errno.ENOSPC
        fd = os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        try:
            freepages.allocate(fd, 0, size)
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno if error.errno in NO_ROOM else 0
    return 0


class Reserve:
    """The open reserve of a store."""

    def __init__(self, folder: Path) -> None:
        """Open the reserve, or make an empty one. Raises nothing: without a reserve `works` is False."""
        self.folder = folder
        self.held = 0  # bytes
        self.works = False
        self.failures = 0  # commits in a row that found no room
        self.refusal = 0  # errno of the last growth that was refused, 0 when none was since it grew
        self._lock = threading.Lock()
        self._level = 0  # bytes to grow back to after what was lent
        self._fd = -1
        self._closed = False
        self.on_btrfs = False  # holes give nothing back there before their whole extent is one
        self.floor = 0  # bytes that are held though nothing is left to others
        self._left = 0  # bytes that are left to others
        self._open()

    def _open(self) -> None:
        try:
            self._fd = os.open(self.folder / RESERVE_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            privacy.give(self._fd, self.folder)
            self.on_btrfs = btrfs.is_btrfs(self._fd)
            if self.on_btrfs:
                lower = os.statvfs(self.folder)  # its own trees need room for whatever is changed, freed even
                self._left = max(LEFT_MIN, lower.f_blocks * lower.f_frsize // LEFT_SHARE)
            status = os.fstat(self._fd)
            if status.st_blocks * 512 >= status.st_size:
                self.held = self._level = status.st_size
            else:  # a copy that left the zeros out
                os.ftruncate(self._fd, 0)
            self.works = self._allocates()
        except OSError as error:
            if error.errno in NO_ROOM:
                self.refusal = error.errno
            log.warning("%s: no space is kept in reserve: %s", self.folder / RESERVE_FILE, error.strerror)

    def _allocates(self) -> bool:
        try:
            freepages.allocate(self._fd, self.held, STEP)
        except OSError as error:
            self._drop_rest()
            if error.errno in NO_ROOM:
                self.refusal = error.errno
            return error.errno in NO_ROOM
        self._drop_rest()
        return True

    def free(self) -> int:
        """Return the bytes that the filesystem below has free for any program, without the reserve."""
        lower = os.statvfs(self.folder)
        return lower.f_bavail * lower.f_frsize

    def grow(self, target: int, *, at_once: bool = False) -> bool:
        """Grow to `target` bytes, or as far as there is room. Return whether the target is reached.

        `at_once`: space was freed just now, and another program may want it.
        """
        with self._lock:
            if at_once and self.works and self.held < target:
                self.held += write_zeros(self._fd, self.held, min(target - self.held, AT_ONCE)) & ~4095
                self._drop_rest()
            return self._grow(target)

    def _grow(self, target: int) -> bool:
        if self._fd < 0 and target > 0 and not self._closed:
            self._open()  # there was no room for its name
        step = target - self.held
        while self.works and self.held < target and step > 0:
            step = self._step(min(step, target - self.held))
            if not step:
                break
            try:
                freepages.allocate(self._fd, self.held, step)
            except OSError as error:
                self._drop_rest()
                if error.errno not in NO_ROOM:
                    log.warning("%s does not grow: %s", self.folder / RESERVE_FILE, error.strerror)
                    break
                self.refusal = error.errno
                step = step // 2 if step >= 2 * STEP else 0
            else:
                self.held += step
                if self.held == target:
                    self.refusal = 0
        self._level = max(self._level, self.held)
        return self.held >= target

    def _step(self, step: int) -> int:
        """Return the bytes to ask for: no more than are free, since a vain request makes some filesystems flush."""
        with contextlib.suppress(OSError):
            free = self.free() - (self._left if self.held >= self.floor else 0)
            if free < step and free < STEP:
                self.refusal = self.refusal or errno.ENOSPC
                return 0
            step = min(step, free)
        return step

    def _drop_rest(self) -> None:
        """Free the part that some filesystems have allocated in a growth that failed."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self.held)

    def shrink(self, target: int) -> None:
        """Shrink to `target` bytes."""
        with self._lock:
            self._cut(target)
            self._level = self.held

    def _cut(self, target: int) -> None:
        if self.held > target:
            try:
                os.ftruncate(self._fd, target)
            except OSError:
                self._replace(target)
            else:
                self.held = target

    def _replace(self, target: int) -> None:
        """Replace the file by a shorter one: btrfs may have no room for cutting a file, but always for removing one."""
        try:
            os.unlink(self.folder / RESERVE_FILE)
        except OSError as error:
            log.warning("%s: %s", self.folder / RESERVE_FILE, error.strerror)
            return
        os.close(self._fd)
        self._fd, self.held, self.works = -1, 0, False
        self._open()
        if self._fd >= 0:
            btrfs.commit(self._fd)
            self._grow(target)

    def may_rely(self, size: int) -> bool:
        """Return whether a commit that writes `size` bytes will find room without the reserve, as far as is known."""
        if self.on_btrfs:  # most pages are written in place
            return True
        if self.refusal == errno.EDQUOT:  # of a quota statvfs may not know
            return False
        try:
            return self.free() >= 2 * size + self._left
        except OSError:
            return False

    def spend(self, size: int) -> bool:
        """Free up to `size` bytes of the reserve, for whichever program is first. Return whether there were any."""
        with self._lock:
            had = self.held
            self._level = max(self._level, had)
            self._cut(max(0, had - size))
            return self.held < had

    def take_back(self, *, at_once: bool = False) -> None:
        """Grow to the size before a loan, as far as there is room."""
        if self.held < self._level:
            self.grow(self._level, at_once=at_once)

    def free_at_once(self) -> None:
        """Make space that was freed free now: btrfs delays that."""
        with self._lock:
            if self.on_btrfs and self._fd >= 0:
                btrfs.commit(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self.works, self.held, self._closed = -1, False, 0, True
