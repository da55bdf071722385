"""Differences of btrfs, which never overwrites: every write needs a new block, and freeing needs some first."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
from pathlib import Path

log = logging.getLogger(__name__)

_FS_INFO, _SYNC = 0x8400941F, 0x9408  # ioctls of linux/btrfs.h
_GETFLAGS, _SETFLAGS, _NOCOW = 0x80086601, 0x40086602, 0x00800000  # ioctls and flag of linux/fs.h


def is_btrfs(descriptor: int) -> bool:
    """Return whether a file lies on btrfs."""
    try:
        fcntl.ioctl(descriptor, _FS_INFO, bytes(1024))
    except OSError:
        return False
    return True


def commit(descriptor: int) -> None:
    """Make btrfs end its transaction: space freed in it can be used, and is counted as free, only then."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(descriptor, _SYNC, 0)


def overwrite_in_place(folder: Path) -> None:
    """Make btrfs overwrite the files made in a folder in place, as other filesystems do.

    Otherwise LMDB's meta pages could not be written on a full disk, after which it gives up for good. The content that
    btrfs would prove by checksums is proved by nnfs itself.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if is_btrfs(descriptor):
            flags = struct.unpack("l", fcntl.ioctl(descriptor, _GETFLAGS, bytes(8)))[0]
            fcntl.ioctl(descriptor, _SETFLAGS, struct.pack("l", flags | _NOCOW))
    except OSError as error:
        log.info("%s: not overwritten in place: %s", folder, error.strerror)
    finally:
        os.close(descriptor)
