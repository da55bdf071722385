"""What to fetch with a small cold file: those stored near it, when somebody reads a tree.

Numbers are given to blocks in the order in which files are stored, so the files of a directory lie together, in
whatever order they are read. A worker decodes dozens of small chunks in little more time than one.
"""

from __future__ import annotations

TOGETHER = 1024  # block numbers: reads that lie no farther apart belong to one reader of a tree
NEAR = 64  # block numbers: what is fetched lies no farther off
FEWEST, MOST = 8, 64  # blocks fetched at a time: twice as many each time


class Around:
    """Decides which blocks are worth fetching. Belongs to the loop's thread."""

    def __init__(self) -> None:
        self._last = -TOGETHER  # block of the small cold file that was read last
        self._count = FEWEST
        self._unread: set[int] = set()  # of those fetched around others

    def __contains__(self, number: int) -> bool:
        """Whether a block was fetched around others, and has not been read since."""
        return number in self._unread

    def fetched(self, numbers: list[int]) -> None:
        self._unread.update(numbers)

    def read(self, number: int) -> tuple[range, range, int]:
        """Note that a small cold file is read: (numbers after it, numbers before it, how many of them to fetch).

        None for the first one of a place, nor as long as half of what was fetched last is unread.
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
        count, self._count = self._count, min(MOST, 2 * self._count)
        return range(number + 1, number + 1 + NEAR), range(number - 1, max(0, number - 1 - NEAR), -1), count
