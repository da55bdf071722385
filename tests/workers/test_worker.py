"""The worker process, spoken to over its socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnfs.codec.progress import Stage
from nnfs.workers.batchcoding import next_batch
from nnfs.workers.liveness import LEAST_CPU
from nnfs.workers.startup import SHARED, TOLD
from nnfs.workers.wire import (
    ALONE,
    Alive,
    Answer,
    Begun,
    Bye,
    Cancel,
    Frames,
    Hello,
    Info,
    Message,
    Op,
    Progress,
    Request,
    Status,
    pack,
    unpack_info,
)
from tests.harness import WAIT_S
from tests.workers.conftest import Gate
from tests.workers.kit import FAKE, SERVE, payload

ROOT = Path(__file__).resolve().parents[2]
MODEL = bytes(range(64))


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


def decode(number: int, plain: bytes, **more: Any) -> Request:
    return Request(number, Op.DECODE, FAKE, payload(plain), len(plain), **more)


def encode(number: int, plain: bytes, **more: Any) -> Request:
    return Request(number, Op.ENCODE, FAKE, plain, len(plain), **more)


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


def test_batches_of_what_is_waited_for_are_kept_short() -> None:
    assert next_batch(1 << 20, 2.0, 1) == 2 << 20
    assert next_batch(4 << 20, 40.0, 1) == 1 << 20
    assert next_batch(1 << 17, 60.0, 2) == 1 << 19  # however slow: not less than two chunks a thread


def test_decode_overtakes_waiting_encodes(peer: Peer, gate: Gate) -> None:
    peer.hold(gate.chunk)
    peer.send(encode(2, b"two"), encode(3, b"three"), decode(4, b"four"))
    peer.ping()
    gate.open()
    assert [answer.number for answer in peer.answers(4)] == [1, 4, 2, 3]


def test_decode_overtakes_an_encode_under_way(peer: Peer) -> None:
    peer.hold(b"until-decoded:")
    peer.send(encode(2, b"waits"), decode(3, b"first"))
    assert peer.receive() == Begun((3,))
    assert peer.answers(3) == [
        Answer(3, Status.OK, b"first"),
        Answer(1, Status.OK, payload(b"until-decoded:")),
        Answer(2, Status.OK, payload(b"waits")),
    ]


def test_a_read_overtakes_other_decoding(peer: Peer) -> None:
    peer.send(decode(1, b"until-decoded:", priority=2))
    assert peer.receive() == Begun((1,))
    peer.send(decode(2, b"later", priority=2), decode(3, b"now", priority=0))
    assert [answer.number for answer in peer.answers(3)] == [3, 1, 2]


def test_a_slow_worker_is_heard_of(peer: Peer) -> None:
    peer.hold(b"until-decoded:")
    first, then = (heard(peer) for _ in range(2))
    assert isinstance(first, Progress)
    assert isinstance(then, Progress)
    assert first.stage == then.stage == Stage.CODING
    assert then.cpu_us > first.cpu_us  # it computes
    peer.send(decode(2, b""))
    assert [answer.number for answer in peer.answers(2)] == [2, 1]


def heard(peer: Peer) -> Message:
    """The next message of any kind."""
    while not peer.seen:
        peer.seen.extend(peer.frames.feed(peer.socket.recv(1 << 16)))
    return peer.seen.pop(0)


def test_who_only_waits_moves_nothing(peer: Peer) -> None:
    """Neither columns nor CPU time, whatever the threads beside it do: so the other side knows that it hangs."""
    peer.hold(b"hang:")
    told: list[Progress] = []
    while len(told) < 3:
        peer.send(Request(1 << 60, Op.PING))
        message = heard(peer)
        if isinstance(message, Progress):
            told.append(message)
    assert told[2].columns == told[0].columns
    assert told[2].cpu_us - told[0].cpu_us < 1e6 * LEAST_CPU


def test_columns_are_told(peer: Peer) -> None:
    peer.hold(b"count:600")
    first, then = (heard(peer) for _ in range(2))
    assert isinstance(first, Progress)
    assert isinstance(then, Progress)
    assert then.columns > first.columns


def test_an_older_client_is_told_that_work_goes_on(spawn: Spawn) -> None:
    _, peer = spawn()
    peer.send(Hello(version=1))
    assert isinstance(peer.receive(), Hello)
    peer.hold(b"count:600")
    assert heard(peer) == Alive()


def test_batches(peer: Peer, gate: Gate) -> None:
    peer.hold(gate.chunk)
    peer.send(*(encode(number, b"%25d" % number) for number in range(2, 9)), encode(9, b"alone", flags=ALONE))
    peer.ping()
    gate.open()
    seen = [peer.receive() for _ in range(1 + 3 + 8)]
    begun = [message.numbers for message in seen if isinstance(message, Begun)]
    assert begun == [(2, 3, 4, 5), (6, 7, 8), (9,)]
    assert [message.data for message in seen if isinstance(message, Answer)][1:] == [
        *(payload(b"%25d" % number) for number in range(2, 9)),
        payload(b"alone"),
    ]


@pytest.mark.parametrize("bad", [b"bug:", b"memory:", b"refused:"])
def test_one_bad_item_does_not_spoil_its_batch(peer: Peer, gate: Gate, bad: bytes) -> None:
    peer.hold(gate.chunk)
    peer.send(encode(2, b"a"), encode(3, b"b"), encode(4, bad), encode(5, b"c"))
    peer.ping()
    gate.open()
    assert [answer.status == Status.OK for answer in peer.answers(5)] == [True, True, True, False, True]


def test_too_little_memory_shrinks_the_batches(peer: Peer, gate: Gate) -> None:
    peer.hold(gate.chunk)
    peer.send(*(encode(number, b"memory-unless-alone:") for number in range(2, 10)))
    peer.ping()
    gate.open()
    assert [answer.status for answer in peer.answers(9)] == [Status.OK] * 9
    peer.send(encode(10, b"until-decoded:"))
    assert peer.receive() == Begun((10,))
    peer.send(*(encode(number, b"%20d" % number) for number in range(11, 14)), decode(14, b""))
    seen = [peer.receive() for _ in range(5 + 4)]
    assert [message.numbers for message in seen if isinstance(message, Begun)] == [(14,), (11,), (12,), (13,)]


def test_cancel(peer: Peer, gate: Gate) -> None:
    peer.hold(gate.chunk)
    peer.send(encode(2, b"two"), encode(3, b"three"))
    peer.send(Cancel(2), Cancel(1), Cancel(77))
    peer.ping()
    gate.open()
    assert [(answer.number, answer.status) for answer in peer.answers(3)] == [
        (2, Status.CANCELLED), (1, Status.OK), (3, Status.OK),
    ]  # fmt: skip


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
    """Whatever one peer sends, the next one is served."""
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
