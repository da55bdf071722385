# mypy: disable-error-code="no-untyped-def,no-any-return"
"""The classical cold codec: context mixing over the chunk's own past, least squares for samples and pixels.

It has no network, and one lane. Payload, by its first byte:

- `GENERIC`: a stream (`nnfs.codec.bitstream`); with `X86` added, of what `nnfs.codec.x86` made of the chunk.
- `RECORDS`: the record length (2 bytes), a stream; `X86` as above.
- `FIELDS`: the layout (1 byte: bits 0-2 bytes of a field - 1, 3-5 bytes before the first, 6 big-endian, 7 turned; 2
  bytes: record length), a stream.
- `NUMBERS`: the layout (1 byte of flags: bit 0 two bytes a sample, 1 big-endian, 2 signed, 3-4 channels - 1, 5-6
  phase, 7 one byte before the first sample; 2 bytes: stride), the bytes that belong to no sample, a stream.

All numbers are big-endian.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from nnfs.codec import bitstream, fieldlayout, rans, x86
from nnfs.codec.base import CM
from nnfs.codec.fieldlayout import Fields
from nnfs.codec.layout import Layout, order0, propose, record_length, repeats, values
from nnfs.errors import CodecError
from nnfs.mixer import experts, fields, native, samples, samplestate
from nnfs.mixer.compiling import njit
from nnfs.mixer.fieldstate import FieldState
from nnfs.mixer.state import MixState

GENERIC, RECORDS, NUMBERS, FIELDS, X86 = 0, 1, 2, 3, 16
TRIAL = 16384  # bytes on which layouts compete
NEAR = 1.2  # times the size by samples may an estimate of fields be
MIXED = 0.9  # of a piece's size must fields make where not all of the chunk looks so
EMPTY = 0.5  # of a chunk's bits per byte, order 0: a piece with less tells nothing
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


def _piece(plain: bytes, begin: int | None = None) -> tuple[bytes, int]:
    """Return the bytes on which layouts compete, and where they begin: from about `begin` on, else in the middle.

    If the middle is nearly empty (the margin of a picture), they are the quarter's first that say most.
    """
    room = max(0, len(plain) - TRIAL)
    if begin is None:
        begin, array = room // 2, np.frombuffer(plain, np.uint8)
        if order0(array[begin : begin + TRIAL]) < EMPTY * order0(array):
            begin = max((room * n // 4 for n in range(5)), key=lambda at: order0(array[at : at + TRIAL]))
    least = min(begin, room)
    least = least // 24 * 24  # so that channels, samples, phases and fields stay where they are
    return plain[least : least + TRIAL], least


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

    def _fields(self) -> FieldState:
        state: FieldState | None = getattr(self._local, "fields", None)
        if state is None:
            state = self._local.fields = FieldState()
        return state

    def _encode_fields(self, plain: bytes, layout: Fields) -> bytes:
        shown = fieldlayout.turned(plain, layout) if layout.turned else plain
        s = self._fields().start(shown, layout.stride, layout.width, layout.skip, layout.big)
        path, kernels = np.empty((len(plain), 8), np.uint16), native.kernels()
        if kernels:
            kernels.fields(s, path)
        else:
            fields.run(s, path, np.zeros(2, np.int64), np.zeros(0, np.uint8), True)
        flags = (layout.width - 1) | layout.skip << 3 | layout.big << 6 | layout.turned << 7
        return bytes([FIELDS, flags]) + layout.stride.to_bytes(2, "big") + rans.encode(s.plain, 1, path[:, None])

    def _decode_fields(self, payload: bytes, size: int) -> bytes:
        if len(payload) < 4:
            raise CodecError("cm: payload ends in its head")
        flags, stride = payload[1], int.from_bytes(payload[2:4], "big")
        layout = Fields(stride, (flags & 7) + 1, flags >> 3 & 7, bool(flags & 64), bool(flags & 128))
        if not stride or stride % layout.width or layout.skip >= layout.width:
            raise CodecError("cm: impossible fields")
        s = self._fields().start(size, stride, layout.width, layout.skip, layout.big)
        states, words, cursor = rans.start(payload[4:])
        kernels = native.kernels()
        if kernels:
            kernels.decode_fields(s, states, words, cursor)
        else:
            both = np.array([states[0], 0])
            fields.run(s, np.zeros((0, 8), np.uint16), both, words, False)
            states[0], cursor[0] = both
        rans.finish(states, words, cursor)
        plain: bytes = s.plain.tobytes()
        return fieldlayout.turned(plain, layout) if layout.turned else plain

    def _mix(self, plain: bytes, stride: int, converted: bool = False) -> bytes:
        state = self._state(len(plain))
        state.start(0, plain, 1, stride=stride)
        kind = (RECORDS if stride else GENERIC) + (X86 if converted else 0)
        return bytes([kind]) + (stride.to_bytes(2, "big") if stride else b"") + bitstream.encode(state, 0)

    def _compete(self, plain: bytes, length: int, layouts: list[Layout]) -> tuple[int | Layout, int]:
        """Return the record length (0: none) or the layout that makes a piece smallest, and its size."""
        piece, _ = _piece(plain)
        tries: list[tuple[int, int | Layout]] = [(len(self._mix(piece, stride)), stride) for stride in {0, length}]
        tries += [(len(_encode_numbers(np.frombuffer(piece, np.uint8), layout)), layout) for layout in layouts]
        size, best = min(tries, key=lambda one: one[0])
        return best, size

    def _usual(self, plain: bytes, code: bytes | None, best: int | Layout) -> bytes:
        """Return the payload of a chunk, or of what became of it as x86 code, by a record length or a layout."""
        if not isinstance(best, Layout):
            return self._mix(code or plain, best, code is not None)
        payload = _encode_numbers(np.frombuffer(plain, np.uint8), best)
        return min(payload, self._mix(plain, 0), key=len) if repeats(plain) else payload

    def _as_fields(self, plain: bytes, code: bytes | None, best: int | Layout, size: int) -> tuple[Fields | None, bool]:
        """Return the layout of fields that does better on a piece, and whether the whole chunk looks so.

        Better than `best`, which makes `size` bytes of the usual piece, 0 if that is not known.
        """
        found = fieldlayout.strides(np.frombuffer(plain, np.uint8), code is not None)
        seen = [stride for stride, _ in found if stride]
        if not seen:
            return None, False
        in_middle = found[len(found) // 2][0] > 0
        stride, begin = found[len(found) // 2] if in_middle else next(one for one in found if one[0])
        piece, begin = _piece(plain, None if in_middle else begin)
        if not in_middle or not size:
            size = len(self._usual(piece, x86.absolute(piece) if code else None, best))
        # Samples are foretold better than fields, so fields that do not come near need not be tried
        most = NEAR * 8 * size / len(piece) if isinstance(best, Layout) else np.inf
        layouts = [one for cost, one in fieldlayout.propose(np.frombuffer(piece, np.uint8), stride) if cost < most]
        is_all = len(seen) == len(found)
        if not is_all:
            size = int(size * MIXED)
        if layouts and layouts[0].width > 1 and not layouts[0].big and is_all:
            layouts.append(replace(layouts[0], big=True, turned=True))
        sizes = [(len(self._encode_fields(piece, one)), n) for n, one in enumerate(layouts)]
        least, n = min(sizes, default=(size, 0))
        return (fieldlayout.moved(layouts[n], begin), is_all) if least < size else (None, False)

    def encode(self, plain: bytes) -> bytes | None:
        if not plain or len(plain) > LARGEST:
            return None
        code = x86.absolute(plain)
        array = np.frombuffer(code or plain, np.uint8)
        length, layouts = record_length(array), [] if code else propose(array)[:3]
        best, size = self._compete(code or plain, length, layouts) if length or layouts else (0, 0)
        layout, is_all = self._as_fields(plain, code, best, size)
        payload = self._encode_fields(plain, layout) if layout else b""
        if not is_all:
            payload = min((one for one in (payload, self._usual(plain, code, best)) if one), key=len)
        return payload if len(payload) < len(plain) else None

    def decode(self, payload: bytes, plain_length: int) -> bytes:
        if not payload or not 0 < plain_length <= LARGEST:
            raise CodecError("cm: empty payload or impossible length")
        if payload[0] == NUMBERS:
            return _decode_numbers(payload, plain_length)
        if payload[0] == FIELDS:
            return self._decode_fields(payload, plain_length)
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
