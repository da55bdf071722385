"""The command line's end of a mount's control socket."""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

from nnfs.cli import bymount
from nnfs.errors import DaemonError

SOCKET_NAME = "control"
TIMEOUT_S = 60.0


def _connect(store: Path, timeout: float | None) -> socket.socket:
    """Connect by the mount and by the store's directory, in the order of how the store was found."""
    ways = (_by_mount, _by_directory) if bymount.is_first(store) else (_by_directory, _by_mount)
    try:
        return ways[0](store, timeout)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        try:
            return ways[1](store, timeout)
        except NotADirectoryError as error:
            raise FileNotFoundError(error.errno, error.strerror) from error


def _by_mount(store: Path, timeout: float | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout)
        if not bymount.connect(sock, store):
            raise ConnectionRefusedError
    except BaseException:
        sock.close()
        raise
    return sock


def _by_directory(store: Path, timeout: float | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(timeout)
        # Through a descriptor of the directory: a socket address holds no more than 107 bytes of path.
        directory = os.open(store, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
        finally:
            os.close(directory)
    except BaseException as error:
        sock.close()
        if isinstance(error, PermissionError):
            raise DaemonError(f"only the owner of the store {store} may ask its daemon: use sudo") from error
        raise
    return sock


def daemon_pid(store: Path) -> int | None:
    """The process that holds the control socket, as the kernel knows it, busy or not. None: nobody."""
    try:
        with _connect(store, TIMEOUT_S) as sock:
            pid: int = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    except (FileNotFoundError, ConnectionRefusedError, TimeoutError):
        return None
    return pid


def ask(store: Path, command: str, *, timeout: float | None = TIMEOUT_S, **args: Any) -> dict[str, Any]:
    """Send one command and return the answer.

    Raises `DaemonError`, with another error's exit code when the daemon answered one.
    """
    try:
        with _connect(store, timeout) as sock, sock.makefile("rwb") as stream:
            stream.write(json.dumps({"command": command, **args}).encode() + b"\n")
            stream.flush()
            line = stream.readline()
    except (FileNotFoundError, ConnectionRefusedError) as error:
        why = f"it is not mounted (nnfs mount {store} MNT), or its daemon has died"
        raise DaemonError(f"no daemon answers for {store}: {why}") from error
    except TimeoutError as error:
        raise DaemonError(f"the daemon of {store} did not answer {command} within {timeout:.0f} s") from error
    except (ConnectionResetError, BrokenPipeError) as error:
        raise DaemonError(f"the daemon of {store} ended while answering {command}") from error
    try:
        answer = json.loads(line)
        if answer.pop("ok"):
            return dict(answer)
        failure = DaemonError(str(answer["error"]))
        failure.exit_code = int(answer["exit"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DaemonError(f"the daemon of {store} gave no sensible answer to {command}") from error
    raise failure
