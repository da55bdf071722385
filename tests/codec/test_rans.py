"""Binary rANS: exact inverse, next to no overhead, an independent decoder, a library's sizes, damage."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from numba import njit

from nnfs.codec import rans
from nnfs.errors import CodecError


def drawn(seed: int, count: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (bits, probabilities of 1), the bits drawn by these."""
    source = np.random.default_rng(seed)
    if kind == "even":
        p = source.integers(1, 65536, count)
    elif kind == "certain":
        p = np.where(source.random(count) < 0.5, source.integers(1, 4, count), 65536 - source.integers(1, 4, count))
    else:  # the least likely bit, always
        p = np.where(source.random(count) < 0.5, 1, 65535)
        return (p == 1).astype(np.uint8), p.astype(np.uint16)
    return (source.random(count) * 65536 < p).astype(np.uint8), p.astype(np.uint16)


def information(bits: np.ndarray, p: np.ndarray) -> float:
    """Return the bytes that no coder can go below."""
    return float(-np.log2(np.where(bits, p, 65536.0 - p) / 65536).sum() / 8)


def plain_decoder(stream: bytes, p: list[int]) -> list[int]:
    """Decode one state as the module's docstring has it, in plain Python."""
    head = len(stream) if len(stream) <= 4 else 6 - len(stream) % 2
    x, rest, bits = int.from_bytes(stream[:head], "big"), stream[head:], []
    for p1 in p:
        high, low = divmod(x, 65536)
        bits.append(int(low < p1))
        x = p1 * high + low if low < p1 else (65536 - p1) * high + low - p1
        if x < 1 << 32 and rest:
            x, rest = x << 16 | int.from_bytes(rest[:2], "big"), rest[2:]
    assert x == 0
    assert not rest
    return bits


@njit
def _decode(p: Any, states: Any, words: Any, cursor: Any) -> Any:
    bits = np.empty(p.size, np.uint8)
    for i in range(p.size):
        bits[i] = rans.decode_bit(states, 0, np.int64(p[i]), words, cursor)
    return bits


@pytest.mark.parametrize("kind", ["even", "certain", "wrong"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 16, 100, 5000])
def test_row(kind: str, count: int) -> None:
    bits, p = drawn(count, count, kind)
    stream = rans.encode_row(bits, p)
    assert len(stream) <= information(bits, p) * 1.00001 + 3
    assert plain_decoder(stream, p.tolist()) == bits.tolist()
    states, words, cursor = rans.start(stream)
    assert _decode(p, states, words, cursor).tolist() == bits.tolist()
    rans.finish(states, words, cursor)


def test_against_a_library() -> None:
    constriction = pytest.importorskip("constriction")
    bits, p = drawn(9, 20000, "even")
    coder = constriction.stream.stack.AnsCoder()
    model = constriction.stream.model.Bernoulli(perfect=False)
    coder.encode_reverse(bits.astype(np.int32), model, p.astype(np.float64) / 65536)
    theirs = len(coder.get_compressed()) * 4
    assert theirs - 12 <= len(rans.encode_row(bits, p)) <= theirs + 2


def test_frozen() -> None:
    bits, p = drawn(4, 200, "even")
    assert rans.encode_row(bits, p).hex() == FROZEN
    assert rans.encode_row(np.zeros(0, np.uint8), np.zeros(0, np.uint16)) == b""


def test_damage() -> None:
    """Any bytes decode to something within the stream's bounds, or are refused; `finish` sees nearly all damage."""
    bits, p = drawn(5, 4000, "even")
    stream = rans.encode_row(bits, p)
    source, unseen = random.Random(6), 0
    for i in range(300):
        at = source.randrange(len(stream))
        bad = [stream[:at], stream[:at] + bytes([stream[at] ^ 1 << i % 8]) + stream[at + 1 :], source.randbytes(at)][
            i % 3
        ]
        states, words, cursor = rans.start(bad)
        _decode(p, states, words, cursor)
        try:
            rans.finish(states, words, cursor)
            unseen += 1
        except CodecError:
            pass
    assert unseen <= 10  # the chunk's hash sees the rest


@pytest.mark.parametrize(
    ("stream", "states"),
    [(b"", 2), (b"\x00", 3), (b"\xff" + b"\1" * 31, 8), (b"\0\0\0\1\0\0\1", 2), (b"", 0), (b"", 999)],
)
def test_impossible_heads(stream: bytes, states: int) -> None:
    with pytest.raises(CodecError):
        rans.start(stream, states)


FROZEN = "031184388e8c39c5349c63ee43d36dfd9dbe5889a5"
