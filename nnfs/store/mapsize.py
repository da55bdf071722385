"""The size of a store's map where address space or files are limited (`ulimit -v`, -f, a small machine)."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

from nnfs.errors import StoreError

FULL = 1 << 44  # 16 TiB, sparse: the file grows by what is written
PAGE = 4096
MAP_FULL = (
    "the store fills the address space, or the size of a file, that it may have: unmount, and mount without a limit of "
    "that (ulimit -v and -f unlimited, LimitAS= and LimitFSIZE=infinity)"
)
ROOM = 64 << 20  # bytes by which a store can grow at least, else it is not worth to open it


def candidates(data: Path, *, writes: bool = True) -> Iterator[int]:
    """Yield sizes to try, the largest first: multiples of the page, and none below the size that the file needs.

    Where the process has a limit, half of the rest is tried, and the other half is left for everything else. Where the
    machine cannot map 16 TiB (39 bits of address space, say), halves of that. Where files may not grow beyond a limit,
    no more than that is mapped to be written: LMDB then says in time that the map is full, and a commit fails for lack
    of space.
    """
    size, least = FULL, needed(data)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        size = min(size, max(0, limit - used()) // 2 // PAGE * PAGE)
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if writes and largest != resource.RLIM_INFINITY:
        size = min(size, max(largest // PAGE * PAGE, least - ROOM))
        least = min(least, size)
    while size >= least:
        yield size
        size = size // 2 // PAGE * PAGE


def needed(data: Path) -> int:
    """Return the least bytes of address space with which a store can be opened."""
    return (data.stat().st_size if data.exists() else 0) + ROOM


def used() -> int:
    """Return the bytes of address space that this process takes."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def too_little(data: Path) -> StoreError:
    """Return the error for a store that does not fit, with advice."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return StoreError(f"{data}: this machine cannot map {needed(data) >> 20} MiB of address space")
    least = used() + 2 * needed(data)
    return StoreError(
        f"the address space of this process is limited to {limit >> 20} MiB, and {data} needs {least >> 20} MiB at "
        f"least: run ulimit -v unlimited before (in a unit: LimitAS=infinity); it is address space, not memory"
    )
