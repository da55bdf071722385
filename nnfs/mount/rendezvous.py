"""The socket by which a daemon is found from its mount: its store may be deleted, moved or read-only.

It is an abstract socket. Its name follows from the mount's line in /proc/self/mountinfo, so nothing on the mount need
be touched to find it. Everybody may connect to such a socket, and bind its name before the daemon does: so the daemon
checks the user who asks, and the command line the user who answers.
"""

from __future__ import annotations

import os
import socket
import struct
from hashlib import blake2b
from typing import Protocol

CREDENTIALS = struct.Struct("iII")  # pid, uid, gid


def address(device: str, source: str) -> bytes:
    """Return the socket address of the daemon of a mount, by its device number ("0:57") and source in mountinfo.

    Device numbers are used again as soon as a mount is gone, while its daemon may still be writing.
    """
    mark = blake2b(os.fsencode(source), digest_size=8).hexdigest()
    return f"\0nnfs/{device}/{mark}".encode()


class Socket(Protocol):
    """A socket of Python or of trio."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def peer(sock: Socket) -> tuple[int, int]:
    """Return process and user at the other end, as the kernel knows them."""
    pid, uid, _ = CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return pid, uid


def owner(super_options: str) -> int | None:
    """Return the user who mounted, from the options of a FUSE mount in mountinfo."""
    for word in super_options.split(","):
        name, _, value = word.partition("=")
        if name == "user_id" and value.isdecimal():
            return int(value)
    return None
