"""Threads that decode one chunk together give its bytes, whichever of them come, and all end with it."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import pytest

from nnfs.codec import neural
from nnfs.codec.neural import Neural
from nnfs.codec.neuralnative import NativeBatch
from nnfs.errors import CodecError
from nnfs.kernels import library as library_of
from nnfs.kernels.library import LEVELS, MOST_TEAM, address
from nnfs.mixer import native
from nnfs.mixer.native import Kernels
from nnfs.model import selftest
from nnfs.model.native import NativeModel
from nnfs.model.weights import Weights
from tests.kernels.kit import EMULATED, library
from tests.model.golden import sample

KINDS = [f"native {level}" for level in LEVELS] + [f"emulated {level}" for level in EMULATED]
WEIGHTS: list[Weights] = []


@pytest.fixture
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Neural]]:
    """Return a codec of native code of some kind, with as many threads as a team has."""
    before = threading.active_count()

    def go(kind: str) -> Neural:
        engine, level = kind.split()
        there = library("emulated-" if engine == "emulated" else "")
        if level not in there.levels:
            pytest.skip(f"this processor has no {level}")
        kernels = Kernels(there, level)
        WEIGHTS[:] = WEIGHTS or [selftest.weights()]
        model = NativeModel(WEIGHTS[0], level, there)
        monkeypatch.setattr(native, "kernels", lambda: kernels)
        monkeypatch.setattr(neural, "open_model", lambda *_: model)
        return Neural(WEIGHTS[0], MOST_TEAM)

    yield go
    assert threading.active_count() == before


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int | None, ...]]:
    """The calls of the decoder that are made: their arguments."""
    made: list[tuple[int | None, ...]] = []
    call = NativeBatch._call

    def count(self: NativeBatch, name: str, *numbers: int | None) -> None:
        made.append(numbers)
        call(self, name, *numbers)

    monkeypatch.setattr(NativeBatch, "_call", count)
    return made


def of(calls: list[tuple[int | None, ...]]) -> set[int | None]:
    """Return the members of teams that were called."""
    return {numbers[3] for numbers in calls if len(numbers) == 4 and numbers[2]}


@pytest.mark.parametrize(("size", "lanes"), [(2001, 8), (90, 1), (333, 5), (32, 32), (3, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_team_gives_back_one_chunk(
    kind: str, size: int, lanes: int, codec: Callable[[str], Neural], calls: list[tuple[int | None, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    own = codec(kind)
    monkeypatch.setattr(neural, "lanes_for", lambda _: lanes)
    plain = sample(size, 3)
    (payload,) = own._encode([(plain, False)], lambda: None)
    for threads in (1, 2, 3, 4):
        own.threads = threads
        calls.clear()
        assert own.decode(payload, size) == plain
        assert of(calls) == (set(range(threads)) if threads > 1 else set())


def test_no_team_where_each_thread_has_a_chunk(
    codec: Callable[[str], Neural], calls: list[tuple[int | None, ...]]
) -> None:
    own = codec("native portable")
    plains = [sample(200 + n, n) for n in range(4)]
    payloads = [own._encode([(plain, False)], lambda: None)[0] for plain in plains]
    stored = [(payload, len(plain)) for payload, plain in zip(payloads, plains, strict=True)]
    for count, members in ((1, {0, 1, 2, 3}), (2, {0, 1}), (3, set()), (4, set())):
        calls.clear()
        assert own.decode_many(stored[:count]) == plains[:count]
        assert of(calls) == members


def test_a_team_works_when_nobody_else_comes(codec: Callable[[str], Neural], monkeypatch: pytest.MonkeyPatch) -> None:
    """The others' shares are taken over, so that a thread that gets no processor holds nobody up."""
    own = codec("native portable")
    plain = sample(900, 3)
    (payload,) = own._encode([(plain, False)], lambda: None)
    call = NativeBatch._call
    gate = threading.Event()

    def late(self: NativeBatch, name: str, *numbers: int | None) -> None:
        if len(numbers) == 4 and numbers[3]:
            gate.wait()
        call(self, name, *numbers)
        if len(numbers) == 4 and not numbers[3]:
            gate.set() if self.past.lengths[0] == numbers[1] else None

    monkeypatch.setattr(NativeBatch, "_call", late)
    assert own.decode(payload, len(plain)) == plain
    assert gate.is_set()


def test_an_error_between_columns_ends_the_team(codec: Callable[[str], Neural]) -> None:
    own = codec("native portable")
    plain = sample(3000, 3)
    (payload,) = own._encode([(plain, False)], lambda: None)
    with pytest.raises(KeyboardInterrupt):
        own.decode_many([(payload, len(plain))], mock.Mock(side_effect=[None, None, KeyboardInterrupt]))
    assert not [thread for thread in threading.enumerate() if thread.name == "helper"]
    assert own.decode(payload, len(plain)) == plain


def test_without_threads_one_goes_alone(codec: Callable[[str], Neural], monkeypatch: pytest.MonkeyPatch) -> None:
    own = codec("native portable")
    plain = sample(600, 3)
    (payload,) = own._encode([(plain, False)], lambda: None)
    monkeypatch.setattr(threading.Thread, "start", mock.Mock(side_effect=RuntimeError("no thread")))
    assert own.decode(payload, len(plain)) == plain


def test_damage_in_a_team_is_an_error_or_other_bytes(codec: Callable[[str], Neural]) -> None:
    own = codec("native portable")
    plain = sample(500, 9)
    (payload,) = own._encode([(plain, False)], lambda: None)
    for at in range(1, len(payload), 40):
        bad = payload[:at] + bytes([payload[at] ^ 0x55]) + payload[at + 1 :]
        try:
            assert len(own.decode(bad, len(plain))) == len(plain)
        except CodecError:
            continue


def test_impossible_teams_are_refused() -> None:
    calls = library().calls
    room = library_of.room(calls.nnfs_team_size())
    assert calls.nnfs_team(address(room), -1)
    assert calls.nnfs_team(address(room), MOST_TEAM + 1)
    assert calls.nnfs_team(address(room), MOST_TEAM) == 0
    assert calls.nnfs_team(address(room), 0) == 0
    assert np.frombuffer(room, np.uint8).any()
    assert ctypes.sizeof(ctypes.c_int64) <= room.size
