"""The codec `cm-light`: native code and numba's write the same, read it again, and refuse damage in the same way."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from functools import partial

import pytest

from nnfs.codec import NAMES
from nnfs.codec.base import CM_LIGHT
from nnfs.codec.cmlight import LightMixing
from nnfs.errors import CodecError
from nnfs.mixer import native
from nnfs.mixer.lightstate import LARGEST
from nnfs.workers.catalogue import Catalogue
from nnfs.workers.wire import NO_MODEL
from tests.kernels.kit import library
from tests.model.golden import sample

CODEC = LightMixing()
SOURCE = random.Random(6)
CASES = {
    "text": sample(20000, 3),
    "one symbol": b"a" * 9000,
    "all symbols": bytes(range(256)) * 20,
    "skewed": bytes(SOURCE.choices(range(256), [1 / (i + 1) for i in range(256)], k=20000)),
    "two symbols": bytes(SOURCE.choices(b"ab", [9, 1], k=9000)),
    "noise that comes back": SOURCE.randbytes(3000) * 4,
    "a few bytes": b"a" * 40,
}
NATIVE = {level: native.Kernels(library(), level) for level in library().levels}
ENGINES = {level: (lambda kernels=kernels: kernels) for level, kernels in NATIVE.items()} | {"numba": lambda: None}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(native, "kernels", ENGINES[request.param])
    return str(request.param)


def of(engine: str, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> object:
    with monkeypatch.context() as patch:
        patch.setattr(native, "kernels", ENGINES[engine])
        try:
            return work()
        except CodecError as error:
            return str(error)


@pytest.mark.parametrize("case", CASES)
def test_round_trip_with_both_engines(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = CASES[case]
    made = [of(name, monkeypatch, lambda: CODEC.encode(plain)) for name in ENGINES]
    payload = made[0]
    assert all(other == payload for other in made)
    assert isinstance(payload, bytes)
    assert len(payload) < len(plain)
    for name in ENGINES:
        assert of(name, monkeypatch, lambda: CODEC.decode(payload, len(plain))) == plain


def test_largest_chunk() -> None:
    """A chunk longer than those that nnfs makes is one that others may have made."""
    plain = bytes(SOURCE.choices(range(40), k=LARGEST))
    payload = CODEC.encode(plain)
    assert payload is not None
    assert CODEC.decode(payload, LARGEST) == plain
    assert CODEC.encode(plain + b"a") is None


@pytest.mark.parametrize("case", ["text", "skewed", "noise that comes back"])
def test_damage_ends_alike_with_both_engines(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, source = CASES[case][:9000], random.Random(7)
    payload = CODEC.encode(plain)
    assert payload is not None
    for _ in range(30):
        bad = bytearray(payload)
        for _ in range(source.randrange(1, 4)):
            bad[source.randrange(1, len(bad))] = source.randrange(256)
        bad = bad[: source.choice([len(bad), source.randrange(1, len(bad))])] + source.randbytes(source.choice([0, 9]))
        decode = partial(CODEC.decode, bytes(bad), len(plain))
        ends = [of(name, monkeypatch, decode) for name in ENGINES]
        assert all(end == ends[0] for end in ends)
        assert ends[0] != plain or bytes(bad) == payload


@pytest.mark.parametrize("payload", [b"", b"\1abc", b"\xff" * 9, b"\0\0\1", b"\0\xff\xff\xff\xff\xff"])
def test_impossible_payloads(engine: str, payload: bytes) -> None:
    with pytest.raises(CodecError):
        CODEC.decode(payload, 100)
    for size in (0, -1, LARGEST + 1):
        with pytest.raises(CodecError):
            CODEC.decode(payload, size)


def test_what_does_not_become_smaller(engine: str) -> None:
    for plain in (b"", b"a", SOURCE.randbytes(500)):
        assert CODEC.encode(plain) is None


def test_frozen() -> None:
    """Payloads of an older version must stay readable, byte for byte."""
    payload = CODEC.encode(CASES["text"])
    assert payload is not None
    assert (len(payload), hashlib.sha256(payload).hexdigest()[:16]) == FROZEN


def test_workers_serve_it() -> None:
    codec = Catalogue().find(CM_LIGHT, NO_MODEL)
    plain = CASES["text"]
    (payload,) = codec.encode_many([plain])
    assert payload is not None
    assert codec.decode_many([(payload, len(plain))]) == [plain]
    assert NAMES[CM_LIGHT] == "cm-light"
    assert Catalogue().resolve("cm-light") == (CM_LIGHT, NO_MODEL)


FROZEN = (2959, "ef6e7ee8cd92911f")
