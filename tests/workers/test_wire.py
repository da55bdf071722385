"""The wire: frames in and out, and everything that is not a frame."""

from __future__ import annotations

import itertools
import struct
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnfs.codec.progress import Stage
from nnfs.errors import WireError
from nnfs.workers import wire
from nnfs.workers.wire import (
    ALONE,
    MAX_CHUNK,
    MAX_MODEL,
    MAX_PAYLOAD,
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
)

MODEL = bytes(range(64))
INFO = Info(7, 512, 1, 2, 3, 4 << 40, 5, 6, "cpu: ein Gerät", {0: "raw", 16: "cm"}, (MODEL, MODEL[::-1]))
FROM_CLIENT: list[Message] = [
    Hello(),
    Request(1, Op.ENCODE, 16, b"chunk", 5, MODEL, 2, 0),
    Request(2**64 - 1, Op.DECODE, 255, b"payload", MAX_CHUNK, wire.NO_MODEL, 255, ALONE),
    Request(3, Op.ENCODE),
    Request(4, Op.PING),
    Request(5, Op.LOAD, data=b"x" * 1000, model=MODEL),
    Cancel(1),
    Bye("had enough"),
]
FROM_WORKER: list[Message] = [
    Hello(INFO),
    Answer(1, Status.OK, b"payload"),
    Answer(2**64 - 1, Status.BUG, b"text"),
    Begun((1, 2, 3)),
    Begun(()),
    Alive(),
    Answer(4, Status.CANCELLED),
    Progress(Stage.OPENING, 0, 0),
    Progress(Stage.CODING, 2**64 - 1, 2**64 - 1),
    Bye("wörds"),
]


