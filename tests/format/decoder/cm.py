"""Section 10: codec 17."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from tests.format.decoder import fields
from tests.format.decoder.mixing import Mixer, Start
from tests.format.decoder.rans import Damaged, Decoder
from tests.format.decoder.samples import Layout, Samples
from tests.format.decoder.x86 import relative

START_VALUES = Path(__file__).parents[3] / "nnfs/mixer/mixing.npz"  # the file that the document names


@cache
def start_values() -> Start:
    """The start values of codec 17."""
    with np.load(START_VALUES) as arrays:
        return Start(*(arrays[name].tolist() for name in Start._fields))


def table_bits(size: int, most: int) -> int:
    """5.4: the binary logarithm of the table's lines."""
    return min(max((4 * size - 1).bit_length(), 10), most)


def decode_samples(payload: bytes, size: int) -> bytes:
    """Kind 2."""
    layout = Layout.parse(payload[:4])
    count = (size - layout.skip) // layout.size
    loose = size - count * layout.size
    if count <= 0 or len(payload) < 4 + loose:
        raise Damaged("the payload ends in its head")
    coder = Decoder(payload[4 + loose :])
    values = Samples(count, layout).decode(count, coder)
    coder.finish()
    order = "big" if layout.big else "little"
    body = b"".join((v & (1 << 8 * layout.size) - 1).to_bytes(layout.size, order) for v in values)  # type: ignore[arg-type]
    return payload[4 : 4 + layout.skip] + body + payload[4 + layout.skip : 4 + loose]


def decode(payload: bytes, size: int) -> bytes:
    """The plain bytes of a payload of codec 17."""
    if payload[0] == 2:
        return decode_samples(payload, size)
    if payload[0] == 3:
        return fields.decode(payload, size)
    kind, stride, at = payload[0] & ~16, 0, 1
    if kind == 1:
        stride, at = int.from_bytes(payload[1:3], "big"), 3
    if kind > 1 or (kind == 1 and not stride):
        raise Damaged("unknown kind, or a record length of 0")
    mixer, coder = Mixer(size, 1, table_bits(size, 20), start_values(), stride), Decoder(payload[at:])
    for t in range(size):
        mixer.decode_column(t, coder)
    coder.finish()
    return relative(mixer.plain()) if payload[0] & 16 else mixer.plain()
