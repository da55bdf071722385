"""The place of an open store: its directory may be moved while it is open, and its data file deleted or replaced."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from nnfs.constants import DATA_FILE
from nnfs.errors import StoreDamaged, StoreError
from nnfs.store.freepages import sound_metas


class Whereabouts:
    """The directory and the data file of an open store, by descriptors and not by names.

    A name leads to whatever is there now, perhaps another store. Make this object after the engine has opened the data
    file: overlayfs copies it then.
    """

    def __init__(self, path: Path, directory: int) -> None:
        self.opened = path
        self._directory = directory  # the store's to close
        self._data = os.open(path / DATA_FILE, os.O_RDONLY | os.O_CLOEXEC)
        self._size = 0  # bytes of the data file when `check_own` was called last

    @property
    def here(self) -> Path:
        """The directory, wherever it is moved to. Nothing can be made in it once it is removed."""
        return Path(f"/proc/self/fd/{self._directory}")

    @property
    def data(self) -> Path:
        """The data file that is open, whatever file has its name now."""
        return Path(f"/proc/self/fd/{self._data}")

    @property
    def identity(self) -> str:
        """The numbers that distinguish the open data file from another one put in its place."""
        return identity(os.fstat(self._data))

    def now(self) -> Path:
        """Return the directory's path now, or the path by which it was opened if it has none any more."""
        try:
            path = Path(os.readlink(self.here))
            if os.path.samestat(path.stat(), os.fstat(self._directory)):
                return path
        except OSError:
            pass
        return self.opened

    def lost(self) -> str:
        """Return the fate of the data file if it is not in the directory any more, "" while it is."""
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
        """Check that the data file is as a txn has left it, by reads: the map of a file that was cut short faults.

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
        """Close all descriptors except the directory's."""
        if self._data >= 0:
            os.close(self._data)
            self._data = -1


def identity(status: os.stat_result) -> str:
    """Return the numbers that distinguish a file from every other one."""
    return f"{status.st_dev}:{status.st_ino}"


def check_writable(path: Path) -> None:
    """Raise `StoreError` with the reason why a store cannot be written, before the engine raises a less clear error."""
    for what in (path, path / DATA_FILE):
        if not os.access(what, os.W_OK, effective_ids=True):
            is_medium = os.statvfs(path).f_flag & os.ST_RDONLY
            why = "lies on a read-only filesystem" if is_medium else f"may not be written to (no permission for {what})"
            raise StoreError(f"{path} {why}: -o ro mounts it read-only")
