"""Attributes: those that stat(2) and statfs(2) show, and those that a request changes besides the ones it names."""

from __future__ import annotations

import errno
import stat
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import NamedTuple

from nnfs.constants import TIMES
from nnfs.errors import FsError
from nnfs.fs.apply import RELEASE_NODES
from nnfs.fs.filesystem import Filesystem
from nnfs.fs.pasts import is_past
from nnfs.fs.xattrs import ACL_ACCESS, Xattrs
from nnfs.store import schema
from nnfs.store.schema import Inode

SECTOR = 512  # bytes: the unit of st_blocks
LATELY = 10**9  # ns: a tick of the kernel's clock, and as long as a busy machine takes to bring a write here
UNIT = 4096  # bytes: the unit of statfs(2)
ENTRY = 32  # bytes that a directory shows for each name


class Caller(NamedTuple):
    """The process that a request comes from. `groups` looks up its supplementary groups."""

    uid: int
    gid: int
    groups: Callable[[], Container[int]]

    @property
    def is_root(self) -> bool:
        return self.uid == 0

    def is_in(self, gid: int) -> bool:
        """Return whether the process is a member of a group."""
        return self.gid == gid or gid in self.groups()


@dataclass(slots=True)
class Change:
    """The attributes that a setattr request sets; None: unchanged. `size` is applied by `Attributes.resized`."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None  # ns
    mtime: int | None = None  # ns
    ctime: int | None = None  # ns

    def check(self) -> None:
        """Check that an inode can have the times. Raises `FsError`: POSIX has EINVAL for a time that cannot be kept."""
        if any(ns is not None and ns not in TIMES for ns in (self.atime, self.mtime, self.ctime)):
            raise FsError(errno.EINVAL)


class Figures(NamedTuple):
    """The figures of statfs(2), in units of `UNIT` bytes. `free` is what a limit leaves, `available` what there is."""

    blocks: int
    free: int
    available: int
    files: int
    free_files: int


class Attributes:
    """Changes of inodes' attributes. Every method but `spare` is done at once."""

    def __init__(self, fs: Filesystem, xattrs: Xattrs) -> None:
        self._fs, self._xattrs = fs, xattrs

    def change(self, inode: Inode, wanted: Change, caller: Caller) -> None:
        """Apply a setattr request that was checked, the size excepted, and the loss of suid and sgid that follows."""
        if wanted.mode is not None:
            self._xattrs.chmod(inode, wanted.mode)
        if wanted.uid is not None:
            inode.uid = wanted.uid
        if wanted.gid is not None:
            inode.gid = wanted.gid
        is_chown = wanted.uid is not None or wanted.gid is not None
        is_empty = wanted.mode is None and wanted.atime is None and wanted.mtime is None and wanted.ctime is None
        if is_chown or ((wanted.size is not None or is_empty) and not caller.is_root):
            drop_privileges(inode)
        now = time.time_ns()
        if wanted.atime is not None:
            inode.atime = wanted.atime
        if wanted.mtime is not None:
            inode.mtime = wanted.mtime
        elif wanted.size is not None:
            inode.mtime = now
        inode.ctime = now if wanted.ctime is None else wanted.ctime
        self._fs.touch(inode)

    def spare(self, inode: Inode, size: int) -> int:
        """Check that a file can get a size. Return the number of an inode that takes the chunks cut off, or 0.

        A large release is done in several commits, so it needs an inode of its own. Raises `FsError`.
        """
        if stat.S_ISDIR(inode.mode):
            raise FsError(errno.EISDIR)
        if not stat.S_ISREG(inode.mode):
            raise FsError(errno.EINVAL)
        is_large = size < inode.size and inode.count > RELEASE_NODES * schema.NODE_SPAN
        return self._fs.new_ino() if is_large else 0

    def resized(self, inode: Inode, size: int) -> None:
        """Note the new size of a file whose content was cut or extended."""
        if inode.quota:
            self._fs.quotas.add(inode.quota, size - inode.size)
        inode.size = size
        self._fs.touch(inode)

    def emptied(self, inode: Inode, caller: Caller) -> None:
        """Note that an open has truncated a file, O_TRUNC."""
        if not caller.is_root:
            drop_privileges(inode)
        inode.mtime = inode.ctime = time.time_ns()

    def written(self, inode: Inode, end: int) -> None:
        """Note a write that ends at `end`.

        The kernel keeps the times of cached files, and sends them when they have changed, except for a write within the
        same tick of its coarse clock: then it goes on to show the times that it has sent before.
        """
        if end > inode.size:
            if inode.quota:
                self._fs.quotas.add(inode.quota, end - inode.size)
            inode.size = end
        now = time.time_ns()
        if not 0 <= now - inode.mtime < LATELY:
            inode.mtime = inode.ctime = now
        self._fs.touch(inode)

    def set_xattr(self, inode: Inode, name: bytes, value: bytes, caller: Caller) -> None:
        """Set an extended attribute. An access ACL takes setgid from a file of a group that the caller is not in."""
        keeps = name != ACL_ACCESS or not inode.mode & stat.S_ISGID or caller.is_root or caller.is_in(inode.gid)
        self._xattrs.set(inode, name, value, keep_setgid=keeps)

    def xattr_names(self, inode: Inode, caller: Caller) -> list[bytes]:
        """Return the names of the extended attributes that a caller may see.

        Only root may read those of `trusted.`; as on ext4 they are hidden from others, or `cp -a` would fail.
        """
        names = self._xattrs.names(inode)
        return names if caller.is_root else [name for name in names if not name.startswith(b"trusted.")]

    def figures(self, free_bytes: int, in_place: int, ino: int) -> Figures:
        """Return the figures of statfs(2) for `free_bytes` that can be written, `in_place` of them without growth.

        `ino` is the file or directory that was asked about: a quota that limits it is shown like a filesystem.
        """
        free = max(0, free_bytes) // UNIT
        used = max(0, self._fs.store.physical_bytes() - in_place) // UNIT
        whole = Figures(used + free, free, free, self._fs.named + free, free)
        return self._limited(whole, ino) if self._fs.quotas.active and not is_past(ino) else whole

    def _limited(self, whole: Figures, ino: int) -> Figures:
        """Return figures with those of the innermost limits of bytes and of inodes; outer ones bound what is free."""
        levels = self._fs.quotas.chain(self._fs.inode(ino).quota)
        sizes = [(level.quota.max_bytes // UNIT, -(-level.size // UNIT)) for level in levels if level.quota.max_bytes]
        files = [(level.quota.max_inodes, level.inodes) for level in levels if level.quota.max_inodes]
        if sizes:
            limit, used = sizes[0]
            left = min(max(0, most - taken) for most, taken in sizes)
            whole = whole._replace(
                blocks=max(limit, used), free=max(0, limit - used), available=min(left, whole.available)
            )
        if files:
            limit, used = files[0]
            left = min(max(0, most - taken) for most, taken in files)
            whole = whole._replace(files=max(limit, used), free_files=left)
        return whole


def drop_privileges(inode: Inode) -> None:
    """Clear suid of a file, and sgid where it means execution: FUSE_HANDLE_KILLPRIV_V2 leaves that to us."""
    if not stat.S_ISDIR(inode.mode):
        inode.mode &= ~stat.S_ISUID
        if inode.mode & stat.S_IXGRP:
            inode.mode &= ~stat.S_ISGID


def blocks(inode: Inode, dirty_bytes: int) -> int:
    """Return the st_blocks of a file. It is 0 only for a file that is nothing but a hole."""
    return max(-(-(inode.stored + dirty_bytes) // SECTOR), inode.count > 0)


def size(inode: Inode) -> int:
    """Return the st_size of an inode."""
    return inode.count * ENTRY if inode.is_directory else inode.size
