"""Finding the daemon of a mount by the mount itself: the store's directory may be deleted, moved or read-only.

Another store, with a daemon of its own, may now lie where the store of a mount was. So a command that was given a
path on a mount asks the daemon of that mount, and one that was given a directory asks the daemon of that directory.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import NamedTuple

from nnfs.mount import rendezvous


class Way(NamedTuple):
    """The way to the daemon of a mount; `is_first`: it is tried before the socket in the store's directory."""

    address: bytes
    owner: int | None
    is_first: bool


LOOK_S = 5.0  # for a daemon's socket to take a connection
_WAYS: dict[Path, Way] = {}  # by the store that a command has found: a command deals with one mount at a time


def remember(store: Path, device: str, source: str, super_options: str, *, is_first: bool) -> None:
    """Note for `connect` the mount by which a store was found."""
    _WAYS[store] = Way(rendezvous.address(device, source), rendezvous.owner(super_options), is_first)


def forget(store: Path) -> None:
    """Note that a store was named itself, not by a mount."""
    _WAYS.pop(store, None)


def is_first(store: Path) -> bool:
    """Return whether the socket of the mount is tried before the socket in the store's directory."""
    way = _WAYS.get(store)
    return way is not None and way.is_first


def dial(sock: socket.socket, address: bytes | str, seconds: float) -> None:
    """Connect to a daemon. Raises TimeoutError when its queue has no room within the time, and OSError.

    The queue of a stopped daemon fills up with the requests of others. Python's own timeout makes connect(2)
    fail at once then (EAGAIN), as if there were no daemon.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", *divmod(int(seconds * 1e6), 1_000_000)))
    try:
        sock.connect(address)
    except BlockingIOError as error:
        raise TimeoutError from error
    sock.settimeout(seconds)


def connect(sock: socket.socket, store: Path, seconds: float) -> bool:
    """Connect to the daemon of the mount by which a store was found. Return False when that is not possible.

    A daemon in another network namespace, or of an earlier version, is not found. A peer that runs neither as the
    user who mounted nor as root has taken the name of the socket, and is refused.
    """
    way = _WAYS.get(store)
    if way is None:
        return False
    try:
        dial(sock, way.address, seconds)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    return rendezvous.peer(sock)[1] in (0, os.geteuid() if way.owner is None else way.owner)


def daemon_of(device: str, source: str) -> int | None:
    """Return the process that serves a mount, busy or not, None if there is none or its socket cannot be found."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        try:
            dial(sock, rendezvous.address(device, source), LOOK_S)
        except OSError:
            return None
        return rendezvous.peer(sock)[0]
