"""Read-ahead: blocks are fetched before anybody asks, since workers decode many in little more time than one.

The next chunks of a file that is read from its beginning on are fetched, and where files are read in the order in which
their directories are listed, the next files (`listings.py`). For small files in any other order, those stored nearby
are: numbers are given to blocks in the order in which files are stored, so the files of a directory lie together.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import stat
from collections.abc import Callable

from nnfs.blockio.fetch import Fetcher
from nnfs.blockio.interfaces import Files
from nnfs.blockio.listings import Listings, Walk
from nnfs.codec import FIRST_COLD
from nnfs.errors import NnfsError, StoreDamaged
from nnfs.store.blocks import load_block
from nnfs.store.env import Store
from nnfs.store.schema import Block, Inode
from nnfs.store.txn import Snapshot

log = logging.getLogger(__name__)

TOGETHER = 1024  # block numbers: reads that lie no farther apart belong to one reader of a tree
NEAR = 64  # block numbers: blocks that are fetched around another lie no farther off
FEWEST, MOST = 8, 64  # blocks fetched at a time: twice as many when they were wanted, half as many when not
CHUNKS_AHEAD = 32  # of one file, at most: what two threads of the network step together
CACHE_SHARE = 4  # of the cache of decoded blocks, what is fetched ahead may fill one part in so many
ENTRIES_AT_ONCE = 64  # files and directories that are looked up at a time
COLD_FILES = 256  # files read since the last cold one, after which no file is looked up
AROUND_BYTES = 512 << 10  # plain bytes of small files that are fetched around others at a time
FILES = 256  # whose readers are remembered


class ReadAhead:
    """Fetches blocks that readers will ask for next, at most `most` chunks of a file. Raises nothing."""

    def __init__(self, store: Store, files: Files, fetcher: Fetcher, most: int = CHUNKS_AHEAD) -> None:
        self._store, self._files, self._fetcher = store, files, fetcher
        self._chunk_size = store.superblock.chunk_size
        self._most_bytes = fetcher.cache.limit // CACHE_SHARE
        self._sequences, self._around = Sequences(min(most, max(2, self._most_bytes // self._chunk_size))), Around()
        self.listings = Listings(files)
        self._looks = 0  # files whose followers will be looked up: where all is hot, that is not worth its time

    def after_read(self, inode: Inode, offset: int, end: int) -> None:
        """Fetch the next chunks of a file of which [offset, end) was read, and the files that will be read next."""
        self._try(self._fetch_next, inode, offset, end)
        if offset == 0:
            self._try(self._fetch_following, inode.ino)

    def after_look_up(self, number: int) -> None:
        """Fetch more around a block that a reader asks for, if it was fetched around another one."""
        if number in self._around:
            self._try(self._fetch_around, number)

    def after_cold_read(self, number: int, block: Block) -> None:
        """Fetch blocks around one that had to be decoded for a reader, if it is all of a small file."""
        self._looks = COLD_FILES
        if block.plain < self._chunk_size:
            self._try(self._fetch_around, number)

    def _fetch_next(self, inode: Inode, offset: int, end: int) -> None:
        first, last = offset // self._chunk_size, (end - 1) // self._chunk_size
        ahead = self._sequences.read(inode.ino, offset, end, last + 1 - first)
        until = min(last + ahead, (inode.size - 1) // self._chunk_size)
        if until > last:
            numbers = self._files.block_numbers(inode, last + 1, until)
            self._fetcher.begin([number for number in numbers if number and not self._fetcher.is_here(number)])

    def _fetch_following(self, ino: int) -> None:
        found = self.listings.read(ino)
        self._looks -= 1
        if found is None or self._looks < 0:
            return
        walk, most = found[0], min(found[1], self._most_bytes)
        if walk.ahead > most // 2:
            return
        numbers: list[int] = []
        with self._store.read() as snapshot:
            for inode in itertools.islice(walk.coming, ENTRIES_AT_ONCE):
                if stat.S_ISREG(inode.mode):
                    with contextlib.suppress(NnfsError):  # its map is damaged
                        numbers += self._cold_ones(snapshot, inode, walk, most - walk.ahead)
                if walk.ahead >= most:
                    break
        if numbers:
            self._looks = COLD_FILES
            self._fetcher.begin(numbers)

    def _cold_ones(self, snapshot: Snapshot, inode: Inode, walk: Walk, room: int) -> list[int]:
        """Return the cold blocks of a file's beginning that need to be fetched, so many plain bytes at most."""
        size = min(inode.size, -(-room // self._chunk_size) * self._chunk_size)
        walk.fetched(inode.ino, size)
        if not inode.count or not size:
            return []
        numbers = self._files.block_numbers(inode, 0, (size - 1) // self._chunk_size)
        return [number for number in numbers if number and self._is_cold(snapshot, number)]

    def _is_cold(self, snapshot: Snapshot, number: int) -> bool:
        """Return whether a block is cold, and not fetched yet."""
        if self._fetcher.is_here(number):
            return False
        block = load_block(snapshot, number)
        return block is not None and block.codec >= FIRST_COLD

    def _fetch_around(self, number: int) -> None:
        after, before, count = self._around.read(number)
        if self._fetcher.cache.limit < 2 * AROUND_BYTES:
            return
        found: list[int] = []
        room = AROUND_BYTES
        with self._store.read() as snapshot:
            for near in itertools.chain(after, before):
                if len(found) >= count or room <= 0:
                    break
                if not self._fetcher.is_here(near):
                    block = load_block(snapshot, near)
                    if block is not None and block.codec >= FIRST_COLD and block.plain < self._chunk_size:
                        found.append(near)
                        room -= block.plain
        self._around.fetched(found)
        self._fetcher.begin(found)

    @staticmethod
    def _try(fetch: Callable[..., None], *arguments: object) -> None:
        """Fetch blocks, and ignore errors: a reader that asks for the block later gets them."""
        try:
            fetch(*arguments)
        except StoreDamaged:
            pass
        except Exception:
            log.exception("nothing is read ahead")


class Sequences:
    """Decides how many chunks to fetch ahead in files that are read one request after the other."""

    def __init__(self, most: int) -> None:
        self._most = most  # chunks ahead
        self._next: dict[int, tuple[int, int]] = {}  # ino: offset, chunks ahead

    def read(self, ino: int, offset: int, end: int, chunks: int) -> int:
        """Note a read of [offset, end), `chunks` chunks. Return how many chunks to have ready behind them.

        A reader that goes on where it stopped gets twice as many as the last time, and no fewer than it asks for.
        """
        expected, ahead = self._next.pop(ino, (0, 0))
        if offset > expected or end <= expected:
            if offset:
                return 0
            ahead = 0
        ahead = min(self._most, max(2, 2 * ahead, chunks))
        self._next[ino] = (end, ahead)
        if len(self._next) > FILES:
            del self._next[next(iter(self._next))]
        return ahead


class Around:
    """Decides which blocks to fetch with the block of a small cold file that is read."""

    def __init__(self) -> None:
        self._last = -TOGETHER  # block of the small cold file that was read last
        self._count = FEWEST
        self._unread: set[int] = set()  # of those fetched around others

    def __contains__(self, number: int) -> bool:
        """Return whether a block was fetched around others, and has not been read since."""
        return number in self._unread

    def fetched(self, numbers: list[int]) -> None:
        self._unread.update(numbers)

    def read(self, number: int) -> tuple[range, range, int]:
        """Note a read of a small cold file. Return numbers after it, numbers before it, and how many of them to fetch.

        The last number is 0 for the first read in a place, and while half of the blocks that were fetched last are
        unread.
        """
        last, self._last = self._last, number
        hit = number in self._unread
        self._unread.discard(number)
        if not 0 < abs(number - last) <= TOGETHER:
            if number != last:
                self._count = FEWEST
                self._unread.clear()
            return range(0), range(0), 0
        if hit and len(self._unread) > self._count // 2:
            return range(0), range(0), 0
        self._count = min(MOST, 2 * self._count) if hit else max(FEWEST, self._count // 2)
        if len(self._unread) > TOGETHER:
            self._unread = {unread for unread in self._unread if abs(unread - number) <= TOGETHER}
        return range(number + 1, number + 1 + NEAR), range(number - 1, max(0, number - 1 - NEAR), -1), self._count
