"""Prints the worked examples and the digests of `nnfs/codec/FORMAT.md`, computed by the second decoder.

`python -m tests.format.example` puts them into the document; a test compares them with what stands there.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np

from tests.format.decoder import cm, fields, light, ppm, tables
from tests.format.decoder.features import Row
from tests.format.decoder.mixing import Mixer, Seen, branch, place_of
from tests.format.decoder.models import Model
from tests.format.decoder.network import Lane, norm
from tests.format.decoder.neural import Chunk
from tests.format.decoder.rans import Decoder
from tests.format.decoder.samples import Layout, Samples
from tests.format.decoder.x86 import relative

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "nnfs/codec/FORMAT.md"
SHIPPED = ROOT / "nnfs/model/presets/default.safetensors"
PLAIN = b"abab"
MATCHED = "0061036e0fa71940"  # `abcabcabca` by codec 19


def encode(bits: list[int], probabilities: list[int]) -> bytes:
    """Section 4: the stream of bits, with one state."""
    x, words = 0, b""
    for bit, p in zip(reversed(bits), reversed(probabilities), strict=True):
        f, b = (p, 0) if bit else (65536 - p, p)
        if x >= f << 32:
            words, x = (x & 0xFFFF).to_bytes(2, "big") + words, x >> 16
        x = (x // f << 16) + x % f + b
    head = (5 if x < 1 << 40 else 6) if words else (x.bit_length() + 7) // 8
    return x.to_bytes(head, "big") + words


class Known(Decoder):
    """Takes the place of the entropy coder where the bits are known, and notes their probabilities."""

    def __init__(self, bits: Iterable[int]) -> None:
        super().__init__(b"")
        self.bits, self.probabilities = list(bits), list[int]()

    def bit(self, lane: int, p: int) -> int:
        self.probabilities.append(p)
        return self.bits[len(self.probabilities) - 1]

    def stream(self) -> bytes:
        """All of them, encoded."""
        return encode(self.bits, self.probabilities)


def bits_of(values: Iterable[int], width: int = 8) -> list[int]:
    """The bits of numbers in coding order."""
    return [value >> k & 1 for value in values for k in reversed(range(width))]


def digest(numbers: Iterable[int]) -> str:
    """Return the digest of a table."""
    return blake2b(np.array(list(numbers), np.int64).astype("<u4").tobytes(), digest_size=16).hexdigest()


def digests() -> list[str]:
    """Section 3.5."""
    made = {
        "STRETCH": tables.STRETCH,
        "SQUASH": tables.SQUASH,
        "FINE": tables.FINE,
        "COARSE": tables.COARSE,
        "NEXT": [after for pair in tables.NEXT for after in pair],
        "COUNTS": [count for pair in tables.COUNTS for count in pair],
        "an untrained map": tables.untrained_map(),
        "a refining map, count 6": tables.refining_map(6),
    }
    table = [f"| {name} | {len(numbers)} | {digest(numbers)} |" for name, numbers in made.items()]
    return ["| table | numbers | digest |", "|---|---|---|", *table]


def start_values() -> list[str]:
    """Section 10.3."""
    lines = ["| array | type | shape | digest |", "|---|---|---|---|"]
    with np.load(cm.START_VALUES) as arrays:
        for name in ("maps", "match_maps", "weights", "weights_last"):
            array = arrays[name]
            shape = ", ".join(map(str, array.shape))
            lines.append(f"| {name} | {array.dtype} | ({shape}) | {digest(array.reshape(-1).tolist())} |")
    return lines


def light_start_values() -> list[str]:
    """Section 13.5."""
    lines = ["| array | type | shape | digest |", "|---|---|---|---|"]
    with np.load(light.START_VALUES) as arrays:
        for name in light.Start._fields:
            array = arrays[name]
            shape = ", ".join(map(str, array.shape))
            lines.append(f"| {name} | {array.dtype} | ({shape}) | {digest(array.reshape(-1).tolist())} |")
    return lines


def coder() -> list[str]:
    """Section 11.1."""
    bits, probabilities = [1, 0, 1, 1, 0, 1, 0, 0], [300, 65000, 1000, 200, 64000, 50, 65000, 65300]
    stream = encode(bits, probabilities)
    lines = [f"stream = {stream.hex()}"]
    decoder = Decoder(stream)
    for p in probabilities:
        before = decoder.states[0]
        bit = decoder.bit(0, p)
        lines.append(f"p = {p}: state {before}, bit {bit}, state {decoder.states[0]}")
    decoder.finish()
    return lines


def of_bit(seen: Seen) -> list[str]:
    """Return the inputs from which a bit was predicted."""
    inputs = {i: x for i, x in enumerate(seen.inputs) if x}
    return [
        f"  c0 = {seen.node}, histories = {seen.histories}",
        f"  inputs that are not 0 = {inputs}",
        f"  rows = {seen.rows}, answers = {seen.answers}",
        f"  total = {seen.total}, refining rows = {list(seen.refined)}, cell = {seen.cell}, p = {seen.p}",
    ]


def mixing() -> list[str]:
    """Section 11.2."""
    mixer, known = Mixer(len(PLAIN), 1, cm.table_bits(len(PLAIN), 20), cm.start_values()), Known(bits_of(PLAIN))
    lines = []
    for t in range(len(PLAIN)):
        mixer.decode_column(t, known)
        lane = mixer.lane[0]
        lines.append(f"column {t}: p = {known.probabilities[-8:]}")
        if t == 3:
            place, check = place_of(lane.hashes[1], 1, mixer.mask)
            lines.append(f"  hash of context 1 = {lane.hashes[1]}, of context 11 = {lane.hashes[11]}")
            lines.append(f"  high nibble of context 1: place = {place}, check = {check}")
            lines += of_bit(lane.seen[1])
    payload = b"\0" + known.stream()
    assert cm.decode(payload, len(PLAIN)) == PLAIN
    return [f"plain = {PLAIN.hex()}, payload = {payload.hex()}", *lines]


def of_column(lane: Lane, row: Row, forward: Callable[[Row], list[int]]) -> list[str]:
    """Return the network's result of a row: the first numbers of some vectors."""
    x = lane.embed(row)
    n = norm(x)
    act = lane.n.layers[0][0](n)
    frequencies = forward(row)
    return [
        f"  rows of inputs = {row.inputs}",
        f"  n-gram rows = {row.ngrams}",
        f"  candidates = {row.candidates}, buckets = {row.buckets}",
        f"  residual stream begins {x[:4].tolist()}, sum of squares = {int((x * x).sum())}",
        f"  norm begins {n[:4].tolist()}, queries of layer 0 begin {act[:4].tolist()}",
        f"  logits: a {lane.logits[97]}, b {lane.logits[98]}, greatest {lane.logits.max()}",
        f"  frequencies: a {frequencies[97]}, b {frequencies[98]}, sum {sum(frequencies)}",
        f"  the network's p of the first bits (0, 1) = {branch(frequencies, 1, 0)}, {branch(frequencies, 2, 1)}",
    ]


