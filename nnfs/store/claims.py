"""Claims: room of the reserve that is allocated in the data file where the pages of the next commit will be.

Room that is cut off the reserve can be taken by any program for a moment. If LMDB's writes came later, a program
that fills the disk would take all of it. So the places that LMDB will write to are allocated before, one step at a
time: another program gets the size of one step now and then, which the reserve can bear.

LMDB chooses the places by a rule that is known (see `freepages`): free pages of the oldest records, lowest
first; for values of several pages the lowest run that is long enough; then pages behind the last one. A wrong guess
costs a failed commit, which changes nothing, and the next one claims every free page that it can.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from nnfs.store import freepages
from nnfs.store.freepages import FreeDb, runs
from nnfs.store.reserve import NO_ROOM, Reserve, write_zeros

STEP = 256 << 10  # bytes of one step, which any program could take for a moment

Run = tuple[int, int]  # first page, number of pages


class Cost(NamedTuple):
    """The most bytes that a commit may write to the data file."""

    tree: int  # all tree pages of all tables there are: a commit cannot copy more
    overhead: int  # the list of free pages
    single: int = 0  # of pages by themselves
    joined: int = 0  # of values that have pages of their own
    longest: int = 0  # of one of them

    @property
    def total(self) -> int:
        return self.single + self.joined + self.overhead


def places(free_db: FreeDb, oldest: int | None, cost: Cost) -> Iterator[Run]:
    """Yield the places where LMDB will most likely write."""
    size = free_db.meta.page_size
    singles, wide, longest = cost.single // size, cost.joined // size, max(1, cost.longest // size)
    for record in freepages.reusable(free_db, oldest):
        if singles <= 0 and wide <= 0:
            return
        for start, length in runs(free_db.pages(record)):
            if length >= longest and wide > 0:
                yield start, min(length, -(-wide // longest) * longest)
                wide -= length // longest * longest
            elif singles > 0:
                yield start, min(length, singles)
                singles -= length
    yield behind(free_db, max(0, singles) + max(0, wide) + cost.overhead // size)


def all_places(free_db: FreeDb, oldest: int | None, most: int, cost: Cost) -> Iterator[Run]:
    """Yield every place where LMDB might write, up to `most` bytes of them."""
    left = most // free_db.meta.page_size
    for start, length in _reusable(free_db, oldest):
        if left > 0:
            yield start, min(length, left)
        left -= length
    yield behind(free_db, cost.total // free_db.meta.page_size)


def behind(free_db: FreeDb, pages: int) -> Run:
    """Return the places behind the last page; a few pages at least, since a guess may be wrong by some."""
    return free_db.meta.last_page + 1, pages + 16


class Claims:
    """The places in the data file that were allocated and are not known to be written."""

    def __init__(self) -> None:
        self._runs: list[Run] = []

    def __bool__(self) -> bool:
        return bool(self._runs)

    def claim(self, fd: int, page_size: int, wanted: Iterator[Run], reserve: Reserve) -> bool:
        """Allocate places, with the room of the reserve if need be. Return whether there was enough for all."""
        for start, length in wanted:
            self._runs.append((start, length))
            offset, end = start * page_size, (start + length) * page_size
            while offset < end:
                size = min(STEP, end - offset)
                try:
                    freepages.allocate(fd, offset, size)
                    offset += size
                except OSError as error:
                    if error.errno not in NO_ROOM or not reserve.spend(STEP):
                        return False
                    if reserve.on_btrfs:
                        reserve.free_at_once()  # a quota counts what was cut off until the transaction ends
                    offset += write_zeros(fd, offset, size)
        return True

    def give_up(self, env: Any, fd: int, budget: int) -> int:
        """Punch claimed places that are still free, up to `budget` bytes. Return how many bytes those were.

        As in `freepages.give_back`: no write txn may be open.
        """
        free_db = FreeDb(fd)
        free = _merged([*_reusable(free_db, freepages.oldest_reader(env)), (free_db.meta.last_page + 1, 1 << 40)])
        left, given = [], 0
        for start, length in _common(_merged(self._runs), free):
            pages = min(length, max(0, budget - given) // free_db.meta.page_size)
            if pages:
                freepages.punch(fd, start * free_db.meta.page_size, pages * free_db.meta.page_size)
                given += pages * free_db.meta.page_size
            if pages < length:
                left.append((start + pages, length - pages))
        self._runs = left
        return given


def _reusable(free_db: FreeDb, oldest: int | None) -> Iterator[Run]:
    for record in freepages.reusable(free_db, oldest):
        yield from runs(free_db.pages(record))


def _merged(given: list[Run]) -> list[Run]:
    """Return runs in order, with touching and overlapping ones merged."""
    merged: list[Run] = []
    for start, length in sorted(given):
        if merged and start <= sum(merged[-1]):
            first, before = merged[-1]
            merged[-1] = first, max(before, start + length - first)
        else:
            merged.append((start, length))
    return merged


def _common(first: list[Run], second: list[Run]) -> Iterator[Run]:
    """Return the runs that lie in both of two lists of merged runs."""
    i = j = 0
    while i < len(first) and j < len(second):
        start = max(first[i][0], second[j][0])
        end = min(sum(first[i]), sum(second[j]))
        if start < end:
            yield start, end - start
        if sum(first[i]) < sum(second[j]):
            i += 1
        else:
            j += 1


def open_data(path: os.PathLike[str]) -> int:
    """Open a data file for claiming and punching."""
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)
