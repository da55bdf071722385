"""The second decoder, which does what the documents say, decodes payloads of all codecs."""

from __future__ import annotations

import ast
import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.format import make
from tests.format.decoder import payloads
from tests.format.decoder.models import Model, compose
from tests.format.decoder.rans import Damaged

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


def test_all_kinds_are_there() -> None:
    firsts = {(one["codec"], base64.b64decode(one["payload"])[0]) for one in GOLDEN}
    assert {codec for codec, _ in firsts} == {0, 1, 16, 17}
    assert {first for codec, first in firsts if codec == 17} == {0, 1, 2, 16, 17}
    assert {first & 0xE0 for codec, first in firsts if codec == 16} == {0, 0x20, 0x40}


@pytest.mark.parametrize("name", ["text", "records", "sound, two channels"])
def test_damage_is_noticed(name: str) -> None:
    golden = next(one for one in GOLDEN if one["name"] == name)
    plain, payload = base64.b64decode(golden["plain"]), bytearray(base64.b64decode(golden["payload"]))
    payload[-1] ^= 1
    with pytest.raises(Damaged, match="does not end as it was begun"):
        payloads.decode(golden["codec"], bytes(payload), len(plain))


def test_the_decoder_imports_nothing_of_nnfs() -> None:
    allowed = {"__future__", "bisect", "dataclasses", "functools", "hashlib", "json", "lzma", "math", "pathlib"}
    allowed |= {"collections", "struct", "typing", "sys"}  # of Python
    allowed |= {"numpy", "zstandard", "lmdb", "xxhash"}  # arrays, zstd frames, B+ trees, XXH3: public formats
    for file in DECODER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.partition(".")[0] in allowed or name.startswith("tests.format.decoder"), f"{file}: {name}"
