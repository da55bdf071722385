"""Fixtures of the tests of workers."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import WAIT_S
from tests.workers.peer import Peer, Spawn, start


class Gate:
    """`chunk` is worked on until `open` is called (see `tests.workers.kit`)."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self.chunk = b"gate:" + os.fsencode(path)
        self.fd: int | None = None

    def open(self) -> None:
        if self.fd is None:
            self.fd = os.open(self.path, os.O_RDWR)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path / "gate")
    yield made
    made.open()
    assert made.fd is not None
    os.close(made.fd)


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts workers, and makes sure that none is left."""
    started: list[tuple[subprocess.Popen[bytes], Peer]] = []

    def one(*arguments: str) -> tuple[subprocess.Popen[bytes], Peer]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = start("--fd", str(theirs.fileno()), *arguments, pass_fds=(theirs.fileno(),))
        started.append((process, Peer(ours)))
        return started[-1]

    yield one
    for process, peer in started:
        peer.socket.close()
        process.wait(WAIT_S)  # by itself: its peer is gone
        assert process.stderr is not None
        process.stderr.close()


@pytest.fixture
def peer(spawn: Spawn) -> Peer:
    _, peer = spawn()
    peer.greet()
    return peer
