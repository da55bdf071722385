"""The command line's end of the control socket."""

from __future__ import annotations

import json
import math
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

from nnfs.cli import bymount
from nnfs.constants import SOCKET_NAME
from nnfs.errors import DaemonError

TIMEOUT_S = 60.0  # for an answer
ANSWER_S = 10.0  # for a sign of life


def _connect(store: Path) -> socket.socket:
    """Connect by the mount and by the store's directory, first by the one that led to the store."""
    ways = (_by_mount, _by_directory) if bymount.is_first(store) else (_by_directory, _by_mount)
    try:
        return ways[0](store)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        try:
            return ways[1](store)
        except NotADirectoryError as error:
            raise FileNotFoundError(error.errno, error.strerror) from error


def _by_mount(store: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if not bymount.connect(sock, store, ANSWER_S):
            raise ConnectionRefusedError
    except BaseException:
        sock.close()
        raise
    return sock


def _by_directory(store: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Through a descriptor of the directory: a socket address holds no more than 107 bytes of path.
        directory = os.open(store, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            bymount.dial(sock, f"/proc/self/fd/{directory}/{SOCKET_NAME}", ANSWER_S)
        finally:
            os.close(directory)
    except BaseException as error:
        sock.close()
        if isinstance(error, PermissionError):
            raise DaemonError(f"only who has mounted {store}, and root, may ask its daemon: use sudo") from error
        raise
    return sock


def daemon_pid(store: Path) -> int | None:
    """Return the process that holds the control socket, as the kernel knows it, busy or not, None when there is none.

    Raises `DaemonError` for a daemon whose queue is full of requests that it does not answer.
    """
    try:
        with _connect(store) as sock:
            return _peer(sock)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except TimeoutError as error:
        raise _silent(store) from error


def _peer(sock: socket.socket) -> int:
    pid: int = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return pid


def refuse_stopped(store: Path, pid: int) -> None:
    """Raise `DaemonError` when a daemon is stopped (SIGSTOP, a debugger): neither it nor its mount answers."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return  # it has ended, or lives in another pid namespace
    if state in "Tt":
        raise DaemonError(f"the daemon of {store} (pid {pid}) is stopped and does not answer: kill -CONT {pid}")


def ping(store: Path) -> bool:
    """Return whether a daemon answers, False where there is none that this user may ask.

    Raises `DaemonError` for one that lives and does not answer: access to its mount would wait for ever.
    """
    try:
        with _connect(store) as sock:
            refuse_stopped(store, _peer(sock))
            sock.sendall(b'{"command": "ping"}\n')
            return bool(sock.recv(1))  # an old one does not know the command, and says so
    except TimeoutError as error:
        raise _silent(store) from error
    except (OSError, DaemonError) as error:
        if isinstance(error, DaemonError) and not isinstance(error.__cause__, PermissionError):
            raise
        return False


def _silent(store: Path) -> DaemonError:
    return DaemonError(
        f"the daemon of {store} does not answer within {ANSWER_S:.0f} s: it is stopped (kill -CONT), or kill -QUIT has "
        f"it write to its log what it is doing"
    )


def ask(store: Path, command: str, *, timeout: float | None = TIMEOUT_S, **args: Any) -> dict[str, Any]:
    """Send one command and return the answer. With `timeout` None it waits as long as the daemon lives.

    Raises `DaemonError`, with another error's exit code when the daemon answered one.
    """
    try:
        with _connect(store) as sock:
            refuse_stopped(store, _peer(sock))
            sock.sendall(json.dumps({"command": command, **args}).encode() + b"\n")
            line = _line(sock, store, timeout)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        why = f"it is not mounted (nnfs mount {store} MNT), or its daemon has died"
        raise DaemonError(f"no daemon answers for {store}: {why}") from error
    except TimeoutError as error:
        waited = ANSWER_S if timeout is None else timeout
        raise DaemonError(f"the daemon of {store} did not answer {command} within {waited:.0f} s") from error
    except (ConnectionResetError, BrokenPipeError) as error:
        raise DaemonError(f"the daemon of {store} ended while answering {command}") from error
    try:
        answer = json.loads(line)
        if answer.pop("ok"):
            return dict(answer)
        failure = DaemonError(str(answer["error"]))
        failure.exit_code = int(answer["exit"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DaemonError(f"the daemon of {store} gave an answer to {command} that is not understood") from error
    raise failure


def _line(sock: socket.socket, store: Path, timeout: float | None) -> bytes:
    """Return one line of the daemon. While none comes, ask the daemon from time to time whether it lives."""
    data, since = b"", time.monotonic()
    while not data.endswith(b"\n"):
        left = math.inf if timeout is None else since + timeout - time.monotonic()
        sock.settimeout(max(0.001, min(ANSWER_S, left)))
        try:
            piece = sock.recv(1 << 16)
        except TimeoutError:
            if left <= ANSWER_S:
                raise
            ping(store)
            continue
        if not piece:
            break
        data += piece
    return data
