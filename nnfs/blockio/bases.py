"""Bases: the committed content that lies under chunks which are written in part (DESIGN.md, "Writes")."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from nnfs.blockio.dirty import DirtyData
from nnfs.blockio.interfaces import Files
from nnfs.codec import FIRST_COLD
from nnfs.errors import FsError, StoreError
from nnfs.store.blocks import load_block
from nnfs.store.env import Store
from nnfs.store.schema import Block, Inode


class Bases:
    """Tells which blocks lie under dirty chunks, so that no commit has to wait for a worker. Used by the loop only.

    A write to part of a cold block waits until that is decoded, and a block that lies under a dirty chunk is not
    swapped for a cold one.
    """

    def __init__(self, store: Store, files: Files, data: DirtyData) -> None:
        self._store, self._files, self._data = store, files, data
        self._cooling: set[int] = set()

    def length(self, inode: Inode, chunk: int) -> int:
        """Return the length of a chunk's committed content, 0 for a hole. Raises `StoreDamaged`."""
        [number] = self._files.block_numbers(inode, chunk, chunk)
        if not number:
            return 0
        block = self._block(number)
        return block.plain if block is not None else self._data.chunk_size

    def cold(self, inode: Inode, offset: int, end: int) -> dict[int, int]:
        """Return by chunk the blocks that a write of [offset, end) changes in part and that workers have to decode.

        With `offset == end`: the block that a truncation to `offset` changes. Raises `StoreDamaged`.
        """
        found = {}
        for chunk in self._data.partly_changed(inode.ino, inode.size, offset, end):
            [number] = self._files.block_numbers(inode, chunk, chunk)
            if number:
                block = self._block(number)
                if number in self._cooling or (block is not None and block.codec >= FIRST_COLD):
                    found[chunk] = number
        return found

    @contextlib.contextmanager
    def cooling(self, numbers: set[int]) -> Iterator[None]:
        """Treat blocks that are about to become cold as cold ones while the body runs."""
        self._cooling |= numbers
        try:
            yield
        finally:
            self._cooling -= numbers

    def in_use(self) -> set[int]:
        """Return the blocks that lie under dirty chunks: the next commits need their content."""
        found = set()
        for ino, chunk in self._data.overlays():
            with contextlib.suppress(FsError, StoreError):  # an inode that is gone or damaged has no base
                found.update(self._files.block_numbers(self._files.inode(ino), chunk, chunk))
        return found

    def _block(self, number: int) -> Block | None:
        with self._store.read() as snapshot:
            return load_block(snapshot, number)
