"""The daemon of a mount, found by the mount itself: its store's directory may be deleted, moved or read-only.

Another store may lie by now where the one of a mount was, with a daemon of its own. So whoever came by a mount asks
that mount's daemon, and whoever named a directory asks that directory's.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import NamedTuple

from nnfs.mount import rendezvous


class Way(NamedTuple):
    """How to reach the daemon of a mount; `is_first`: before the socket in the store's directory is tried."""

    address: bytes
    owner: int | None
    is_first: bool


_WAYS: dict[Path, Way] = {}  # by the store that a command has found: a command deals with one mount at a time


def remember(store: Path, device: str, source: str, super_options: str, *, is_first: bool) -> None:
    """Note by which mount a store was found, for `connect`."""
    _WAYS[store] = Way(rendezvous.address(device, source), rendezvous.owner(super_options), is_first)


def forget(store: Path) -> None:
    """Note that a store was named itself."""
    _WAYS.pop(store, None)


def is_first(store: Path) -> bool:
    """Whether a store was found by its mount."""
    way = _WAYS.get(store)
    return way is not None and way.is_first


def connect(sock: socket.socket, store: Path) -> bool:
    """Connect to the daemon of the mount by which a store was found; False when that cannot be done.

    In another network namespace, or of an earlier version, it is not found. One that belongs neither to who mounted nor
    to root has taken the name of another.
    """
    way = _WAYS.get(store)
    if way is None:
        return False
    try:
        sock.connect(way.address)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    return rendezvous.peer(sock)[1] in (0, os.geteuid() if way.owner is None else way.owner)
