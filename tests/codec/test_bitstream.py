"""Mixer and entropy coder together: the encode path and the decode path agree."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from nnfs.codec import bitstream, rans
from nnfs.errors import CodecError
from nnfs.mixer.networkbits import net_path
from nnfs.mixer.startvalues import untrained
from nnfs.mixer.state import MixState

TEXT = b"".join(b"line %d of a log, status=%d\n" % (n, n * n % 7) for n in range(6000))
KINDS: dict[str, Callable[[int], bytes]] = {
    "text": lambda n: TEXT[:n],
    "random": lambda n: random.Random(1).randbytes(n),
    "zeros": bytes,
    "ones": lambda n: b"\xff" * n,
}


@pytest.fixture(scope="module")
def state() -> MixState:
    return MixState(2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("size", "lanes", "states"),
    [(1, 1, 1), (2, 1, 1), (5, 4, 3), (7, 7, 1), (300, 1, 1), (4097, 2, 2), (5000, 32, 32), (20000, 3, 8)],
)
def test_round_trip(state: MixState, kind: str, size: int, lanes: int, states: int) -> None:
    plain = KINDS[kind](size)
    state.start(0, plain, lanes)
    stream = bitstream.encode(state, 0, states=states)
    state.start(1, size, lanes)
    assert bitstream.decode(state, 1, stream, states) == plain


def test_whole_chunk(state: MixState) -> None:
    plain = (TEXT + random.Random(2).randbytes(1000) + TEXT)[: 1 << 17]
    for lanes in (1, 32):
        state.start(0, plain, lanes)
        stream = bitstream.encode(state, 0)
        state.start(1, len(plain), lanes)
        assert bitstream.decode(state, 1, stream) == plain


def test_zeros_cost_next_to_nothing(state: MixState) -> None:
    state.start(0, bytes(1 << 17))
    assert len(bitstream.encode(state, 0)) < 60


@pytest.mark.parametrize(("size", "lanes", "states"), [(1, 1, 1), (700, 3, 2), (3000, 32, 32)])
def test_with_network(state: MixState, size: int, lanes: int, states: int) -> None:
    """Frequencies differ from row to row, extremes among them, in another row of the stack."""
    random_ = np.random.default_rng(5)
    count = -(-size // lanes)
    frequencies = random_.integers(1, 1 << 22, (count, lanes, 256), np.uint32)
    frequencies[::3] = 1
    frequencies[::5, :, 65] = (1 << 31) - 1024 * 1024 * 1024
    padded = np.zeros(count * lanes, np.uint8)
    padded[:size] = np.frombuffer(KINDS["text"](size), np.uint8)
    path = np.empty((count * lanes, 8), np.uint16)
    net_path(frequencies.reshape(-1, 256), np.ascontiguousarray(padded.reshape(lanes, count).T).reshape(-1), path)
    state.start(0, padded[:size].tobytes(), lanes, values=untrained(True))
    stream = bitstream.encode(state, 0, path.reshape(count, lanes, 8), states)
    values, words, cursor = rans.start(stream, states)
    state.start(1, size, lanes, values=untrained(True))
    for t in range(count):
        bitstream.decode_column(state.stack, 1, t, frequencies[t], values, words, cursor)
    rans.finish(values, words, cursor)
    assert state.stack.plain[1, :size].tobytes() == padded[:size].tobytes()


def test_damage_is_an_error(state: MixState) -> None:
    plain = TEXT[:5000]
    for lanes, states in ((1, 1), (2, 8)):
        state.start(0, plain, lanes)
        stream = bitstream.encode(state, 0, states=states)
        random_ = random.Random(3)
        for _ in range(10):
            at = random_.randrange(len(stream))
            bad = [
                stream[:at],
                stream + b"\0\0",
                stream[:at] + bytes([stream[at] ^ 1 << random_.randrange(8)]) + stream[at + 1 :],
            ]
            for payload in [*bad, random_.randbytes(at), b""]:
                state.start(1, len(plain), lanes)
                try:
                    assert bitstream.decode(state, 1, payload, states) != plain or payload == stream
                except CodecError:
                    pass
