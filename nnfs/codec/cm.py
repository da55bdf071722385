# mypy: disable-error-code="no-untyped-def,no-any-return"
"""The classical cold codec: context mixing over the chunk's own past, least squares for samples and pixels.

It has no network, and one lane. Payload, by its first byte:

- `GENERIC`: a stream (`nnfs.codec.bitstream`); with `X86` added, of what `nnfs.codec.x86` made of the chunk.
- `RECORDS`: the record length (2 bytes), a stream; `X86` as above.
- `NUMBERS`: the layout (1 byte of flags: bit 0 two bytes a sample, 1 big-endian, 2 signed, 3-4 channels - 1, 5-6
  phase, 7 one byte before the first sample; 2 bytes: stride), the bytes that belong to no sample, a stream.

All numbers are big-endian.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from nnfs.codec import bitstream, rans, x86
from nnfs.codec.base import CM
from nnfs.codec.layout import Layout, propose, record_length, values
from nnfs.errors import CodecError
from nnfs.mixer import experts, native, samples, samplestate
from nnfs.mixer.compiling import njit
from nnfs.mixer.state import MixState

GENERIC, RECORDS, NUMBERS, X86 = 0, 1, 2, 16
TRIAL = 16384  # bytes, from the middle, on which layouts compete
TABLE = 20  # binary logarithm of the most lines of the mixer's table: 16 MB
LARGEST = 1 << 22  # bytes of a chunk: 24 times as many are taken while it is decoded

Bytes = npt.NDArray[np.uint8]


@njit(cache=True, nogil=True)
def _decode_samples(s, words, state, cursor):
    bits, bottom = 8 * s.parameters[samplestate.BYTES], experts.bottom_of(s.parameters)
    for p in range(s.value.size):
        samples.begin(s, p)
        low = bottom
        for k in range(bits):
            bit = rans.decode_bit(state, 0, samples.predict(s, k, low), words, cursor)
            samples.learn_bit(s, k, bit)
            low += bit * (np.int64(1) << (bits - k - 1))
        s.value[p] = low
        experts.learn_sample(s, p)


def _pack(layout: Layout) -> bytes:
    flags = (
        (layout.size - 1)
        | layout.big << 1
        | layout.signed << 2
        | (layout.channels - 1) << 3
        | layout.phase << 5
        | layout.skip << 7
    )
    return bytes([NUMBERS, flags]) + layout.stride.to_bytes(2, "big")


def _unpack(head: bytes) -> Layout:
    """Return the layout of a payload. Raises `CodecError`."""
    if len(head) < 4:
        raise CodecError("cm: payload ends in its head")
    flags = head[1]
    channels, phase, stride = (flags >> 3 & 3) + 1, flags >> 5 & 3, int.from_bytes(head[2:4], "big")
    if phase >= channels or 0 < stride <= channels:
        raise CodecError("cm: impossible layout")
    return Layout((flags & 1) + 1, channels, stride, phase, bool(flags & 4), bool(flags & 2), flags >> 7)


def _encode_numbers(plain: Bytes, layout: Layout) -> bytes:
    v = values(plain, layout)
    bits = 8 * layout.size
    s = samplestate.start(v.size, layout.size, layout.channels, layout.stride, layout.phase, layout.signed, v)
    probabilities = np.empty((v.size, bits), np.uint16)
    kernels = native.kernels()
    if kernels:
        kernels.samples(s, probabilities)
    else:
        samples.encode_path(s, probabilities)
    shifted = v.astype(np.int64) - int(experts.bottom_of(s.parameters))
    decisions = (shifted[:, None] >> np.arange(bits - 1, -1, -1) & 1).astype(np.uint8)
    loose = plain[: layout.skip].tobytes() + plain[layout.skip + v.size * layout.size :].tobytes()
    return _pack(layout) + loose + rans.encode_row(decisions.reshape(-1), probabilities.reshape(-1))


def _decode_numbers(payload: bytes, size: int) -> bytes:
    layout = _unpack(payload)
    count = (size - layout.skip) // layout.size
    loose = size - count * layout.size
    if count <= 0 or len(payload) < 4 + loose:
        raise CodecError("cm: payload ends in its head")
    state, words, cursor = rans.start(payload[4 + loose :])
    s = samplestate.start(count, layout.size, layout.channels, layout.stride, layout.phase, layout.signed)
    kernels = native.kernels()
    if kernels:
        kernels.decode_samples(s, state, words, cursor)
    else:
        _decode_samples(s, words, state, cursor)
    rans.finish(state, words, cursor)
    kind = "B" if layout.size == 1 else (">u2" if layout.big else "<u2")
    body = (s.value & (0xFF if layout.size == 1 else 0xFFFF)).astype(kind).tobytes()
    return payload[4 : 4 + layout.skip] + body + payload[4 + layout.skip : 4 + loose]


class ContextMixing:
    """Context mixing without a network. Thread-safe: the large tables are kept per thread."""

    id = CM
    name = "cm"

    def __init__(self) -> None:
        self._local = threading.local()

    def _state(self, size: int) -> MixState:
        state: MixState | None = getattr(self._local, "state", None)
        if state is None or state.size < size:
            state = self._local.state = MixState(1, max(size, 1 << 17), 1, TABLE)
        return state

    def _mix(self, plain: bytes, stride: int, converted: bool = False) -> bytes:
        state = self._state(len(plain))
        state.start(0, plain, 1, stride=stride)
        kind = (RECORDS if stride else GENERIC) + (X86 if converted else 0)
        return bytes([kind]) + (stride.to_bytes(2, "big") if stride else b"") + bitstream.encode(state, 0)

    def _compete(self, plain: bytes, length: int, layouts: list[Layout]) -> int | Layout:
        """Return the record length (0: none) or the layout that makes a piece smallest."""
        begin = max(0, (len(plain) - TRIAL) // 2) // 12 * 12  # so that channels, samples and phases stay where they are
        piece = plain[begin : begin + TRIAL]
        tries: list[tuple[int, int | Layout]] = [(len(self._mix(piece, stride)), stride) for stride in {0, length}]
        tries += [(len(_encode_numbers(np.frombuffer(piece, np.uint8), layout)), layout) for layout in layouts]
        return min(tries, key=lambda one: one[0])[1]

    def encode(self, plain: bytes) -> bytes | None:
        if not plain or len(plain) > LARGEST:
            return None
        code = x86.absolute(plain)
        array = np.frombuffer(code or plain, np.uint8)
        length, layouts = record_length(array), [] if code else propose(array)[:3]
        best = self._compete(code or plain, length, layouts) if length or layouts else 0
        if isinstance(best, Layout):
            payload = _encode_numbers(array, best)
        else:
            payload = self._mix(code or plain, best, code is not None)
        return payload if len(payload) < len(plain) else None

    def decode(self, payload: bytes, plain_length: int) -> bytes:
        if not payload or not 0 < plain_length <= LARGEST:
            raise CodecError("cm: empty payload or impossible length")
        if payload[0] == NUMBERS:
            return _decode_numbers(payload, plain_length)
        kind = payload[0] & ~X86
        if kind not in (GENERIC, RECORDS):
            raise CodecError(f"cm: unknown kind {payload[0]}")
        stride, at = 0, 1
        if kind == RECORDS:
            stride, at = int.from_bytes(payload[1:3], "big"), 3
            if len(payload) < 3 or stride == 0:
                raise CodecError("cm: impossible record length")
        state = self._state(plain_length)
        state.start(0, plain_length, 1, stride=stride)
        plain = bitstream.decode(state, 0, payload[at:])
        return x86.relative(plain) if payload[0] & X86 else plain
