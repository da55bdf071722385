"""The order of work in a worker: urgent requests overtake, batches, signs of life."""

from __future__ import annotations

import pytest

from nnfs.codec.progress import Stage
from nnfs.workers.batchcoding import next_batch
from nnfs.workers.liveness import LEAST_CPU
from nnfs.workers.wire import ALONE, Alive, Answer, Begun, Cancel, Hello, Message, Op, Progress, Request, Status
from tests.workers.conftest import Gate
from tests.workers.kit import payload
from tests.workers.peer import Peer, Spawn, decode, encode


def test_batches_of_what_is_waited_for_are_kept_short() -> None:
    assert next_batch(0, 1 << 20, 2.0, 1) == 2 << 20
    assert next_batch(4 << 20, 4 << 20, 40.0, 1) == 1 << 20
    assert next_batch(0, 1 << 17, 60.0, 2) == 1 << 19  # however slow: not less than two chunks a thread
    assert next_batch(8 << 20, 3000, 0.05, 2) == 8 << 20, "a small one does not make the next ones small"


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


def test_a_result_is_answered_before_the_batch_is_done(peer: Peer, gate: Gate) -> None:
    peer.hold(gate.chunk)
    peer.send(encode(2, b"told:"), encode(3, b"until-decoded:"), encode(4, b"last"))
    peer.ping()
    gate.open()
    assert [answer.number for answer in peer.answers(2)] == [1, 2]
    peer.send(decode(5, b"now"))
    assert [answer.number for answer in peer.answers(3)] == [5, 3, 4]


def test_what_was_answered_is_not_coded_again(peer: Peer, gate: Gate) -> None:
    peer.hold(gate.chunk)
    peer.send(encode(2, b"told:"), encode(3, b"bug:"), encode(4, b"b"))
    peer.ping()
    gate.open()
    answers = peer.answers(4)
    assert [answer.number for answer in answers] == [1, 2, 3, 4]
    assert [answer.status for answer in answers] == [Status.OK, Status.OK, Status.BUG, Status.OK]
