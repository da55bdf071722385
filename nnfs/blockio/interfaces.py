"""The parts of a filesystem that reads and commits use, and no more of it than they use."""

from __future__ import annotations

from typing import Any, Protocol

from nnfs.store.schema import Inode


class Files(Protocol):
    """Inodes, what lies in directories, and where the chunks of files are stored."""

    def inode(self, ino: int) -> Inode: ...
    def children(self, directory: Inode, after: int, limit: int) -> list[tuple[int, int]]: ...
    def block_numbers(self, inode: Inode, first: int, last: int) -> list[int]: ...


class Metadata(Files, Protocol):
    """Files, and the epochs of their changes."""

    active: Any
    frozen: Any

    @property
    def keeps(self) -> bool: ...
    def check_size(self, inode: Inode, size: int) -> None: ...
    def freeze(self) -> Any: ...
    def committed(self, applied: Any) -> None: ...
