"""Old content that chunks written in part wait for: fetched beside the commits, so that none of them waits.

A commit merges an overlay whose base is at hand. One whose base is not (it is cold, its worker is slow or gone) stays
in memory, and the fetch that is begun here ends in the reader's cache and wakes the committer up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from nnfs.blockio.reader import Reader
from nnfs.errors import FsError, NnfsError
from nnfs.store.schema import Inode

log = logging.getLogger(__name__)

AT_ONCE = 16  # chunks of one file


class Bases:
    """Fetches under way, by file. `arrived` is called when one has ended well."""

    def __init__(self, reader: Reader, inode: Callable[[int], Inode], arrived: Callable[[], None]) -> None:
        self._reader, self._inode, self._arrived = reader, inode, arrived
        self._nursery: trio.Nursery | None = None
        self._errors: dict[int, NnfsError] = {}  # of the last fetch for a file
        self._ended: dict[int, trio.Event] = {}  # by inode, while its chunks are being fetched

    def start(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def __contains__(self, ino: int) -> bool:
        return ino in self._ended

    async def wait(self, ino: int) -> None:
        """Return when the fetch for a file has ended. Raises why it failed, if it did."""
        if ino in self._ended:
            await self._ended[ino].wait()
        error = self._errors.pop(ino, None)
        if error is not None:
            raise error

    async def wait_for_all(self) -> None:
        """Return when the fetches that are under way have ended."""
        for event in list(self._ended.values()):
            await event.wait()

    def fetch(self, wanted: dict[int, list[int]]) -> None:
        """Begin to fetch chunks by file, where that is not done already."""
        for ino, numbers in wanted.items():
            if ino not in self._ended and self._nursery is not None:
                log.warning("inode %d: %d chunks written in part wait for their old content", ino, len(numbers))
                self._ended[ino] = trio.Event()
                self._errors.pop(ino, None)
                self._nursery.start_soon(self._fetch, ino, numbers)

    async def _fetch(self, ino: int, numbers: list[int]) -> None:
        limit = trio.CapacityLimiter(AT_ONCE)
        errors: list[NnfsError] = []

        async def one(number: int) -> None:
            async with limit:
                try:
                    with self._reader.patience():
                        await self._reader.stored(self._inode(ino), number, number)
                except FsError:
                    pass  # the inode is gone, and with it the need
                except NnfsError as error:
                    errors.append(error)
                except Exception as bug:
                    log.exception("inode %d, chunk %d: a bug", ino, number)
                    errors.append(NnfsError(f"a bug: {bug!r}"))

        try:
            async with trio.open_nursery() as nursery:
                for number in numbers:
                    nursery.start_soon(one, number)
        finally:
            if errors:
                log.error("inode %d: old content of chunks: %s; what was written stays in memory", ino, errors[0])
                self._errors[ino] = errors[0]
            self._ended.pop(ino).set()
        if not errors:
            self._arrived()
