"""The worker process, spoken to over its socket: single requests, failures, its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnfs.workers.startup import SHARED, TOLD
from nnfs.workers.wire import Alive, Answer, Bye, Hello, Op, Request, Status, pack
from tests.harness import WAIT_S
from tests.workers.conftest import Gate
from tests.workers.kit import FAKE, payload
from tests.workers.peer import Peer, Spawn, decode, encode, start

MODEL = bytes(range(64))


def test_hello_and_simple_items(spawn: Spawn) -> None:
    process, peer = spawn()
    info = peer.greet()
    assert (info.pid, info.device, info.codecs, info.models) == (process.pid, "cpu", {FAKE: "fake"}, ())
    peer.send(encode(1, b"chunk"), decode(2, b"chunk"), encode(3, b"no-gain"), encode(4, b""), decode(5, b""))
    answers = {answer.number: answer for answer in peer.answers(5)}
    assert answers == {
        1: Answer(1, Status.OK, payload(b"chunk")),
        2: Answer(2, Status.OK, b"chunk"),
        3: Answer(3, Status.NO_GAIN),
        4: Answer(4, Status.OK, payload(b"")),
        5: Answer(5, Status.OK, b""),
    }
    info = peer.ping()
    assert (info.done, info.failed, info.queued, info.plain) == (5, 0, 0, 17)
    assert info.memory > 1 << 20


def test_failures_of_single_items(peer: Peer) -> None:
    peer.send(
        Request(1, Op.DECODE, FAKE, b"no mark", 7),
        Request(2, Op.DECODE, FAKE, payload(b"abc"), 7),  # the codec gives three bytes
        Request(3, Op.DECODE, 99, b"", 0),
        Request(4, Op.DECODE, FAKE, b"", 0, MODEL),
        decode(5, b"bug:"),
        encode(6, b"memory:"),
        encode(7, b"refused:"),
        decode(8, b"fine"),
    )
    got = {answer.number: (answer.status, answer.data.decode()) for answer in peer.answers(8)}
    assert got == {
        1: (Status.BAD_PAYLOAD, "no mark"),
        2: (Status.BUG, "ValueError: 3 bytes decoded, not 7"),
        3: (Status.NO_CODEC, "unknown codec 99"),
        4: (Status.NO_MODEL, "no model 0001020304050607"),
        5: (Status.BUG, "ZeroDivisionError: a bug"),
        6: (Status.NO_MEMORY, "MemoryError: too much"),
        7: (Status.BAD_PAYLOAD, "no chunk of mine"),
        8: (Status.OK, "fine"),
    }
    assert peer.ping().failed == 7


def test_a_model_is_loaded_before_what_needs_it(peer: Peer, gate: Gate) -> None:
    peer.hold(gate.chunk)
    peer.send(
        Request(2, Op.DECODE, FAKE, payload(b"x"), 1, MODEL, priority=0),
        Request(3, Op.LOAD, data=b"weights", model=MODEL),
        Request(4, Op.LOAD, data=b"bad", model=MODEL[::-1]),
    )
    peer.ping()
    gate.open()
    assert [(answer.number, answer.status) for answer in peer.answers(4)] == [
        (1, Status.OK), (3, Status.OK), (4, Status.BAD_PAYLOAD), (2, Status.OK),
    ]  # fmt: skip
    assert peer.ping().models == (MODEL,)


@pytest.mark.parametrize("busy", [b"between:", b"hang:", None])
def test_a_worker_ends_with_its_peer(spawn: Spawn, busy: bytes | None) -> None:
    process, peer = spawn()
    peer.greet()
    if busy is not None:
        peer.hold(busy)
    peer.socket.close()
    assert process.wait(WAIT_S) == 0


def test_a_worker_whose_queue_is_full_ends_with_its_peer(spawn: Spawn, gate: Gate) -> None:
    process, peer = spawn()
    info = peer.greet()
    peer.hold(gate.chunk)
    peer.send(*(encode(number, b"x") for number in range(2, info.window + 100)))
    peer.socket.close()
    assert process.wait(WAIT_S) == 0


def test_a_slow_peer_gets_everything(peer: Peer) -> None:
    """The worker waits for a peer that does not read; the peer's requests wait in the sockets."""
    big = bytes(1 << 20)
    for number in range(8):
        peer.send(encode(number, big))
    first = peer.socket.recv(1)  # so long, nobody has read anything
    peer.seen.extend(peer.frames.feed(first))
    assert [answer.data for answer in peer.answers(8)] == [payload(big)] * 8


@pytest.mark.parametrize("number", [*SHARED, *TOLD])
def test_what_is_sent_to_all_is_not_for_the_worker(spawn: Spawn, number: signal.Signals) -> None:
    process, peer = spawn()
    peer.greet()
    process.send_signal(number)
    assert peer.ping().pid == process.pid


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", pack(Hello()) * 2, pack(Hello()) + b"\xff\xff\xff\xff\2", pack(Alive())],
    ids=["http", "two hellos", "oversized", "not a client"],
)
def test_garbage_closes_the_connection_with_a_word(spawn: Spawn, garbage: bytes) -> None:
    process, peer = spawn()
    peer.socket.sendall(garbage)
    seen = peer.rest()
    assert isinstance(seen[-1], Bye)
    assert seen[-1].why
    assert process.wait(WAIT_S) == 0
    assert process.stderr is not None
    assert seen[-1].why in process.stderr.read().decode()


def connect(path: Path, process: subprocess.Popen[bytes]) -> Peer:
    """Connect to a listening worker once it listens (it says so by being warm)."""
    assert process.stderr is not None
    if not path.exists():
        assert process.stderr.readline() == b"warm\n"
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(os.fspath(path))
    return Peer(sock)


@pytest.fixture(scope="module")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Peer]]:
    """A worker that serves one peer after the other."""
    path = tmp_path_factory.mktemp("worker") / "socket"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(os.fspath(path))
    stale.close()
    process = start("--socket", os.fspath(path), "--warm")
    try:
        assert process.stderr is not None
        assert process.stderr.readline() == b"warm\n"
        assert path.stat().st_mode & 0o777 == 0o600
        yield lambda: connect(path, process)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def test_one_peer_after_the_other(listening: Callable[[], Peer]) -> None:
    for _ in range(3):
        peer = listening()
        peer.greet()
        peer.hold(b"between:")  # for ever: the next peer is served because this one leaves
        peer.socket.close()


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.booleans())
@example(b"", False)
@example(pack(encode(1, b"chunk"))[:-1], True)
@example(pack(decode(1, b"bug:")) + b"\0" * 5, True)
def test_fuzz(listening: Callable[[], Peer], data: bytes, greeted: bool) -> None:
    """The next peer is served after any bytes of one peer."""
    peer = listening()
    with peer.socket:
        peer.socket.sendall(pack(Hello()) + data if greeted else data)
        peer.socket.shutdown(socket.SHUT_WR)
        peer.rest()
    peer = listening()
    with peer.socket:
        peer.greet()
        peer.send(decode(1, b"fine"))
        assert peer.answers(1) == [Answer(1, Status.OK, b"fine")]
