"""The control socket: answers, errors, and clients that misbehave."""

from __future__ import annotations

import contextlib
import json
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from nnfs.cli import client
from nnfs.constants import SOCKET_NAME
from nnfs.errors import DaemonError, OutOfSpace, UsageError
from nnfs.mount import control


async def echo(request: dict[str, Any]) -> dict[str, Any]:
    return {"echo": request}


async def fail(request: dict[str, Any]) -> dict[str, Any]:
    raise OutOfSpace("no room at all")


async def stumble(request: dict[str, Any]) -> dict[str, Any]:
    raise ZeroDivisionError("a bug")


async def missing(request: dict[str, Any]) -> dict[str, Any]:
    raise FileNotFoundError(2, "No such file or directory", "x")


HANDLERS: dict[str, control.Handler] = {"echo": echo, "fail": fail, "stumble": stumble, "missing": missing}


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Path]:
    path = directory / SOCKET_NAME
    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve, path, HANDLERS)
        yield path
        nursery.cancel_scope.cancel()


async def ask(directory: Path, command: str, **args: Any) -> dict[str, Any]:
    return await trio.to_thread.run_sync(partial(client.ask, directory, command, **args))


async def test_questions_and_answers(tmp_path: Path) -> None:
    async with serving(tmp_path) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await ask(tmp_path, "echo", a=1, name="caf\udce9") == {"echo": {"a": 1, "name": "caf\udce9"}}
        assert client.daemon_pid(tmp_path) is not None
    assert not path.exists()


def test_a_daemon_whose_queue_is_full_is_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped, and was asked often: a path on its mount must not be touched."""
    monkeypatch.setattr(client, "ANSWER_S", 0.01)
    with socket.socket(socket.AF_UNIX) as daemon, contextlib.ExitStack() as clients:
        daemon.bind(str(tmp_path / SOCKET_NAME))
        daemon.listen(1)
        for _ in range(2):
            clients.enter_context(socket.socket(socket.AF_UNIX)).connect(str(tmp_path / SOCKET_NAME))
        for ask in (client.ping, client.daemon_pid, partial(client.ask, command="status")):
            with pytest.raises(DaemonError, match="answer"):
                ask(tmp_path)


async def test_errors_keep_their_exit_status(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path):
        for command, status, message in (
            ("fail", OutOfSpace.exit_code, "no room at all"),
            ("missing", 1, "No such file"),
            ("stumble", 1, "internal error"),
            ("unknown", UsageError.exit_code, "not a command"),
        ):
            with pytest.raises(DaemonError, match=message) as caught:
                await ask(tmp_path, command)
            assert caught.value.exit_code == status
    assert [record.message for record in caplog.records] == ["control command stumble"]
    assert "ZeroDivisionError" in caplog.text


async def test_a_dead_ones_socket_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / SOCKET_NAME))
    left.close()
    async with serving(tmp_path):
        assert await ask(tmp_path, "echo") == {"echo": {}}
    (tmp_path / SOCKET_NAME).write_text("precious")
    with pytest.raises(UsageError, match="in the way"):
        control.listen(tmp_path / SOCKET_NAME)
    assert (tmp_path / SOCKET_NAME).read_text() == "precious"


async def test_long_paths(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["directory with a long name" * 3] * 4)
    deep.mkdir(parents=True)
    assert len(str(deep)) > 200
    async with serving(deep):
        assert await ask(deep, "echo") == {"echo": {}}


SENSELESS = (
    b"\n", b"nonsense\n", b"[1]\n", b"{}\n", b'{"command": []}\n', b'{"command": {"a": 1}}\n', b"\xff\xfe\n",
    b"[" * 50_000 + b"\n",
)  # fmt: skip


async def raw(path: Path) -> trio.SocketStream:
    return await trio.open_unix_socket(str(path))


async def test_clients_that_misbehave_hurt_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path) as path:
        for data in SENSELESS:
            async with await raw(path) as stream:
                await stream.send_all(data)
                answer = json.loads(await stream.receive_some())
                assert answer["ok"] is False
                assert answer["exit"] == UsageError.exit_code
        async with await raw(path) as stream:  # goes away in the middle of a line
            await stream.send_all(b'{"comm')
        async with await raw(path) as stream:  # never ends its line
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x" * (1 << 24))
        async with await raw(path) as stream:  # two in one packet
            await stream.send_all(b'{"command": "echo"}\n{"command": "fail"}\n')
            lines = b""
            while lines.count(b"\n") < 2:
                lines += await stream.receive_some()
            assert [json.loads(line)["ok"] for line in lines.splitlines()] == [True, False]
        assert await ask(tmp_path, "echo") == {"echo": {}}


async def test_many_silent_clients_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "IDLE_S", 0.01)
    async with serving(tmp_path) as path:
        streams = [await raw(path) for _ in range(control.MAX_CLIENTS)]
        for stream in streams:
            assert await stream.receive_some() == b""
            await stream.aclose()
        assert await ask(tmp_path, "echo") == {"echo": {}}


class Answering:
    """A server that gives one fixed answer."""

    def __init__(self, directory: Path, answer: bytes) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(directory / SOCKET_NAME))
        self.socket.listen(1)
        self.answer = answer

    async def run(self) -> None:
        def serve() -> None:
            with self.socket, self.socket.accept()[0] as peer:
                peer.recv(1000)
                peer.sendall(self.answer)

        await trio.to_thread.run_sync(serve)


@pytest.mark.parametrize(
    "answer", [b"", b"\n", b"nonsense\n", b"[]\n", b"{}\n", b'{"ok": false}\n', b'{"ok": false, "error": 1']
)
async def test_senseless_answers(tmp_path: Path, answer: bytes) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Answering(tmp_path, answer).run)
        with pytest.raises(DaemonError, match=r"is not understood|ended while"):
            await ask(tmp_path, "status")


async def test_no_answer_in_time(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / SOCKET_NAME))
        silent.listen(1)
        with pytest.raises(DaemonError, match="did not answer"):
            await ask(tmp_path, "status", timeout=0.05)
