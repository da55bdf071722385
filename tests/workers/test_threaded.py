"""Chunk by chunk on several threads: results as they come, failures, and pauses for what is more urgent."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from nnfs.codec.base import Result
from nnfs.errors import CodecError, PeerGone
from nnfs.workers.threaded import LEVELS, ThreadedCodec


class Backwards:
    """Turns chunks round; calls `first` with each chunk."""

    id, name = 200, "backwards"

    def __init__(self, first: Callable[[bytes], object] = bytes) -> None:
        self._first = first

    def encode(self, plain: bytes) -> bytes | None:
        self._first(plain)
        return plain[::-1] if plain else None

    def decode(self, payload: bytes, plain_length: int) -> bytes:
        self._first(payload)
        if len(payload) != plain_length:
            raise CodecError("of another length")
        return payload[::-1]


PLAINS = [b"chunk %d" % n for n in range(40)]
TURNED: list[bytes | None] = [plain[::-1] for plain in PLAINS]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_each_result_is_told_once(threads: int) -> None:
    told: list[tuple[int, Result]] = []
    codec = ThreadedCodec(Backwards(), threads)
    assert codec.encode_many([*PLAINS, b""], tell=lambda *result: told.append(result)) == [*TURNED, None]
    assert sorted(told, key=lambda one: one[0]) == list(enumerate([*TURNED, None]))
    mixed = codec.decode_many([(PLAINS[0], 7), (PLAINS[1], 1), (PLAINS[2], 7)])
    assert [str(one) if isinstance(one, CodecError) else one for one in mixed] == [
        TURNED[0], "of another length", TURNED[2],
    ]  # fmt: skip


def test_a_result_is_told_before_the_others_are_there() -> None:
    gate = threading.Event()
    codec = ThreadedCodec(Backwards(lambda plain: plain == PLAINS[-1] and gate.wait()), 2)
    told: list[int] = []

    def tell(place: int, _: Result) -> None:
        told.append(place)
        if len(told) == len(PLAINS) - 1:
            gate.set()

    assert codec.encode_many(PLAINS, tell=tell) == TURNED
    assert told[-1] == len(PLAINS) - 1


@pytest.mark.parametrize("threads", [1, 2])
def test_an_exception_ends_the_batch(threads: int) -> None:
    begun: list[bytes] = []

    def first(plain: bytes) -> None:
        begun.append(plain)
        if plain == PLAINS[3]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ThreadedCodec(Backwards(first), threads).encode_many(PLAINS)
    assert len(begun) < len(PLAINS)


def test_a_peer_that_is_gone_ends_the_batch() -> None:
    def gone(*_: object) -> None:
        raise PeerGone

    codec = ThreadedCodec(Backwards(), 2)
    with pytest.raises(PeerGone):
        codec.encode_many(PLAINS, tell=gone)
    with pytest.raises(PeerGone):
        codec.encode_many(PLAINS, between=gone)


def test_threads_pause_while_something_more_urgent_is_done() -> None:
    """Nothing of a batch begins while a batch in between is coded, on however many levels."""
    codec: ThreadedCodec
    begun: list[bytes] = []
    levels = iter(range(1, LEVELS))

    def between() -> None:
        level = next(levels, None)
        if level is not None:
            before = len(begun)
            plains = [b"level %d, %d" % (level, n) for n in range(20)]
            assert codec.encode_many(plains, between) == [plain[::-1] for plain in plains]
            mine = [plain for plain in begun[before:] if plain.startswith(b"level %d" % level)]
            lower = [plain for plain in begun[before:] if not plain.startswith(b"level") or plain < b"level %d" % level]
            assert len(mine) == 20
            assert len(lower) <= 2 * (level + 1)  # those that had begun

    codec = ThreadedCodec(Backwards(begun.append), 2)
    assert codec.encode_many(PLAINS, between) == TURNED
    assert next(levels, None) is None
