"""Changes of files' content: into dirty chunks, once the memory and the old content that they need are there."""

from __future__ import annotations

from nnfs.blockio.commit import Committer
from nnfs.blockio.dirty import DirtyData
from nnfs.blockio.reader import Reader
from nnfs.store.schema import Inode


class Writer:
    """Writes and truncations. Both return the live inode, whose size the caller sets before anybody else can run.

    Who changes a part of a cold chunk waits until that is decoded, as its readers do. So nothing is ever dirty over
    what a worker has to decode, and no commit waits for a worker.
    """

    def __init__(self, data: DirtyData, reader: Reader, committer: Committer) -> None:
        self._data, self._reader, self._committer = data, reader, committer

    async def write(self, ino: int, offset: int, piece: bytes) -> Inode:
        """Write `piece` at `offset` of a file. Raises as `Committer.admit` and `Reader.read` do, nothing done."""
        await self._committer.admit(len(piece))
        bases = await self._bases(ino, offset, offset + len(piece))
        inode = self._committer.meta.inode(ino)
        full = self._data.write(ino, offset, piece, inode.size)
        self._lay_over(ino, bases)
        self._committer.encoding.offer(full)
        return inode

    async def truncate(self, ino: int, size: int, spare: int) -> Inode:
        """Cut a file to `size` bytes, or let it grow; `spare` as in `DirtyData.truncate`. Raises as `write` does."""
        bases = await self._bases(ino, size, size)
        inode = self._committer.meta.inode(ino)
        self._data.truncate(ino, inode.size, size, spare)
        self._lay_over(ino, bases)
        return inode

    async def _bases(self, ino: int, offset: int, end: int) -> dict[int, bytes]:
        """Return the committed content, by chunk, of what is changed in part and cold. It holds until the next await.

        `offset == end`: of a truncation.
        """
        blocks: dict[int, bytes] = {}
        while True:
            inode = self._committer.meta.inode(ino)
            cold = self._reader.cold_below(inode, offset, end)
            missing = [number for number in cold.values() if number not in blocks]
            if not missing:
                return {chunk: blocks[number] for chunk, number in cold.items()}
            blocks |= await self._reader.blocks(inode, offset, missing)
            await self._committer.throttle(sum(map(len, blocks.values())))

    def _lay_over(self, ino: int, bases: dict[int, bytes]) -> None:
        for chunk, base in bases.items():
            self._data.lay_over(ino, chunk, base)
