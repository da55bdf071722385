"""What to fetch before anybody asks: slow codecs decode many chunks in little more time than one.

The next chunks of a file that is read from its beginning on; and, for a tree of small files, those stored nearby.
Numbers are given to blocks in the order in which files are stored, so the files of a directory lie together, in
whatever order they are read.
"""

from __future__ import annotations

TOGETHER = 1024  # block numbers: reads that lie no farther apart belong to one reader of a tree
NEAR = 64  # block numbers: what is fetched lies no farther off
FEWEST, MOST = 8, 64  # blocks fetched at a time: twice as many when they were wanted, half as many when not


FILES = 256  # whose readers are remembered


class Sequences:
    """Files that are read one request after the other, and where their readers go on."""

    def __init__(self, most: int) -> None:
        self._most = most  # chunks ahead
        self._next: dict[int, tuple[int, int]] = {}  # ino: offset, chunks ahead

    def read(self, ino: int, offset: int, end: int, chunks: int) -> int:
        """Note a read of [offset, end), `chunks` chunks. Return how many to have ready behind them.

        Twice as many as the last time for a reader that goes on where it stopped, and no fewer than it asks for.
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
    """Which blocks to fetch with a small cold file that is read."""

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
        self._count = min(MOST, 2 * self._count) if hit else max(FEWEST, self._count // 2)
        if len(self._unread) > TOGETHER:
            self._unread = {unread for unread in self._unread if abs(unread - number) <= TOGETHER}
        return range(number + 1, number + 1 + NEAR), range(number - 1, max(0, number - 1 - NEAR), -1), self._count
