"""LMDB's lock file in memory: the engine maps it writable and shared, so a page of it could need a block of the disk.

On a full disk the first access to a page (ext4, xfs, tmpfs) or any access (btrfs, which copies on write) is a SIGBUS in
the process that opens the store. Only one process needs the file, since the flock of the directory keeps others out. It
cannot be left out, since it holds the table of readers, which keeps their pages from being used again. So LMDB is shown
a directory in memory that lives only while it opens its files: a link to the data file, and one to an anonymous file
whose pages are allocated beforehand.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb._envid

from nnfs.constants import DATA_FILE, LOCK_FILE

SIZE = 64 << 10  # bytes: LMDB takes what is there; 64 for each of its 1,000 readers
_F_OFD_SETLK = 37  # fcntl.h: a lock of the open file, not of the process
_NO_EXEC = 0x8  # MFD_NOEXEC_SEAL: some systems allow no other; old kernels do not know it


class LockTable:
    """A lock file in memory, for one store and all environments that this process opens on it."""

    def __init__(self) -> None:
        self._fd = _anonymous()
        os.posix_fallocate(self._fd, 0, SIZE)

    @contextmanager
    def beside(self, folder: Path, data: Path) -> Iterator[Path]:
        """Yield a directory to open the environment of `folder` from: `data`, its data file, and this lock file.

        Where no directory can be made anywhere it is `folder` itself, with a lock file whose blocks are allocated.
        """
        place = _place()
        try:
            if place is None:
                _allocate(folder / LOCK_FILE)
                yield folder
            else:
                os.symlink(os.path.abspath(data), place / DATA_FILE)
                os.symlink(f"/proc/self/fd/{self._fd}", place / LOCK_FILE)
                yield place
        finally:
            if place is not None:
                shutil.rmtree(place, ignore_errors=True)
        if place is not None:
            with contextlib.suppress(OSError):  # of an earlier version; a read-only medium keeps it
                os.unlink(folder / LOCK_FILE)

    @contextmanager
    def once_more(self) -> Iterator[None]:
        """Let this process open an environment that it has open already.

        LMDB forbids that because closing one of them gives up the other's fcntl locks. No other process can reach this
        file, so those locks do not matter. The second environment must take the table of readers as it is and not begin
        a new one, so it must not get the exclusive lock for which it asks first.
        """
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 1, 0)
        fcntl.fcntl(self._fd, _F_OFD_SETLK, lock)
        keys = lmdb._envid.env_keys
        lmdb._envid.env_keys = lambda path, subdir: ()
        try:
            yield
        finally:
            lmdb._envid.env_keys = keys

    def close(self) -> None:
        os.close(self._fd)


def _anonymous() -> int:
    try:
        return os.memfd_create("nnfs-lock", os.MFD_CLOEXEC | _NO_EXEC)
    except OSError:
        return os.memfd_create("nnfs-lock", os.MFD_CLOEXEC)


def _place() -> Path | None:
    """Make a directory for two links, in memory if possible: it must work on a full disk."""
    wanted = ["/dev/shm", os.environ.get("XDG_RUNTIME_DIR"), "/run", os.environ.get("TMPDIR"), "/tmp", "/var/tmp"]
    for parent in wanted:
        if parent:
            with contextlib.suppress(OSError):
                path = Path(tempfile.mkdtemp(prefix="nnfs-", dir=parent))
                try:
                    os.symlink("x", path / "probe")  # no more inodes: a directory may be there already
                    os.unlink(path / "probe")
                except OSError:
                    shutil.rmtree(path, ignore_errors=True)
                    continue
                return path
    return None


def _allocate(path: Path) -> None:
    """Make a lock file whose pages need no new blocks, as far as the filesystem can promise that."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.pwrite(descriptor, bytes(SIZE), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
