"""Writes and truncations: they change dirty chunks, once the memory and the old content that they need are there."""

from __future__ import annotations

from nnfs.blockio.commit import Committer
from nnfs.blockio.dirty import DirtyData
from nnfs.blockio.reader import Reader
from nnfs.store.schema import Inode


class Writer:
    """Changes the content of files. Returns the live inode, whose size the caller sets before anybody else can run.

    Changing part of a cold chunk waits until the chunk is decoded, as a read does. So nothing is ever dirty over a
    cold block, and no commit waits for a worker.
    """

    def __init__(self, data: DirtyData, reader: Reader, committer: Committer) -> None:
        self._data, self._reader, self._committer = data, reader, committer

    async def write(self, ino: int, offset: int, piece: bytes) -> Inode:
        """Write `piece` at `offset` of a file.

        Raises as `Admission.admit`, `Reader.read` and `Metadata.check_size`, with nothing changed.
        """
        await self._committer.admission.admit(len(piece))
        bases = await self._bases(ino, offset, offset + len(piece))
        inode = self._committer.meta.inode(ino)
        if inode.quota:
            self._committer.meta.check_size(inode, max(inode.size, offset + len(piece)))
        full = self._data.write(ino, offset, piece, inode.size)
        self._lay_over(ino, bases)
        self._committer.encoding.offer(full)
        return inode

    async def truncate(self, ino: int, size: int, spare: int) -> Inode:
        """Cut a file to `size` bytes, or let it grow; `spare` as in `DirtyData.truncate`. Raises as `write` does."""
        bases = await self._bases(ino, size, size)
        inode = self._committer.meta.inode(ino)
        if inode.quota:
            self._committer.meta.check_size(inode, size)
        self._data.truncate(ino, inode.size, size, spare)
        self._lay_over(ino, bases)
        return inode

    async def _bases(self, ino: int, offset: int, end: int) -> dict[int, bytes]:
        """Return by chunk the content of cold bases that a change of [offset, end) needs. Valid until the next await.

        `offset == end` stands for a truncation.
        """
        blocks: dict[int, bytes] = {}
        while True:
            inode = self._committer.meta.inode(ino)
            cold = self._committer.bases.cold(inode, offset, end)
            missing = [number for number in cold.values() if number not in blocks]
            if not missing:
                return {chunk: blocks[number] for chunk, number in cold.items()}
            blocks |= await self._reader.blocks(inode, offset, missing)
            await self._committer.admission.throttle(sum(map(len, blocks.values())))

    def _lay_over(self, ino: int, bases: dict[int, bytes]) -> None:
        for chunk, base in bases.items():
            self._data.lay_over(ino, chunk, base)