def network() -> list[str]:
    """Section 11.3."""
    model = Model(SHIPPED.read_bytes())
    chunk, known = Chunk(model, len(PLAIN), 1), Known(bits_of(PLAIN))
    lines = []
    for t in range(len(PLAIN)):
        lane = chunk.lanes[0]
        row = chunk.features.predict(t, 0)
        if t in (0, 3):
            lines.append(f"column {t}:")
            told = list[str]()
            lane.forward = partial(_told, told, lane, lane.forward)  # type: ignore[method-assign]
            chunk.column(t, known)
            del lane.forward
            lines += told
            assert row.inputs[0] == (256 if t == 0 else PLAIN[t - 1])
        else:
            chunk.column(t, known)
        lines.append(f"column {t}: p = {known.probabilities[-8:]}")
    payload = b"\0" + known.stream()
    fingerprint = model.fingerprint.hex()
    return [f"model = {fingerprint[:64]}...", f"plain = {PLAIN.hex()}, payload = {payload.hex()}", *lines]


def _told(lines: list[str], lane: Lane, forward: Callable[[Row], list[int]], row: Row) -> list[int]:
    result: list[int] = []

    def once(row: Row) -> list[int]:
        result.extend(forward(row))
        return result

    lines += of_column(lane, row, once)
    return result


def samples() -> list[str]:
    """Section 11.4."""
    values = [10, 12, 14, 16]
    layout = Layout(1, False, False, 1, 0, 0, 0)
    state, known = Samples(len(values), layout), Known(bits_of(values))
    lines = []
    begin = state.begin

    def told(p: int) -> None:
        begin(p)
        lines.append(f"sample {p}: mean = {state.mean}, place = {state.place}")
        lines.append(f"  narrow = {state.narrow}")

    state.begin = told  # type: ignore[method-assign]
    state.decode(len(values), known)
    for p in range(len(values)):
        lines.insert(3 * p + 2, f"  p = {known.probabilities[8 * p : 8 * p + 8]}")
    payload = bytes([2, 0, 0, 0]) + known.stream()
    assert cm.decode(payload, len(values)) == bytes(values)
    lines.append(f"two bytes, two channels, samples 51 and 6789: w[0] of solver 0, channel 1 = {_first_weight()}")
    return [f"plain = {bytes(values).hex()}, payload = {payload.hex()}", *lines]


