"""Makes the golden payloads: `python -m tests.format.make`. For a new codec id or kind, never to make a test pass.

`golden.json` holds payloads of today's encoders, for ever; the plain bytes are there too, so neither an encoder nor a
generator of samples is needed to judge a decoder.
"""

from __future__ import annotations

import base64
import json
import math
import random
from pathlib import Path
from struct import pack
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from nnfs.codec import cm, cmlight, neural, ppm, x86
from nnfs.codec.fieldlayout import Fields
from nnfs.codec.layout import Layout
from nnfs.codec.storeddictionary import stored_dictionary
from nnfs.codec.zstd import Zstd
from nnfs.model import delta, selftest
from nnfs.model.lanes import lanes_for
from nnfs.model.weights import Weights, load_weights, save_weights
from tests.format.decoder.models import Tensors
from tests.model.golden import sample

GOLDEN = Path(__file__).with_name("golden.json")
SHIPPED = Path(__file__).parents[2] / "nnfs/model/presets/default.safetensors"
LAYOUTS = {
    "sound, two channels": Layout(2, 2, signed=True),
    "sound, big-endian, a byte before it": Layout(2, 1, big=True, skip=1),
    "sound of bytes, four channels": Layout(1, 4, 0, 3, True),
    "picture, three channels": Layout(1, 3, 30, 1),
    "picture, one channel": Layout(1, 1, 33),
    "picture, two bytes, two channels": Layout(2, 2, 14, 1, True, False, 1),
}


FIELDS = {
    "fields, offsets": Fields(8, 4),
    "fields, offsets, turned, three bytes before": Fields(4, 4, 3, True, True),
    "fields, doubles": Fields(8, 8),
    "fields of three bytes, big-endian": Fields(6, 3, 1, True),
    "fields of a byte": Fields(7),
    "fields of five bytes, little-endian, turned": Fields(10, 5, 0, False, True),
}


def tiny() -> bytes:
    """The file of a small model with random weights."""
    with TemporaryDirectory() as folder:
        save_weights(selftest.weights(), f"{folder}/m", {})
        return Path(folder, "m").read_bytes()