def frame(kind: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack("<IB", 1 + len(body) if length is None else length, kind) + body


HELLO = pack(Hello())
HEAD = struct.Struct("<QBBBBI64s")


def request(op: int, data: bytes, plain: int, *, flags: int = 0) -> bytes:
    return frame(2, HEAD.pack(1, op, 16, 0, flags, plain, MODEL) + data)


@pytest.mark.parametrize(("messages", "from_worker"), [(FROM_CLIENT, False), (FROM_WORKER, True)])
@pytest.mark.parametrize("step", [1, 3, 64, 1 << 20])
def test_round_trip_in_pieces(messages: list[Message], from_worker: bool, step: int) -> None:
    stream = b"".join(map(pack, messages))
    frames = Frames(from_worker=from_worker)
    seen = [message for at in range(0, len(stream), step) for message in frames.feed(stream[at : at + step])]
    assert seen == messages


def test_golden_frames() -> None:
    """The bytes of version 2, and a hello of version 1."""
    assert pack(Hello()) == bytes.fromhex("0b000000 01 6e6e667377697265 0200")
    assert pack(Hello(version=1)) == bytes.fromhex("0b000000 01 6e6e667377697265 0100")
    assert pack(Request(1, Op.DECODE, 16, b"\xaa\xbb", 300, MODEL, 2, ALONE)) == bytes.fromhex(
        "53000000 02 0100000000000000 02 10 02 01 2c010000" + MODEL.hex() + "aabb"
    )
    assert pack(Answer(1, Status.BAD_PAYLOAD, b"no")) == bytes.fromhex("0c000000 03 0100000000000000 02 6e6f")
    assert pack(Begun((1, 258))) == bytes.fromhex("11000000 04 0100000000000000 0201000000000000")
    assert pack(Alive()) == bytes.fromhex("01000000 05")
    assert pack(Cancel(9)) == bytes.fromhex("09000000 06 0900000000000000")
    assert pack(Bye("so")) == bytes.fromhex("03000000 07 736f")
    assert pack(Progress(Stage.CODING, 3, 258)) == bytes.fromhex("12000000 08 02 0300000000000000 0201000000000000")
    info = Info(1, 2, 3, 4, 5, 6, 7, 8, "cpu", {16: "cm"}, (MODEL,))
    assert pack(Hello(info)) == bytes.fromhex(
        "8a000000 01 6e6e667377697265 0200 010000000200000003000000"
        "0400000000000000 0500000000000000 0600000000000000 0700000000000000 0800000000000000"
        "03637075 01 10 02636d 0100" + MODEL.hex()
    )


BAD_FROM_CLIENT = {
    "nothing but zeros": bytes(8),
    "no hello": pack(Cancel(1)),
    "another protocol": b"GET / HTTP/1.1\r\n",
    "another magic": frame(1, b"nnfswork\1\0"),
    "a newer version": frame(1, b"nnfswire\3\0"),
    "version 0": frame(1, b"nnfswire\0\0"),
    "progress of a client": HELLO + pack(Progress(Stage.CODING, 1, 1)),
    "a short hello": frame(1, b"nnfswire\1"),
    "a hello with bytes to spare": frame(1, b"nnfswire\1\0x"),
    "a second hello": HELLO + HELLO,
    "kind 0": HELLO + frame(0, b""),
    "kind 255": HELLO + frame(255, b""),
    "a frame of the other side": HELLO + pack(Alive()),
    "an empty frame": HELLO + frame(6, b"", 0),
    "a short cancel": HELLO + frame(6, bytes(7)),
    "a long cancel": HELLO + frame(6, bytes(9)),
    "a long bye": HELLO + frame(7, bytes(4097)),
    "a short request": HELLO + frame(2, bytes(79)),
    "op 0": HELLO + request(0, b"", 0),
    "op 5": HELLO + request(5, b"", 0),
    "unknown flags": HELLO + request(2, b"", 0, flags=2),
    "encode, other length": HELLO + request(1, b"abc", 4),
    "encode, too long": HELLO + request(1, bytes(MAX_CHUNK + 1), MAX_CHUNK + 1),
    "decode, too long": HELLO + request(2, b"abc", MAX_CHUNK + 1),
    "decode, payload too long": HELLO + request(2, bytes(MAX_PAYLOAD + 1), 100),
    "ping with data": HELLO + request(3, b"abc", 3),
    "load with a length": HELLO + request(4, b"abc", 3),
    "a length over every limit": HELLO + frame(2, b"", MAX_MODEL + 82),
    "the greatest length": HELLO + frame(2, b"", 2**32 - 1),
}
BAD_FROM_WORKER = {
    "status 8": frame(3, bytes(8) + b"\10"),
    "a short answer": frame(3, bytes(8)),
    "half a number": frame(4, bytes(12)),
    "alive with bytes": frame(5, b"x"),
    "a short progress": frame(8, bytes(16)),
    "progress in stage 3": frame(8, b"\3" + bytes(16)),
    "a request": pack(Request(1, Op.PING)),
    "the greatest length": frame(3, b"", 2**32 - 1),
}
BAD_HELLOS = {
    "cut short": pack(Hello(INFO))[5:-1],
    "bytes to spare": pack(Hello(INFO))[5:] + b"x",
    "no info": b"nnfswire\1\0",
    "many models": pack(Hello(INFO))[5:-130] + b"\xff\xff" + MODEL,
}


@pytest.mark.parametrize("stream", BAD_FROM_CLIENT.values(), ids=BAD_FROM_CLIENT)
def test_bad_frames_of_a_client(stream: bytes) -> None:
    with pytest.raises(WireError):
        list(Frames(from_worker=False).feed(stream))


@pytest.mark.parametrize("stream", BAD_FROM_WORKER.values(), ids=BAD_FROM_WORKER)
def test_bad_frames_of_a_worker(stream: bytes) -> None:
    frames = Frames(from_worker=True)
    assert list(frames.feed(pack(Hello(INFO)))) == [Hello(INFO)]
    with pytest.raises(WireError):
        list(frames.feed(stream))


@pytest.mark.parametrize("body", BAD_HELLOS.values(), ids=BAD_HELLOS)
def test_bad_hellos_of_a_worker(body: bytes) -> None:
    with pytest.raises(WireError):
        list(Frames(from_worker=True).feed(frame(1, body)))


@pytest.mark.parametrize(
    "begin",
    [
        frame(2, b"", 2**32 - 1)[:5],
        frame(2, HEAD.pack(1, Op.ENCODE, 16, 0, 0, 100, MODEL), MAX_MODEL),
        frame(2, HEAD.pack(1, Op.DECODE, 16, 0, 0, 100, MODEL), MAX_PAYLOAD + 82),
    ],
)
def test_limits_hold_before_the_rest_is_there(begin: bytes) -> None:
    frames = Frames(from_worker=False)
    list(frames.feed(HELLO))
    with pytest.raises(WireError):
        list(frames.feed(begin))


def test_a_length_reserves_no_memory() -> None:
    frames = Frames(from_worker=False)
    list(frames.feed(HELLO))
    tracemalloc.start()
    try:
        list(frames.feed(frame(2, HEAD.pack(1, Op.LOAD, 0, 0, 0, 0, MODEL), MAX_MODEL)))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def try_all(stream: bytes, from_worker: bool, cuts: list[int]) -> tuple[list[Message], bool]:
    """Return the messages of a stream, and whether it was refused; `cuts` are the places where it is split."""
    frames, seen = Frames(from_worker=from_worker), list[Message]()
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    try:
        for begin, end in itertools.pairwise(edges):
            seen.extend(frames.feed(stream[begin:end]))
    except WireError:
        return seen, True
    return seen, False


@settings(derandomize=True, max_examples=400)
@given(st.binary(max_size=300), st.booleans(), st.booleans(), st.lists(st.integers(0, 400), max_size=4))
@example(b"\1\0\0\0\4", True, True, [])
@example(b"\0\0\0\0\0", True, False, [2])
@example(pack(Answer(1, Status.OK, b"x" * 200))[:50], True, True, [7])
def test_arbitrary_bytes(data: bytes, from_worker: bool, greeted: bool, cuts: list[int]) -> None:
    hello = pack(Hello(INFO if from_worker else None)) if greeted else b""
    once = try_all(hello + data, from_worker, [])
    assert try_all(hello + data, from_worker, cuts) == once  # how bytes arrive makes no difference
    for message in once[0]:
        assert pack(message) in hello + data


@settings(derandomize=True, max_examples=400)
@given(st.booleans(), st.integers(0, 10**6), st.integers(0, 255), st.integers(0, 10**6))
@example(False, 4, 0, 0)
@example(True, 4, 255, 0)
def test_one_wrong_byte(from_worker: bool, at: int, value: int, cut: int) -> None:
    messages = FROM_WORKER if from_worker else FROM_CLIENT
    stream = bytearray(b"".join(map(pack, messages)))
    stream[at % len(stream)] = value
    seen, _ = try_all(bytes(stream), from_worker, [cut])
    assert len(seen) <= len(messages) + len(stream) // 5
