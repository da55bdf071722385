"""Counting: what lies below a directory is made to count for another quota, some inodes at a time.

Requests go on meanwhile. A directory is counted before what it holds, so what comes into it from then on is counted as
it comes; a directory that moves is looked at again (`Quotas.visits`). A walk that was cut short is begun anew, and
passes over what has its number already.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable

import trio

from nnfs.blockio.commit import Committer
from nnfs.errors import FsError, OutOfSpace, StoreDamaged
from nnfs.fs.filesystem import Filesystem
from nnfs.store import quotas, schema
from nnfs.store.moments import PAST
from nnfs.store.schema import Dentry, Inode

log = logging.getLogger(__name__)

SLICE = 64  # inodes: about 1 ms of the loop
PAUSE_S = 0.001  # after each, in which requests are answered
RETRY_S = 30.0  # on a full disk

Prove = Callable[[int], Awaitable[None]]  # of the names of a directory, in a thread if they are many


class Walker:
    """Changes the quota of many inodes. `wanted()` tells before each slice whether to go on."""

    def __init__(self, fs: Filesystem, committer: Committer, prove: Prove) -> None:
        self._fs, self._committer, self._prove = fs, committer, prove

    async def below(self, start: int, number: int, wanted: Callable[[], bool]) -> None:
        """Have all that lies below a directory count for a quota, but not what other quotas within it count."""
        stack = [start]
        while stack and wanted():
            ino = stack.pop()
            if ino == start or self._lies_in(ino, number):
                stack += await self._children(ino, number, wanted)
            stack += self._fs.quotas.visits
            self._fs.quotas.visits.clear()

    async def all(self, inodes: Iterable[int], old: int, number: int) -> int:
        """Have those of some inodes that count for one quota count for another. Return how many are damaged."""
        remaining, damaged = iter(inodes), 0
        while some := list(itertools.islice(remaining, SLICE)):
            await self._breathe()
            for ino in some:
                try:
                    inode = self._fs.inode(ino)
                except FsError:
                    continue  # removed since
                except StoreDamaged:
                    damaged += 1
                    continue
                if inode.quota == old:
                    self._move(inode, number)
        return damaged

    def _move(self, inode: Inode, number: int) -> None:
        if inode.quota != number:
            self._fs.quotas.move(inode, number)
            self._fs.touch(inode)

    def _live(self, ino: int) -> Inode | None:
        try:
            return self._fs.inode(ino)
        except (FsError, StoreDamaged) as error:
            log.debug("inode %d is not counted: %s", ino, error)
            return None

    def _lies_in(self, ino: int, number: int) -> bool:
        """Return whether a directory still lies in one of the quota, and let it count for that."""
        inode = self._live(ino)
        if inode is None or not inode.nlink or not inode.is_directory or self._fs.quotas.at(ino) is not None:
            return False
        parent = self._live(inode.aux)
        if parent is None or parent.quota != number:
            return False
        self._move(inode, number)
        return True

    async def _children(self, ino: int, number: int, wanted: Callable[[], bool]) -> list[int]:
        """Count what a directory holds. Return the directories in it."""
        found: list[int] = []
        after = 0
        while wanted():
            await self._breathe()
            try:
                await self._prove(ino)
                directory = self._fs.inode(ino)
                some = list(itertools.islice(self._fs.dentries(directory, after, SLICE), SLICE))
            except (FsError, StoreDamaged) as error:
                log.warning("what directory %d holds is not counted for a quota: %s", ino, error)
                break
            if not some:
                break
            for cookie, key, record in some:
                after = cookie
                found += self._counted(Dentry.unpack(key, record).ino, number)
        return found

    def _counted(self, ino: int, number: int) -> list[int]:
        """Count one inode. Return it if it is a directory whose content is to be counted, too."""
        inode, within = self._live(ino), self._fs.quotas.at(ino)
        if inode is None:
            return []
        if within is not None:
            if within.above != number:
                self._fs.quotas.change(within, above=number)
                self._fs.touch(inode)
            return []
        self._move(inode, number)
        return [ino] if inode.is_directory else []

    async def _breathe(self) -> None:
        """Let requests be answered, and wait for room in memory and on disk."""
        await trio.sleep(PAUSE_S)
        while True:
            try:
                await self._committer.admission.admit(0)
            except OutOfSpace as error:
                log.warning("quotas are not counted yet: %s", error)
                await trio.sleep(RETRY_S)
            else:
                return


def members(fs: Filesystem, number: int) -> tuple[list[int], int, int]:
    """Return the inodes that count for a quota at the last commit, and the bytes and inodes that its sums lack.

    Inodes with damaged records are among them. Call it in a thread.
    """
    found, size, mark = [], 0, number.to_bytes(2, "big")
    with fs.store.read() as snapshot:
        for key, record in snapshot.range("inode", b"", schema.KEY.pack(PAST)):
            if record[16:18] == mark:  # the upper half of its flags
                found.append(schema.KEY.unpack(key)[0])
                size += int.from_bytes(record[20:28], "big")
        quota = quotas.load(snapshot)[0].get(number)
    return found, *((0, 0) if quota is None else (size - quota.size, len(found) - quota.inodes))
