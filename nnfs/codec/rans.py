# mypy: disable-error-code="no-untyped-def,no-any-return"
"""Binary range-asymmetric numeral systems (rANS, Duda 2013): 16-bit probabilities, 48-bit states, 16-bit words.

Bits come in the coding order of a chunk cut into lanes: column by column, in a column bit 7 to bit 0, of each bit
lane by lane; the bits of lane i go through state i mod `states`. The encoder runs through them backwards, so that the
decoder can follow forwards, one column at a time. (States of 32 bits lose 0.3 % of the size to rounding, of 48 bits
nothing.)

Stream: the states, then the words in the order in which the decoder takes them, all big-endian.

- One state: the encoder starts from 0, and the decoder takes a word whenever its state is below 2^32 and there are
  words left. Nothing is lost but a byte or two. The state takes 5 or 6 bytes, told apart by the stream's length
  (words are even), and as many as it needs when there are no words at all.
- More states: each starts from 2^32, so that it is always known which takes the next word; a bitmap of one bit per
  state (high bit first) tells whether it takes 5 or 6 bytes.

The final states must be the starting ones and no word may be left over: a check of most, not of all damage.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nnfs.errors import CodecError
from nnfs.mixer import native
from nnfs.mixer.compiling import njit

MAX_STATES = 256
LOW = 1 << 32  # a state below takes a word

Words = npt.NDArray[np.uint8]
States = npt.NDArray[np.int64]


@njit(cache=True, nogil=True)
def decode_bit(states, w, p1, stream, cursor):
    """Return the next bit of state `w`, given its probability of being 1.

    Never reads beyond the stream; `cursor[0]` is where it stands.
    """
    x = states[w]
    low = x & 0xFFFF
    if low < p1:
        bit = 1
        x = p1 * (x >> 16) + low
    else:
        bit = 0
        x = (65536 - p1) * (x >> 16) + low - p1
    if x < LOW:
        at = cursor[0]
        if at + 2 <= stream.size:
            x = x << 16 | np.int64(stream[at]) << 8 | np.int64(stream[at + 1])
            cursor[0] = at + 2
    states[w] = x
    return bit


@njit(cache=True, nogil=True)
def _push(x, bit, p1, words, at):
    """Return (state, where the first word starts) after putting a bit in front of what state x holds."""
    f, begin = (p1, 0) if bit else (65536 - p1, p1)
    if x >= f << 32:
        at -= 2
        words[at] = x >> 8 & 255
        words[at + 1] = x & 255
        x >>= 16
    return (x // f) << 16 | (x % f + begin), at


@njit(cache=True, nogil=True)
def _encode_row(bits, probs, words):
    """Encode bits (n,) with probabilities (n,) into one state, backwards.

    Returns (state, where the first word starts).
    """
    x, at = np.int64(0), np.int64(words.size)
    for i in range(bits.size - 1, -1, -1):
        x, at = _push(x, bits[i], np.int64(probs[i]), words, at)
    return x, at


@njit(cache=True, nogil=True)
def _encode(plain, lanes, probs, states, words):
    """Encode backwards with probabilities (columns, lanes, 8). Return where the first word starts.

    `words` is filled from its end.
    """
    size = plain.size
    columns = (size + lanes - 1) // lanes
    width = states.size
    at = np.int64(words.size)
    for t in range(columns - 1, -1, -1):
        active = (size - t + columns - 1) // columns
        for k in range(7, -1, -1):
            for lane in range(active - 1, -1, -1):
                bit = plain[lane * columns + t] >> (7 - k) & 1
                x = states[lane % width]
                states[lane % width], at = _push(x, bit, np.int64(probs[t, lane, k]), words, at)
    return at


def encode(plain: npt.NDArray[np.uint8], lanes: int, probs: npt.NDArray[np.uint16], states: int = 1) -> bytes:
    """Return the stream of a chunk whose bits have these probabilities, `probs` (columns, lanes, 8) in [1, 65535]."""
    values = np.full(states, LOW if states > 1 else 0, np.int64)
    kernels = native.kernels()
    if kernels and 0 < lanes <= plain.size:
        body = kernels.rans(plain, lanes, probs, values).tobytes()
    else:
        words = np.empty(2 * 8 * plain.size + 2, np.uint8)  # a bit costs at most 16
        body = words[_encode(plain, lanes, probs, values, words) :].tobytes()
    return stream(values, body)


def stream(values: States, body: bytes) -> bytes:
    """Return the stream of these states and words."""
    states = values.size
    if states == 1:
        return _single(int(values[0]), body)
    wide = [int(x) >= 1 << 40 for x in values]
    bitmap = bytearray((states + 7) // 8)
    for i, six in enumerate(wide):
        bitmap[i // 8] |= six << (7 - i % 8)
    heads = [int(x).to_bytes(5 + six, "big") for x, six in zip(values, wide, strict=True)]
    return bytes(bitmap) + b"".join(heads) + body


def _single(x: int, body: bytes) -> bytes:
    """Return the stream of one state."""
    if body:
        return x.to_bytes(5 if x < 1 << 40 else 6, "big") + body
    return x.to_bytes((x.bit_length() + 7) // 8, "big")


def encode_row(bits: npt.NDArray[np.uint8], probs: npt.NDArray[np.uint16]) -> bytes:
    """Return the stream of any bits in the order of their coding, with one state."""
    words = np.empty(2 * bits.size + 2, np.uint8)
    x, at = _encode_row(bits, probs, words)
    return _single(int(x), words[at:].tobytes())


def start(stream: bytes, states: int = 1) -> tuple[States, Words, npt.NDArray[np.int64]]:
    """Return (states, words, cursor) to decode with.

    Raises `CodecError` where the stream is too short for its states.
    """
    if not 1 <= states <= MAX_STATES:
        raise CodecError(f"rANS: {states} states")
    if states == 1:
        head = len(stream) if len(stream) <= 4 else 6 - len(stream) % 2
        sizes, at = [head], 0
    else:
        at = (states + 7) // 8
        bitmap = stream[:at]
        if len(bitmap) < at:
            raise CodecError("rANS: stream ends in its head")
        sizes = [5 + (bitmap[i // 8] >> (7 - i % 8) & 1) for i in range(states)]
    if len(stream) < at + sum(sizes):
        raise CodecError("rANS: stream ends in its head")
    values = np.empty(states, np.int64)
    for i, n in enumerate(sizes):
        values[i] = int.from_bytes(stream[at : at + n], "big")
        at += n
    if states > 1 and values.min() < LOW:
        raise CodecError("rANS: impossible state")
    return values, np.frombuffer(stream, np.uint8, offset=at), np.zeros(1, np.int64)


def finish(values: States, words: Words, cursor: npt.NDArray[np.int64]) -> None:
    """Raise `CodecError` unless decoding ended where encoding began."""
    begin = LOW if values.size > 1 else 0
    if int(cursor[0]) != words.size or (values != begin).any():
        raise CodecError("rANS: the stream does not end as it was begun")
