"""A mount namespace of the tests' own: nobody else sees, holds or moves what they mount, and it goes with them.

A process elsewhere that clones the machine's mount namespace (a container, a service of systemd, `unshare -m`) holds
copies of all mounts that are there: a daemon whose mount has such a copy does not end with umount(2). For the same
reason the tests let go of what they find mounted by nnfs or by other tests.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

CLONE_NEWNS = 0x20000
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
MNT_DETACH = 2
PREFIX = "nnfs-test-"  # of all directories in which tests mount
libc = ctypes.CDLL(None, use_errno=True)
left: str | None = None  # the namespace that `enter` has left


def _checked(code: int) -> None:
    if code != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mounts() -> list[tuple[Path, str]]:
    """Mount point and type of each mount that this process can reach, in the order of mounting."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1]:  # names keep their \r
        left, right = line.split(b" - ", 1)
        point = re.sub(rb"\\(\d{3})", lambda m: bytes([int(m[1], 8)]), left.split(b" ")[4])
        found.append((Path(os.fsdecode(point)), os.fsdecode(right.split(b" ")[0])))
    return found


def not_ours(kept: Path | None) -> list[Path]:
    """Mounts of nnfs and of other tests, innermost first, except those on the way to *kept*."""
    foreign = [
        point
        for point, kind in mounts()
        if (kind.startswith("fuse.nnfs") or any(part.startswith(PREFIX) for part in point.parts))
        and not (kept is not None and kept.is_relative_to(point))
    ]
    return foreign[::-1]


def enter(kept: Path | None = None) -> bool:
    """Move this thread, and all threads and children that it will start, into a private mount namespace.

    False without the right to do so. Threads that run already stay where they are: those that numpy's BLAS starts when
    it is imported, which open no files. *kept*: a directory whose mount the tests need, whatever it is.
    """
    if os.geteuid() != 0:
        return False
    global left  # noqa: PLW0603 - of the process, as the namespace is
    left = os.readlink("/proc/self/ns/mnt")
    _checked(libc.unshare(CLONE_NEWNS))
    _checked(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    for point in not_ours(kept):
        libc.umount2(os.fsencode(point), MNT_DETACH)
    return True
