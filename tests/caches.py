"""The kernel's caches, as tests want them: dirty pages written back, clean ones dropped."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)


def sync_fs(path: Path) -> None:
    """Write dirty pages of the filesystem of *path* back. (sync(2) would wait for all filesystems of the machine.)"""
    fd = os.open(path, os.O_RDONLY)
    try:
        if libc.syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(fd)


def drop_caches(path: Path) -> None:
    """Write dirty pages of the filesystem of *path* back, then make the kernel forget pages, dentries and inodes."""
    sync_fs(path)
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def wrote(path: Path, data: bytes) -> bool:
    """Write and sync a file; tell whether there was room."""
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        assert error.errno == errno.ENOSPC
        return False
    return True