def fitted(base: bytes) -> bytes:
    """A delta over a model that changes something of every kind, and has a dictionary."""
    rng = np.random.default_rng(1)
    whole = load_weights(base)

    def small(*shape: int) -> Any:
        return rng.integers(-9, 10, shape, np.int8)

    changes: Tensors = {
        "dictionary": stored_dictionary(sample(400, 7)),
        "biases": (whole.biases * 3 // 4).astype(np.int32),
        "left.layers.0.up": small(128, 3),
        "right.layers.0.up": small(3, 64),
        "left.head": small(256, 2),
        "right.head": small(2, 64),
    }
    for name in ("maps", "match_maps", "weights", "weights_last"):
        like = getattr(whole.start, name)
        changes[f"start.{name}"] = delta.planes(rng.integers(-300, 300, like.shape) * (rng.random(like.shape) < 0.02))
    return delta.pack(whole.fingerprint(), changes)


def code() -> bytes:
    """Bytes that look like x86 code, displacements of every kind and at the edges."""
    rng = random.Random(2)
    out = bytearray()
    for reach in (0, 1, -1, 5000, -5000, (1 << 24) - 1, -(1 << 24), 77, -77, 4096, 1 << 25, -(1 << 30)):
        for head in (b"\xe8", b"\xe9", b"\x0f\x84", b"\xff\x15", b"\xff\x25", b"\x48\x8b\x05", b"\x4c\x8d\x0d"):
            if rng.random() < 0.4:
                out += rng.choice((b"\x90", b"\x55\x48\x89\xe5", b"\xc3")) + head + pack("<i", reach)
    return bytes(out)


def sound(seed: int, size: int) -> bytes:
    """Two channels of 16-bit samples, little-endian."""
    rng = random.Random(seed)
    return b"".join(
        pack("<h", int(9000 * math.sin(i / 9 + channel) + rng.gauss(0, 60))) for i in range(size) for channel in (0, 1)
    )


def offsets(width: int, size: int) -> bytes:
    """Pairs of a length and an offset; at the end something else."""
    rng, at, out = random.Random(width), 1000, bytearray()
    while len(out) < size - 20:
        length = rng.randrange(90)
        out += b"".join((value & (1 << 8 * width) - 1).to_bytes(width, "little") for value in (length, at))
        at += length + 1
    return bytes(out) + sample(20, width)


def numbers(fields: Fields) -> bytes:
    """The records of a layout."""
    return offsets(fields.width, 160) if fields.width != 8 else doubles(160)


def doubles(size: int) -> bytes:
    """A column of prices."""
    rng = random.Random(8)
    return b"".join(pack("<d", round(100 + rng.gauss(0, 3), 2)) for _ in range(size // 8)) + b"end"


def streams(weights: Weights, plain: bytes, lanes: int, states: int) -> bytes:
    """A payload of codec 16 with these lanes and states, which the encoder would choose otherwise."""
    chosen = lanes_for, neural.STATES
    neural.lanes_for, neural.STATES = (lambda _: lanes), states  # type: ignore[assignment, attr-defined]
    try:
        return neural.Neural(weights)._encode([neural.prepared(plain)], lambda: None)[0]
    finally:
        neural.lanes_for, neural.STATES = chosen  # type: ignore[attr-defined]


def payloads() -> list[dict[str, Any]]:
    """All golden payloads, by kind."""
    mixing, small = cm.ContextMixing(), tiny()
    fits = fitted(small)
    text = sample(260, 1)
    records = b"".join(pack("<IHB", 1000 + i, i * 7 & 255, i % 5) + b"abc\0" for i in range(24))
    found: list[dict[str, Any]] = []

    def add(name: str, codec: int, plain: bytes, payload: bytes | None, model: str = "") -> None:
        assert payload is not None
        both = {"plain": base64.b64encode(plain).decode(), "payload": base64.b64encode(payload).decode()}
        found.append({"name": name, "codec": codec, "model": model, **both})

    add("raw", 0, text[:50], text[:50])
    add("zstd", 1, text * 3, Zstd().encode(text * 3))
    add("text", 17, text, mixing.encode(text))
    add("lines and repeats", 17, b"one line\n" * 30, mixing.encode(b"one line\n" * 30))
    add("records", 17, records, mixing._mix(records, 11))
    add("x86 code", 17, code(), mixing._mix(x86.absolute(code()) or b"", 0, True))
    add("records in x86 code", 17, code()[:100], mixing._mix(x86.absolute(code()[:100]) or b"", 7, True))
    for number, (name, layout) in enumerate(LAYOUTS.items()):
        plain = sound(number, 55)[: 211 if layout.size == 2 else 160]
        add(name, 17, plain, cm._encode_numbers(np.frombuffer(plain, np.uint8), layout))
    for name, fields in FIELDS.items():
        for number, end in ((17, ""), (21, ", by its own id")):  # the first versions had none for them
            add(name + end, number, numbers(fields), mixing._encode_fields(numbers(fields), fields))
    one, other, shipped = load_weights(small), load_weights(delta.compose(small, fits)), SHIPPED.read_bytes()
    add("network, one lane", 16, text, streams(one, text, 1, 1), "tiny")
    add("network, three lanes", 16, text, streams(one, text, 3, 1), "tiny")
    add("network, seven lanes, four states", 16, text, streams(one, text, 7, 4), "tiny")
    add("network, x86 code", 16, code(), streams(one, code(), 2, 1), "tiny")
    add("network, a fitted model with a dictionary", 16, text, streams(other, text, 2, 1), "fitted")
    text = text[:150]
    add("network, the model that is shipped", 16, text, streams(load_weights(shipped), text, 1, 1), "shipped")
    skewed = bytes(random.Random(5).choices(range(256), [1 / (i + 1) for i in range(256)], k=1500))
    given = {"text": text * 2, "lines": b"one line\n" * 40, "many symbols": skewed, "x86 code": code()}
    for kind, codec in (("partial matching", ppm.PartialMatching()), ("light mixing", cmlight.LightMixing())):
        for name, plain in given.items():
            add(f"{kind}, {name}", codec.id, plain, codec.encode(plain))
    found.append(
        {
            "fitted": base64.b64encode(fits).decode(),
            "fingerprints": {
                "tiny": one.fingerprint().hex(),
                "fitted": other.fingerprint().hex(),
                "shipped": load_weights(shipped).fingerprint().hex(),
            },
        }
    )
    return found


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(payloads(), indent=1) + "\n")
