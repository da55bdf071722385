r"""The control socket: how the command line talks to the daemon of a mounted store.

A unix socket `control` in the store directory, for its owner only. A client sends one JSON object per line,
`{"command": "df", ...}`, and gets one per line: `{"ok": true, ...}` or `{"ok": false, "error": "...", "exit": 3}`.
Lines are ASCII. In a name a byte that is no UTF-8 is a lone surrogate, \udc80 to \udcff, as Python has it in memory:
this is between nnfs and itself; what `--json` prints is valid Unicode (`nnfs.names`).
"""

from __future__ import annotations

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

from nnfs.errors import FsError, NnfsError, UsageError

SOCKET_NAME = "control"
MAX_REQUEST = 64 * 1024  # bytes of one line
MAX_CLIENTS = 16  # at once; further ones wait in the socket's queue
PAUSE_S = 1.0  # after a client could not be let in
IDLE_S = 30.0  # a client that sends nothing for so long is dropped, and so is one that does not take its answer

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

log = logging.getLogger(__name__)


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name for `path` that fits into a socket address (107 bytes), through a descriptor of its directory."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def listen(path: Path) -> trio.SocketListener:
    """Bind the control socket. The caller holds the store's lock, so a socket that is there already is a dead one's."""
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
            sock.bind(name)
        sock.listen(MAX_CLIENTS)
        sock.setblocking(False)
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except BaseException:
        sock.close()
        raise


async def serve(
    path: Path,
    handlers: Mapping[str, Handler],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer clients until cancelled, then remove the socket. A handler that raises costs its client an error."""
    listener = listen(path)
    free = trio.Semaphore(MAX_CLIENTS)
    try:
        async with listener, trio.open_nursery() as nursery:
            task_status.started()
            while True:
                await free.acquire()
                try:
                    stream = await listener.accept()
                except Exception as error:  # noqa: BLE001 - no command is worth the mount
                    free.release()
                    log.warning("control socket: %r", error)
                    await trio.sleep(PAUSE_S)  # out of descriptors, most likely
                    continue
                nursery.start_soon(_client, stream, handlers, free)
    finally:
        _remove(path)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


async def _client(stream: trio.SocketStream, handlers: Mapping[str, Handler], free: trio.Semaphore) -> None:
    try:
        async with stream:
            await _converse(stream, handlers)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # gone in the middle of something
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
    """Return the line that answers one."""
    return json.dumps(await _answered(line, handlers)).encode() + b"\n"


async def _answered(line: bytes, handlers: Mapping[str, Handler]) -> dict[str, Any]:
    try:
        request = json.loads(line)
        command = request.pop("command")
        handler = handlers[command]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {"ok": False, "error": "not a command of this version of nnfs", "exit": UsageError.exit_code}
    try:
        answer = {"ok": True, **await handler(request)}
        json.dumps(answer)  # here, where a bug costs no more than this answer
        return answer
    except NnfsError as error:
        return {"ok": False, "error": str(error), "exit": error.exit_code}
    except (OSError, FsError) as error:
        return {"ok": False, "error": str(error), "exit": NnfsError.exit_code}
    except Exception:  # a bug in one answer ends neither the conversation nor the daemon
        log.exception("control command %s", command)
        return {"ok": False, "error": "internal error: the daemon's log has the traceback", "exit": NnfsError.exit_code}
