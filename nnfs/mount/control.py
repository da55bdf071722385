r"""The control socket, by which the command line talks to the daemon of a mounted store.

A unix socket `control` in the store directory, for its owner only, and another one that is found by the mount (see
`rendezvous`). A client sends one JSON object per line,
`{"command": "df", ...}`, and gets one per line: `{"ok": true, ...}` or `{"ok": false, "error": "...", "exit": 3}`.
Lines are ASCII. In a name, a byte that is no UTF-8 is a lone surrogate, \udc80 to \udcff, as Python has it in memory:
only nnfs reads this protocol. `--json` prints valid Unicode (`nnfs.names`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from nnfs.errors import DaemonError, NnfsError, UsageError, kept
from nnfs.mount import rendezvous
from nnfs.store.reserve import NO_ROOM

MAX_REQUEST = 64 * 1024  # bytes of one line
MAX_CLIENTS = 16  # at once; further ones wait in the socket's queue
PAUSE_S = 1.0  # after a client could not be let in
FOR_OWNER = "only who has mounted the store, and root, may ask its daemon: use sudo"
IDLE_S = 30.0  # a client that sends nothing for so long is dropped, and so is one that does not take its answer

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

log = logging.getLogger(__name__)


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """Return a name for `path`, by a descriptor of its directory, that fits into a socket address (107 bytes)."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def listen(path: Path, make_room: Callable[[], None] = lambda: None) -> trio.SocketListener:
    """Bind the control socket. Call `make_room` when the filesystem has no room for its name.

    The caller holds the store's lock, so a socket that is there already belongs to a dead daemon.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise UsageError(f"{path} is in the way of the control socket: move it elsewhere")
        path.unlink()
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), 0o600)  # before bind: the name is never there with wider permissions
        with short_name(path) as name:
            try:
                sock.bind(name)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                make_room()
                sock.bind(name)
        sock.listen(MAX_CLIENTS)
        sock.setblocking(False)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except BaseException:
        sock.close()
        raise


def listen_by_mount(address: bytes) -> trio.SocketListener | None:
    """Bind the socket that is found by the mount. Return None when its name is taken: the other socket remains."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(address)
        sock.listen(MAX_CLIENTS)
    except OSError as error:
        sock.close()
        log.warning("the daemon cannot be found by its mount, but by its store: %s", error.strerror)
        return None
    sock.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def serve(
    path: Path | None,
    handlers: Mapping[str, Handler],
    *,
    address: bytes | None = None,
    make_room: Callable[[], None] = lambda: None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer clients until cancelled, then remove the socket. If a handler raises, its client gets an error.

    `path` is None for a store that may not be written to; `address` is that of the socket found by the mount.
    """
    listeners = []
    try:
        if path is not None:
            listeners.append(listen(path, make_room))
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        log.warning("%s: %s; commands reach this mount by its mount point only", path, error.strerror)
    by_mount = listen_by_mount(address) if address is not None else None
    free = trio.Semaphore(MAX_CLIENTS)
    try:
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(_accept, listener, handlers, free, nursery)
            if by_mount is not None:
                nursery.start_soon(_accept, by_mount, handlers, free, nursery, True)
            task_status.started()
    finally:
        _remove(path)


async def _accept(
    listener: trio.SocketListener,
    handlers: Mapping[str, Handler],
    free: trio.Semaphore,
    nursery: trio.Nursery,
    is_for_all: bool = False,
) -> None:
    """Accept clients. Where everybody can connect to a socket, accept only the owner and root."""
    async with listener:
        while True:
            await free.acquire()
            try:
                stream = await listener.accept()
            except Exception as error:  # noqa: BLE001 - no command is worth the mount
                free.release()
                log.warning("control socket: %r", error)
                await trio.sleep(PAUSE_S)  # out of descriptors, most likely
                continue
            may = handlers
            if is_for_all and _user(stream) not in (0, os.geteuid()):
                may = {}
            nursery.start_soon(_client, stream, may, free)


def _user(stream: trio.SocketStream) -> int:
    return rendezvous.peer(stream.socket)[1]


def _remove(path: Path | None) -> None:
    if path is not None:
        with contextlib.suppress(OSError):  # its directory is gone, or lies on what is read-only by now
            path.unlink()


async def _client(stream: trio.SocketStream, handlers: Mapping[str, Handler], free: trio.Semaphore) -> None:
    try:
        async with stream:
            await _converse(stream, handlers)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the client has gone away
    except Exception:
        log.exception("control socket: a bug in a conversation")
    finally:
        free.release()


async def _converse(stream: trio.SocketStream, handlers: Mapping[str, Handler]) -> None:
    pending = b""
    while True:
        while b"\n" not in pending:
            data = b""
            with trio.move_on_after(IDLE_S):
                data = await stream.receive_some(8192)
            pending += data
            if not data or len(pending) > MAX_REQUEST:
                return
        line, _, pending = pending.partition(b"\n")
        answer = await _answer(line, handlers)
        with trio.move_on_after(IDLE_S) as scope:
            await stream.send_all(answer)
        if scope.cancelled_caught:
            return


async def _answer(line: bytes, handlers: Mapping[str, Handler]) -> bytes:
    """Return the line that answers a request."""
    return json.dumps(await _answered(line, handlers)).encode() + b"\n"


async def _answered(line: bytes, handlers: Mapping[str, Handler]) -> dict[str, Any]:
    try:
        request = json.loads(line)
        command = request.pop("command")
        if not handlers:
            return {"ok": False, "error": FOR_OWNER, "exit": DaemonError.exit_code}
        handler = handlers[command]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {"ok": False, "error": "not a command of this version of nnfs", "exit": UsageError.exit_code}
    try:
        answer = {"ok": True, **await handler(request)}
        json.dumps(answer)  # here, where a bug costs no more than this answer
        return answer
    except NnfsError as error:
        return {"ok": False, "error": str(error), "exit": kept(error).exit_code}
    except OSError as error:
        return {"ok": False, "error": str(error), "exit": NnfsError.exit_code}
    except Exception:  # a bug in one answer ends neither the conversation nor the daemon
        log.exception("control command %s", command)
        return {"ok": False, "error": "internal error: the daemon's log has the traceback", "exit": NnfsError.exit_code}
