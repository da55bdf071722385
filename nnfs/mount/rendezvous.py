"""Where a mount's daemon can be asked although its store's directory has no socket: it was deleted or moved, or may
not be written to.

An abstract socket whose name follows from what /proc/self/mountinfo tells of the mount, so nothing on the mount need
be touched to find it. Everybody may connect to such a socket, and bind its name before the daemon does: so the daemon
looks who asks, and the command line looks who answers.
"""

from __future__ import annotations

import os
import socket
import struct
from hashlib import blake2b
from typing import Protocol

CREDENTIALS = struct.Struct("iII")  # pid, uid, gid


def address(device: str, source: str) -> bytes:
    """The address of the daemon of a mount, by its device number ("0:57") and its source as the kernel tells them.

    Device numbers are given out again as soon as a mount is gone, while its daemon may be writing still.
    """
    mark = blake2b(os.fsencode(source), digest_size=8).hexdigest()
    return f"\0nnfs/{device}/{mark}".encode()


class Socket(Protocol):
    """A socket of Python's, or one of trio's."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def peer(sock: Socket) -> tuple[int, int]:
    """Process and user at the other end, as the kernel knows them."""
    pid, uid, _ = CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return pid, uid


def owner(super_options: str) -> int | None:
    """The user who mounted, from the options of a FUSE mount in mountinfo."""
    for word in super_options.split(","):
        name, _, value = word.partition("=")
        if name == "user_id" and value.isdecimal():
            return int(value)
    return None
