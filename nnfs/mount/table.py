"""The kernel's table of mounts."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

FSTYPE = "fuse.nnfs"
LINKS = 40  # symbolic links on the way, as the kernel has it


@dataclass(frozen=True)
class MountInfo:
    """One line of /proc/self/mountinfo."""

    device: str
    mountpoint: str
    options: str
    fstype: str
    source: str
    super_options: str
    root: str = "/"  # what of the filesystem is mounted: another directory of it where that is a bind mount


def mounts(pid: str = "self") -> list[MountInfo]:
    """Return all mounts in the mount namespace of this process or another one, oldest first. Raises OSError."""
    found = []
    for line in Path(f"/proc/{pid}/mountinfo").read_bytes().split(b"\n")[:-1]:  # names keep their \r
        head, _, tail = os.fsdecode(line).partition(" - ")
        words = [re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), w) for w in head.split(" ") + tail.split(" ")]
        first = len(head.split(" "))
        fstype, source, super_options = words[first : first + 3]
        found.append(MountInfo(words[2], words[4], words[5], fstype, source, super_options, words[3]))
    return found


def resolve(path: str) -> str:
    """Return the absolute path without symbolic links, as realpath(3), but never touch a mount of nnfs: it may hang.

    A path on such a mount keeps its name from there on. Raises OSError for a loop of links, and, as the kernel
    does, for an empty path: a variable of a shell that was never set must not be the working directory.
    """
    if not path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    points = {mount.mountpoint for mount in mounts() if mount.fstype == FSTYPE}
    done, left, links = "", path.split("/")[::-1], 0
    if not path.startswith("/"):
        left += os.getcwd().split("/")[::-1]
    while left:
        word = left.pop()
        if word in ("", "."):
            continue
        if word == "..":
            done = os.path.dirname(done)
            done = "" if done == "/" else done
            continue
        done += "/" + word
        if any(is_beneath(done, point) for point in points):
            continue
        try:
            target = os.readlink(done)
        except OSError:
            continue  # no link, or nothing there
        links += 1
        if links > LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        left += target.split("/")[::-1]
        done = "" if target.startswith("/") else os.path.dirname(done).rstrip("/")
    return done or "/"


def is_beneath(path: str, directory: str) -> bool:
    """Return whether a path is a directory or lies in it, both without symbolic links."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")
