"""The other end of a worker's socket, for tests that speak the wire themselves."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnfs.workers.wire import (
    Alive,
    Answer,
    Begun,
    Frames,
    Hello,
    Info,
    Message,
    Op,
    Progress,
    Request,
    pack,
    unpack_info,
)
from tests.harness import WAIT_S
from tests.workers.kit import FAKE, SERVE, payload

ROOT = Path(__file__).resolve().parents[2]


class Peer:
    """The other end of a worker's socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(WAIT_S)
        self.socket = sock
        self.frames = Frames(from_worker=True)
        self.seen: list[Message] = []

    def send(self, *messages: Message) -> None:
        self.socket.sendall(b"".join(map(pack, messages)))

    def receive(self) -> Message:
        """The next message but `Alive` and `Progress`. Raises `EOFError`."""
        while True:
            while self.seen:
                message = self.seen.pop(0)
                if not isinstance(message, Alive | Progress):
                    return message
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError
            self.seen.extend(self.frames.feed(data))

    def rest(self) -> list[Message]:
        """Everything up to the end of the connection."""
        got = []
        try:
            while True:
                got.append(self.receive())
        except EOFError:
            return got

    def greet(self) -> Info:
        self.send(Hello())
        hello = self.receive()
        assert isinstance(hello, Hello)
        assert hello.info is not None
        return hello.info

    def answers(self, count: int) -> list[Answer]:
        """That many answers in their order; what has begun is passed over."""
        got: list[Answer] = []
        while len(got) < count:
            message = self.receive()
            if isinstance(message, Answer):
                got.append(message)
        return got

    def ping(self) -> Info:
        """An answer to this proves that the worker has taken in everything sent before."""
        self.send(Request(1 << 60, Op.PING))
        passed: list[Message] = []
        while True:
            message = self.receive()
            if isinstance(message, Answer) and message.number == 1 << 60:
                self.seen[:0] = passed
                return unpack_info(message.data)
            passed.append(message)

    def hold(self, chunk: bytes) -> None:
        """Have work item 1 worked on."""
        self.send(encode(1, chunk))
        assert self.receive() == Begun((1,))


Spawn = Callable[..., tuple[subprocess.Popen[bytes], Peer]]


def start(*arguments: str, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "nnfs.workers.worker", "--serve", SERVE, "--device", "cpu", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, pass_fds=pass_fds)


def decode(number: int, plain: bytes, **more: Any) -> Request:
    return Request(number, Op.DECODE, FAKE, payload(plain), len(plain), **more)


def encode(number: int, plain: bytes, **more: Any) -> Request:
    return Request(number, Op.ENCODE, FAKE, plain, len(plain), **more)
