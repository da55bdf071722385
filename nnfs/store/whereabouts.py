"""Where an open store is: its directory may be moved while it is open, and its data file deleted or replaced."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from nnfs.constants import DATA_FILE
from nnfs.errors import StoreDamaged, StoreError
from nnfs.store.freepages import sound_metas


class Whereabouts:
    """The directory and the data file of an open store, by descriptors and not by names.

    A name tells what is there now, and that may be another store. To be made after the engine has opened the data file:
    overlayfs copies it then.
    """

    def __init__(self, path: Path, directory: int) -> None:
        self.opened = path
        self._directory = directory  # the store's to close
        self._data = os.open(path / DATA_FILE, os.O_RDONLY | os.O_CLOEXEC)
        self._size = 0  # bytes of the data file when `check_own` was called last

    @property
    def here(self) -> Path:
        """The directory: the same one wherever it is moved to; nothing can be made in it once it is removed."""
        return Path(f"/proc/self/fd/{self._directory}")

    @property
    def data(self) -> Path:
        """The data file: the open one, whatever has its name now."""
        return Path(f"/proc/self/fd/{self._data}")

    @property
    def identity(self) -> str:
        """What tells the open data file from another one that is put in its place."""
        return identity(os.fstat(self._data))

    def now(self) -> Path:
        """The directory's path now; the one by which it was opened when it has none any more."""
        try:
            path = Path(os.readlink(self.here))
            if os.path.samestat(path.stat(), os.fstat(self._directory)):
                return path
        except OSError:
            pass
        return self.opened

    def lost(self) -> str:
        """What has become of the data file if it is not in the directory any more; "" when it is."""
        try:
            own = os.fstat(self._data)
            if own.st_nlink == 0:
                return "was deleted"
            there = os.stat(DATA_FILE, dir_fd=self._directory)
        except FileNotFoundError:
            return "was moved out of the store's directory"
        except OSError as error:
            return "was deleted" if error.errno == errno.ESTALE else ""  # by another client of a network filesystem
        return "" if os.path.samestat(own, there) else "was replaced by another file"

    def check_own(self, txn: int) -> None:
        """Check that the data file is as the engine left it with a txn, by reads: a map of what was cut off faults.

        Raises `StoreDamaged` when another program has written to it: `cp` of a backup over a mounted store, say.
        """
        size = os.fstat(self._data).st_size
        newest = max((meta.txnid for meta in sound_metas(self._data).values()), default=-1)
        if size < self._size or newest < txn:
            raise StoreDamaged(
                f"{self.now() / DATA_FILE} was overwritten or cut short by another program while it was in use: "
                f"nothing is accepted any more; unmount, and restore a backup"
            )
        self._size = size

    def close(self) -> None:
        """Close what is open but the directory."""
        if self._data >= 0:
            os.close(self._data)
            self._data = -1


def identity(status: os.stat_result) -> str:
    """What tells a file from every other one."""
    return f"{status.st_dev}:{status.st_ino}"


def check_writable(path: Path) -> None:
    """Say why a store cannot be written, before the engine says something else. Raises `StoreError`."""
    for what in (path, path / DATA_FILE):
        if not os.access(what, os.W_OK, effective_ids=True):
            is_medium = os.statvfs(path).f_flag & os.ST_RDONLY
            why = "lies on a read-only filesystem" if is_medium else f"may not be written to (no permission for {what})"
            raise StoreError(f"{path} {why}: -o ro mounts it read-only")
