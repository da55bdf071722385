"""The holders of a filesystem that is unmounted here: mount namespaces that show it, processes that use it.

Nothing here waits for a filesystem: descriptors and directories of processes are asked for their device only
(statx(2) with AT_STATX_DONT_SYNC), which the kernel knows.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from dataclasses import dataclass

from nnfs.mount.table import mounts

AT_FDCWD, AT_NO_AUTOMOUNT, AT_STATX_DONT_SYNC = -100, 0x800, 0x4000
_DEVICE = struct.Struct("@136xII")  # of struct statx: stx_dev_major, stx_dev_minor
_libc = ctypes.CDLL(None, use_errno=True)
SHOWN = 5  # processes in a message


@dataclass(frozen=True)
class Holder:
    """A process that holds the filesystem: its mount namespace shows it, or the process has something open on it."""

    pid: int
    command: str
    path: str  # below /proc, through which the filesystem can be reached

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid})"


@dataclass(frozen=True)
class Held:
    """The holders of a filesystem, as far as this process may see them."""

    namespaces: tuple[Holder, ...] = ()
    users: tuple[Holder, ...] = ()

    def __str__(self) -> str:
        parts = []
        if self.users:
            parts.append(f"used by {_listed(self.users)}")
        if self.namespaces:
            parts.append(f"mounted still in the mount namespace of {_listed(self.namespaces)}")
        return ", ".join(parts) or "held by something that cannot be seen from here"


def _listed(holders: tuple[Holder, ...]) -> str:
    more = f" and {len(holders) - SHOWN} more" if len(holders) > SHOWN else ""
    return ", ".join(map(str, holders[:SHOWN])) + more


def look(device: str) -> Held:
    """Find the holders of the filesystem of a device, "0:52" say, besides this process and its mount namespace."""
    namespaces, users, seen = [], [], {_namespace("self")}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        if int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is none of our business
            namespace = _namespace(name)
            if namespace not in seen:
                seen.add(namespace)
                if found := [mount for mount in mounts(name) if mount.device == device]:
                    namespaces.append(_holder(name, f"root{found[0].mountpoint}"))
            if (used := _used(name, device)) is not None:
                users.append(_holder(name, used))
    return Held(tuple(namespaces), tuple(users))


def _holder(pid: str, path: str) -> Holder:
    with open(f"/proc/{pid}/comm", errors="backslashreplace") as file:
        return Holder(int(pid), file.read().strip(), f"/proc/{pid}/{path}")


def _namespace(pid: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/mnt")


def _used(pid: str, device: str) -> str | None:
    """Return the first link below /proc/PID that leads to the filesystem, None when the process does not use it."""
    links = ["cwd", "root", *(f"fd/{number}" for number in os.listdir(f"/proc/{pid}/fd"))]
    for link in links:
        if _device(f"/proc/{pid}/{link}") == device:
            return link
    major, minor = (int(part) for part in device.split(":"))
    with open(f"/proc/{pid}/maps", errors="backslashreplace") as maps:
        mark = f" {major:02x}:{minor:02x} "
        return "exe" if any(mark in line for line in maps) else None


def _device(path: str) -> str | None:
    buffer = ctypes.create_string_buffer(256)
    flags = AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC
    if _libc.statx(AT_FDCWD, os.fsencode(path), flags, 1, buffer) != 0:
        return None
    major, minor = _DEVICE.unpack_from(buffer)
    return f"{major}:{minor}"


def sync(device: str, held: Held) -> None:
    """Have the kernel write back dirty pages, through a process that reaches the mount. Blocks; best effort."""
    for holder in held.namespaces + held.users:
        with contextlib.suppress(OSError):
            descriptor = os.open(holder.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if _device(f"/proc/self/fd/{descriptor}") == device and _libc.syncfs(descriptor) == 0:
                    return
            finally:
                os.close(descriptor)
