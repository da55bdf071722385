"""Blocks of the reserve that go over to the data file, where the pages of the next commit will be.

What is cut off the reserve is anybody's for a moment. Between that and LMDB's writes a commit is encoded pages away,
and who fills the disk from outside takes all of it. So the places that LMDB will write to are allocated one step at a
time: whoever is quick takes one step's worth now and then, which the reserve can bear.

Which places those are is LMDB's affair, but not a secret (see `freepages`): free pages of the oldest records, lowest
first; for values of several pages the lowest run that is long enough; then pages behind the last one. A guess that was
wrong costs a failed commit, which changes nothing, and the next one claims every free page that it can.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from nnfs.store import freepages
from nnfs.store.freepages import FreeDb, runs
from nnfs.store.reserve import NO_ROOM, Reserve, write_zeros

STEP = 256 << 10  # bytes that are nobody's for a moment

Run = tuple[int, int]  # first page, number of pages


class Cost(NamedTuple):
    """Bytes that a commit may write at most, all of its own file."""

    tree: int  # all tree pages of all tables there are: a commit cannot copy more
    overhead: int  # the list of free pages
    single: int = 0  # of pages by themselves
    joined: int = 0  # of values that have pages of their own
    longest: int = 0  # of one of them

    @property
    def total(self) -> int:
        return self.single + self.joined + self.overhead


def places(free_db: FreeDb, oldest: int | None, cost: Cost) -> Iterator[Run]:
    """Yield where LMDB will write, most likely."""
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
    """Pages behind the last one; a few at least, since a guess may be wrong by some."""
    return free_db.meta.last_page + 1, pages + 16


class Claims:
    """Places in the data file that were allocated and are not known to be written."""

    def __init__(self) -> None:
        self._runs: list[Run] = []

    def __bool__(self) -> bool:
        return bool(self._runs)

    def claim(self, fd: int, page_size: int, wanted: Iterator[Run], reserve: Reserve) -> bool:
        """Allocate places, with what the reserve has if need be; tell whether there was enough for all."""
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
        """Punch claimed places that are still free, up to `budget` bytes; return how many bytes those were.

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
    """Runs in order, without overlaps and gaps of nothing."""
    merged: list[Run] = []
    for start, length in sorted(given):
        if merged and start <= sum(merged[-1]):
            first, before = merged[-1]
            merged[-1] = first, max(before, start + length - first)
        else:
            merged.append((start, length))
    return merged


def _common(first: list[Run], second: list[Run]) -> Iterator[Run]:
    """What lies in both of two lists of merged runs."""
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
