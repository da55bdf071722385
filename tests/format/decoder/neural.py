"""Section 6: codec 16."""

from __future__ import annotations

from functools import cache

from tests.format.decoder import cm
from tests.format.decoder.features import Features, table_bits
from tests.format.decoder.mixing import Mixer, Start
from tests.format.decoder.models import Model
from tests.format.decoder.network import Network
from tests.format.decoder.rans import Damaged, Decoder
from tests.format.decoder.x86 import relative


def dictionary_of(model: Model) -> bytes:
    """7.6: the plain bytes of a model's dictionary."""
    stored = model.tensors["dictionary"].tobytes() if "dictionary" in model.tensors else b""
    return cm.decode(stored[4:], int.from_bytes(stored[:4], "little")) if stored else b""


class Chunk:
    """A chunk that is being decoded."""

    def __init__(self, model: Model, size: int, lanes: int, dictionary: bytes = b"") -> None:
        begin = len(dictionary)
        start = Start(*(model.tensors[f"start.{name}"].tolist() for name in Start._fields))
        lines = 19 if begin else cm.table_bits(size, 18)
        self.mixer = Mixer(size, lanes, lines, start, begin=begin)
        bits = 17 if begin else table_bits(size)
        self.features = Features(self.mixer.past, begin, lanes, bits, model.architecture["ngram_bits"])
        if dictionary:
            self.mixer.enter(dictionary)
            self.features.enter(dictionary)
        network = network_of(model)
        self.lanes = [network.lane() for _ in range(lanes)]

    def column(self, t: int, coder: Decoder) -> None:
        """Decode and learn a column."""
        active = (self.mixer.size - t + self.mixer.columns - 1) // self.mixer.columns
        rows = [self.features.predict(t, i) for i in range(active)]
        frequencies = [lane.forward(row) for lane, row in zip(self.lanes, rows, strict=False)]
        self.mixer.decode_column(t, coder, frequencies)
        self.features.learn(t)


@cache
def network_of(model: Model) -> Network:
    """A model's network."""
    return Network(model)


def decode(payload: bytes, size: int, model: Model) -> bytes:
    """The plain bytes of a payload of codec 16."""
    lanes, states = (payload[0] & 31) + 1, 4 ** (payload[0] >> 6)
    if lanes > size or states > lanes:
        raise Damaged("impossible lanes")
    chunk, coder = Chunk(model, size, lanes, dictionary_of(model)), Decoder(payload[1:], states)
    for t in range(chunk.mixer.columns):
        chunk.column(t, coder)
    coder.finish()
    plain = chunk.mixer.plain()
    return relative(plain) if payload[0] & 32 else plain
