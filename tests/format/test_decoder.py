"""The second decoder, which does what the documents say, decodes payloads of all codecs."""

from __future__ import annotations

import ast
import base64
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from nnfs.codec import CODECS
from nnfs.codec.base import CM, CM_LIGHT, NEURAL, PPM, Codec, coder_of
from nnfs.codec.cm import ContextMixing
from nnfs.codec.cmlight import LightMixing
from nnfs.codec.neural import Neural
from nnfs.codec.ppm import PartialMatching
from nnfs.model import delta
from nnfs.model.weights import load_weights
from tests.format import make
from tests.format.decoder import payloads
from tests.format.decoder.models import Model, compose
from tests.format.decoder.rans import Damaged
from tests.harness import FULL
from tests.model.golden import sample

*GOLDEN, MODELS = json.loads(make.GOLDEN.read_text())
DECODER = Path(__file__).with_name("decoder")


@cache
def model(name: str) -> Model | None:
    """A model, as the second decoder reads its file."""
    if not name:
        return None
    if name == "fitted":
        base = model("tiny")
        assert base is not None
        found = compose(base, base64.b64decode(MODELS["fitted"]))
    else:
        found = Model(make.tiny() if name == "tiny" else make.SHIPPED.read_bytes())
    assert found.fingerprint.hex() == MODELS["fingerprints"][name]
    return found


@pytest.mark.parametrize("golden", GOLDEN, ids=[one["name"] for one in GOLDEN])
def test_golden_payloads(golden: dict[str, Any]) -> None:
    plain, payload = base64.b64decode(golden["plain"]), base64.b64decode(golden["payload"])
    assert payloads.decode(golden["codec"], payload, len(plain), model(golden["model"])) == plain


@cache
def ours(codec: int, of: str) -> Codec:
    """The codec of nnfs."""
    if codec == NEURAL:
        tiny = make.tiny()
        files = {
            "tiny": tiny,
            "fitted": delta.compose(tiny, base64.b64decode(MODELS["fitted"])),
            "shipped": make.SHIPPED.read_bytes(),
        }
        return Neural(load_weights(files[of]))
    if codec == PPM:
        return PartialMatching()
    if codec == CM_LIGHT:
        return LightMixing()
    return ContextMixing() if coder_of(codec) == CM else CODECS[codec]


@pytest.mark.parametrize("golden", GOLDEN, ids=[one["name"] for one in GOLDEN])
def test_nnfs_reads_them_for_ever(golden: dict[str, Any]) -> None:
    plain, payload = base64.b64decode(golden["plain"]), base64.b64decode(golden["payload"])
    assert ours(golden["codec"], golden["model"]).decode(payload, len(plain)) == plain


def test_all_kinds_are_there() -> None:
    firsts = {(one["codec"], base64.b64decode(one["payload"])[0]) for one in GOLDEN}
    assert {codec for codec, _ in firsts} == {0, 1, 16, 17, 19, 20, 21}
    assert {first for codec, first in firsts if codec == 17} == {0, 1, 2, 3, 16, 17}
    assert {first for codec, first in firsts if codec == 21} == {3}
    assert {first for codec, first in firsts if codec == 19} == {0, 16}
    assert {first for codec, first in firsts if codec == 20} == {0, 16}
    assert {first & 0xE0 for codec, first in firsts if codec == 16} == {0, 0x20, 0x40}


@pytest.mark.parametrize("name", ["text", "records", "sound, two channels", "fields, offsets", "light mixing, text"])
def test_damage_is_noticed(name: str) -> None:
    golden = next(one for one in GOLDEN if one["name"] == name)
    plain, payload = base64.b64decode(golden["plain"]), bytearray(base64.b64decode(golden["payload"]))
    payload[-1] ^= 1
    with pytest.raises(Damaged, match="does not end as it was begun"):
        payloads.decode(golden["codec"], bytes(payload), len(plain))


def test_the_decoder_imports_nothing_of_nnfs() -> None:
    allowed = {"__future__", "bisect", "dataclasses", "functools", "hashlib", "json", "lzma", "math", "pathlib"}
    allowed |= {"collections", "re", "struct", "typing", "sys"}  # of Python
    allowed |= {"numpy", "zstandard", "lmdb", "xxhash"}  # arrays, zstd frames, B+ trees, XXH3: public formats
    for file in DECODER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.partition(".")[0] in allowed or name.startswith("tests.format.decoder"), f"{file}: {name}"


def test_constants_of_the_decoder_stand_in_the_document() -> None:
    """Both are changed together, or not at all."""
    text = (make.SHIPPED.parents[2] / "codec/FORMAT.md").read_text().replace(",", "")
    sources = [file for file in DECODER.glob("*.py") if file.name not in ("store.py", "vectors.py")]
    found = {number for file in sources for number in re.findall(r"\b(?:0x[0-9A-F]{4,}|\d{4,})\b", file.read_text())}
    assert len(found) > 30
    missing = [number for number in found if not re.search(rf"\b{number}\b", text)]
    assert [number for number in missing if set(number[2:]) != {"F"}] == []  # masks: 2^n - 1


def test_constants_of_vectors_stand_in_the_document() -> None:
    text = (make.SHIPPED.parents[2] / "store/FORMAT.md").read_text().replace(",", "")
    numbers = re.findall(r"\b(?:0x)?([0-9A-F]{4,})\b", (DECODER / "vectors.py").read_text())
    assert len(numbers) > 4
    assert [number for number in numbers if not re.search(rf"\b{number}\b", text)] == []


LONG: dict[str, Callable[[], tuple[int, str, bytes, int]]] = {
    "text": lambda: (17, "", sample(4000, 31), 0),
    "repeats over and over": lambda: (17, "", (sample(700, 32) + b"x") * 6, 0),
    "records": lambda: (17, "", b"".join(pack("<IHB", n * n, n % 999, n % 7) for n in range(600)), 7),
    "network, three lanes, a dictionary": lambda: (16, "fitted", sample(900, 7) + sample(1500, 33) * 2, 3),
}


@pytest.mark.long
@pytest.mark.skipif(not FULL, reason="a minute of plain Python each")
@pytest.mark.parametrize("name", LONG)
def test_longer_chunks_as_the_encoder_makes_them_today(name: str) -> None:
    """Full tables, long matches, counts at their limits: what a few hundred bytes do not reach."""
    codec, of, plain, number = LONG[name]()
    if codec == 17:
        payload = ContextMixing()._mix(plain, number)
    else:
        composed = delta.compose(make.tiny(), base64.b64decode(MODELS["fitted"]))
        payload = make.streams(load_weights(composed), plain, number, 1)
    assert payloads.decode(codec, payload, len(plain), model(of)) == plain
