"""The names of a directory that are being loaded into memory, in any thread."""

from __future__ import annotations

from nnfs.fs.keysets import KeySet, load_inode, load_keys
from nnfs.store.txn import Snapshot


class Loading:
    """The names of a directory that are being loaded into memory."""

    def __init__(self, snapshot: Snapshot | None, ino: int) -> None:
        self._snapshot, self._ino = snapshot, ino  # None: the directory is not committed yet
        self.found: KeySet | None = None

    def scan(self) -> None:
        """Read and prove the names of the last commit. Raises `RecordDamaged`."""
        if self._snapshot is None:
            self.found = KeySet()
        else:
            self.found = load_keys(self._snapshot, load_inode(self._snapshot, self._ino), "dentry")

    def close(self) -> None:
        if self._snapshot is not None:
            self._snapshot.close()
