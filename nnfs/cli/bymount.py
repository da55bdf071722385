"""Finding the daemon of a mount by the mount itself: the store's directory may be deleted, moved or read-only.

Another store, with a daemon of its own, may lie by now where the store of a mount was. So a command that was given a
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
    """The way to the daemon of a mount; `is_first`: before the socket in the store's directory is tried."""

    address: bytes
    owner: int | None
    is_first: bool


LOOK_S = 5.0  # for a daemon's socket to take a connection
_WAYS: dict[Path, Way] = {}  # by the store that a command has found: a command deals with one mount at a time


def remember(store: Path, device: str, source: str, super_options: str, *, is_first: bool) -> None:
    """Note for `connect` by which mount a store was found."""
    _WAYS[store] = Way(rendezvous.address(device, source), rendezvous.owner(super_options), is_first)


def forget(store: Path) -> None:
    """Note that the store itself was named, not a mount of it."""
    _WAYS.pop(store, None)


def is_first(store: Path) -> bool:
    """Return whether a store was found by its mount."""
    way = _WAYS.get(store)
    return way is not None and way.is_first


def dial(sock: socket.socket, address: bytes | str, seconds: float) -> None:
    """Connect to a daemon; raises TimeoutError when its queue has no room so long, and OSError.

    The queue of a daemon that is stopped fills up with the questions of others. Python's own timeout makes connect(2)
    fail at once then (EAGAIN), which looks as if nobody were there.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", *divmod(int(seconds * 1e6), 1_000_000)))
    try:
        sock.connect(address)
    except BlockingIOError as error:
        raise TimeoutError from error
    sock.settimeout(seconds)


def connect(sock: socket.socket, store: Path, seconds: float) -> bool:
    """Connect to the daemon of the mount by which a store was found; return False when that cannot be done.

    A daemon in another network namespace, or of an earlier version, is not found. A peer that belongs neither to the
    user who mounted nor to root has taken the name of another.
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
    """Return the process that serves a mount, busy or not; None if there is none, or it cannot be found that way."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        try:
            dial(sock, rendezvous.address(device, source), LOOK_S)
        except OSError:
            return None
        return rendezvous.peer(sock)[0]
