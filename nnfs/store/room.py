"""Room within the data file: free pages that commits can write to, and the rest of a limited map."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from nnfs.store.freepages import FreeDb, next_data, oldest_reader, reusable, runs


def in_place(env: lmdb.Environment, data: Path, shortest: int) -> int:
    """Return how many bytes of free pages still have their blocks, in runs of at least `shortest` pages."""
    with _free_runs(env, data, shortest) as (fd, free_db, found):
        size = free_db.meta.page_size
        return sum(length * size for start, length in found if next_data(fd, start * size) == start * size)


def map_left(env: lmdb.Environment, data: Path, shortest: int) -> int:
    """Return how many bytes of the map can still be written: free pages in such runs, and all beyond the last page."""
    with _free_runs(env, data, shortest) as (_, free_db, found):
        size = free_db.meta.page_size
        beyond = int(env.info()["map_size"]) - (free_db.meta.last_page + 1) * size
        return beyond + sum(length * size for _, length in found)


@contextmanager
def _free_runs(
    env: lmdb.Environment, data: Path, shortest: int
) -> Iterator[tuple[int, FreeDb, Iterator[tuple[int, int]]]]:
    """Open the data file: its descriptor, its list of free pages, and the runs (start, length) that are long enough."""
    fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
    try:
        free_db = FreeDb(fd)
        records = reusable(free_db, oldest_reader(env))
        found = (run for record in records for run in runs(free_db.pages(record)) if run[1] >= shortest)
        yield fd, free_db, found
    finally:
        os.close(fd)