def _first_weight() -> int:
    """A weight whose computation overflows."""
    state = Samples(4, Layout(2, False, True, 2, 0, 0, 0))
    state.decode(2, Known(bits_of([51 + 32768, 6789 + 32768], 16)))
    return state.solvers[0][1].w[0]


def x86() -> list[str]:
    """Section 11.5."""
    converted = bytes.fromhex("90 e8 10 00 00 00 48 8b 05 0d 01 00 00 0f 84 00 00 00 ff 90 90 90 90 90 90 90")
    return [f"decoded = {converted.hex(' ')}", f"chunk   = {relative(converted).hex(' ')}"]


def partial_matching() -> list[str]:
    """Section 11.6. The stream is the golden payload's: the second decoder has no encoder."""
    payload, size = bytes.fromhex(MATCHED), 10
    model, lines = ppm.Model(ppm.Coder(payload[1:])), list[str]()
    for t in range(size):
        model.told.clear()
        symbol = model.symbol()
        lines.append(f"byte {t} = {symbol:02x}; range = {model.coder.range}, code = {model.coder.code}")
        lines += [f"  {told}" for told in model.told]
        lines.append(f"  fall = {model.fall}, run = {model.run}, text has {len(model.text)} bytes")
    model.coder.finish()
    return [f"plain = {ppm.decode(payload, size).hex()}, payload = {payload.hex()}", *lines]


def light_mixing() -> list[str]:
    """Section 11.7."""
    plain = b"abcdefgabcdefg"
    state, known, lines = light.Light(len(plain)), Known(bits_of(plain)), list[str]()
    for t in range(len(plain)):
        state.byte(t, known)
        match = f"point = {state.point}, length = {state.length}" if state.point else "no match"
        lines.append(f"byte {t}: p = {state.told[-8:]}, {match}")
    payload = bytes([0]) + known.stream()
    assert light.decode(payload, len(plain)) == plain
    return [f"plain = {plain.hex()}, payload = {payload.hex()}", *lines]


def numbers() -> list[str]:
    """Section 11.8."""
    plain = bytes.fromhex("0500000064000000 0700000069000000 0300000070000000")
    layout = fields.Layout(4, 0, False, False, 8)
    state, known, lines = fields.Fields(len(plain), layout), Known(bits_of(plain)), list[str]()
    for t in range(len(plain)):
        state.byte(t, known)
        if t % 8 == 4:
            lines.append(f"byte {t}: guesses (byte, difference, hits, noise) = {[tuple(one) for one in state.guesses]}")
            lines.append(f"  p = {state.told[-8:]}")
    payload = bytes([3, 3, 0, 8]) + known.stream()
    assert cm.decode(payload, len(plain)) == plain
    return [f"plain = {plain.hex()}, payload = {payload.hex()}", *lines]


def fenced(lines: list[str]) -> list[str]:
    """A block of code of at most 100 columns; what is longer goes on in lines that are indented further."""
    wrapped = []
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        wrapped += textwrap.wrap(line, 98, subsequent_indent=indent, drop_whitespace=True) or [""]
    return ["```", *wrapped, "```"]


EXAMPLES: dict[str, Callable[[], list[str]]] = {
    "11.1 The entropy coder: eight bits, one state": coder,
    "11.2 Context mixing: codec 17, kind 0": mixing,
    "11.3 The network: codec 16 with the model that nnfs ships": network,
    "11.4 Samples: codec 17, kind 2, one byte, one channel": samples,
    "11.5 Addresses": x86,
    "11.6 Partial matching: codec 19": partial_matching,
    "11.7 Context mixing: codec 20": light_mixing,
    "11.8 Fields: codec 21, records of a length and an offset": numbers,
}


def examples() -> list[str]:
    """Section 11."""
    lines = []
    for title, make in EXAMPLES.items():
        lines += [f"### {title}", "", *fenced(make()), ""]
    return lines[:-1]


SECTIONS = {
    "digests": digests,
    "start values": start_values,
    "examples": examples,
    "start values of codec 20": light_start_values,
}


def filled(text: str) -> str:
    """The document with all that is computed, as it should be."""
    for name, make in SECTIONS.items():
        block = "\n".join([f"<!-- {name} -->", *make(), f"<!-- end of {name} -->"])
        pattern = rf"<!-- {name} -->\n(.*?<!-- end of {name} -->)?"
        text = re.sub(pattern, lambda _, block=block: block + "\n", text, count=1, flags=re.DOTALL)  # type: ignore[misc]
        text = text.replace(f"<!-- end of {name} -->\n\n\n", f"<!-- end of {name} -->\n\n")
    return text.rstrip("\n") + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text()))
