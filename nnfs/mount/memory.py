"""The memory that a mount and its workers may use: the limit of their control group, and options that fit below it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from nnfs.config import MIN_DIRTY, PLENTY, Options, format_size
from nnfs.mount import table
from nnfs.mount.table import MountInfo

log = logging.getLogger(__name__)

CACHE_SHARE, DIRTY_SHARE = 16, 20  # one part in so many; a commit keeps dirty data three times while it writes
NETWORK = 640 << 20  # bytes below which the network encodes nothing: its reference engine takes 360 MB
FILES = {"cgroup2": ("memory.max", "memory.high"), "cgroup": ("memory.limit_in_bytes",)}


def within(options: Options) -> Options:
    """Return options that fit the memory there is: `memory` then says how much that is. Plenty changes nothing."""
    available = options.memory or limit()
    if available >= PLENTY:
        return options
    return replace(
        options,
        memory=available,
        cache=min(options.cache, _part(available, CACHE_SHARE)),
        search_memory=min(options.search_memory, _part(available, CACHE_SHARE)),
        dirty=max(MIN_DIRTY, min(options.dirty, _part(available, DIRTY_SHARE))),
        neural=options.neural and available >= NETWORK,
    )


def _part(available: int, share: int) -> int:
    """Return one part in so many, in whole MiB: people read it."""
    return available // share >> 20 << 20


def tell(given: Options, held: Options) -> None:
    """Log what `within` has changed."""
    if held != given:
        rest = "" if held.neural == given.neural else "; the network encodes nothing"
        log.info(
            "memory is limited to %s: cache=%s, dirty=%s%s",
            format_size(held.memory), format_size(held.cache), format_size(held.dirty), rest,
        )  # fmt: skip


def limit() -> int:
    """Return the bytes that this process may use at most, by its control groups and by the machine."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        groups = Path("/proc/self/cgroup").read_text(errors="surrogateescape")
        mounts = list(table.mounts())
    except OSError:
        return machine
    return min([machine, *_limits(groups, mounts)])


def _limits(groups: str, mounts: list[MountInfo]) -> Iterator[int]:
    """Yield the limits of the groups that /proc/self/cgroup names, and of those above them (cgroups 2, and 1)."""
    for line in groups.splitlines():
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        kind = "cgroup2" if number == "0" else "cgroup"
        for mount in mounts:
            is_it = mount.fstype == kind and (kind == "cgroup2" or "memory" in mount.super_options.split(","))
            if is_it:
                yield from _limits_above(mount, path, FILES[kind])


def _limits_above(mount: MountInfo, path: str, names: tuple[str, ...]) -> Iterator[int]:
    """Yield the limits of a group, named by its path in the hierarchy, and of all above it that the mount shows."""
    with contextlib.suppress(ValueError):  # of a container that sees its own group as the root
        path = os.fspath(PurePosixPath("/", PurePosixPath(path).relative_to(mount.root)))
    here = Path(mount.mountpoint + path)
    while table.is_beneath(os.fspath(here), mount.mountpoint):
        for name in names:
            with contextlib.suppress(OSError, ValueError):  # "max", or a group that is not shown here
                yield int((here / name).read_text())
        if here == here.parent:
            return
        here = here.parent
