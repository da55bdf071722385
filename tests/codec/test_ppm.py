"""The codec `ppm`: native code and numba's write the same, read it again, and refuse damage in the same way."""

from __future__ import annotations

import hashlib

import pytest

from nnfs.codec import ppm
from nnfs.codec.ppm import LARGEST, PartialMatching
from tests.codec.kit import CASES, DAMAGED, SOURCE, Subject
from tests.kernels.kit import library

SUBJECT = Subject(PartialMatching(), ppm, {"native": library, "numba": lambda: None})


@pytest.fixture(params=SUBJECT.engines)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return SUBJECT.use(request.param, monkeypatch)


@pytest.mark.parametrize("case", CASES)
def test_round_trip_with_all_engines(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    SUBJECT.check_round_trip(CASES[case], monkeypatch)


def test_largest_chunk() -> None:
    """The most contexts and states that a chunk can make have room."""
    SUBJECT.check_largest(LARGEST)


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_ends_alike_with_all_engines(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    SUBJECT.check_damage(CASES[case][:9000], monkeypatch)


@pytest.mark.parametrize("payload", [b"", b"\1abc", b"\xff" * 9, b"\0", b"\0\xff\xff\xff\xff\xff"])
def test_impossible_payloads(engine: str, payload: bytes) -> None:
    SUBJECT.check_impossible(payload, LARGEST)


def test_what_does_not_become_smaller(engine: str) -> None:
    for plain in (b"", b"a", b"ab", b"abc", SOURCE.randbytes(500)):
        assert SUBJECT.codec.encode(plain) is None


def test_frozen() -> None:
    """Payloads of an older version must stay readable, byte for byte."""
    payload = SUBJECT.codec.encode(CASES["text"])
    assert payload is not None
    assert (len(payload), hashlib.sha256(payload).hexdigest()[:16]) == FROZEN


def test_workers_serve_it() -> None:
    SUBJECT.check_served()


FROZEN = (4157, "5136754bc2ea83ad")
