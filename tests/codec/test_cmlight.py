"""The codec `cm-light`: native code and numba's write the same, read it again, and refuse damage in the same way."""

from __future__ import annotations

import hashlib

import pytest

from nnfs.codec.cmlight import LightMixing
from nnfs.mixer import native
from nnfs.mixer.lightstate import LARGEST
from tests.codec.kit import CASES, DAMAGED, SOURCE, Subject
from tests.kernels.kit import library

NATIVE = {level: native.Kernels(library(), level) for level in library().levels}
ENGINES = {level: (lambda kernels=kernels: kernels) for level, kernels in NATIVE.items()} | {"numba": lambda: None}
SUBJECT = Subject(LightMixing(), native, ENGINES)


@pytest.fixture(params=SUBJECT.engines)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return SUBJECT.use(request.param, monkeypatch)


@pytest.mark.parametrize("case", CASES)
def test_round_trip_with_all_engines(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    SUBJECT.check_round_trip(CASES[case], monkeypatch)


def test_largest_chunk() -> None:
    """A chunk longer than those that nnfs makes is one that others may have made."""
    SUBJECT.check_largest(LARGEST)


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_ends_alike_with_all_engines(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    SUBJECT.check_damage(CASES[case][:9000], monkeypatch)


@pytest.mark.parametrize("payload", [b"", b"\1abc", b"\xff" * 9, b"\0\0\1", b"\0\xff\xff\xff\xff\xff"])
def test_impossible_payloads(engine: str, payload: bytes) -> None:
    SUBJECT.check_impossible(payload, LARGEST)


def test_what_does_not_become_smaller(engine: str) -> None:
    for plain in (b"", b"a", SOURCE.randbytes(500)):
        assert SUBJECT.codec.encode(plain) is None


def test_frozen() -> None:
    """Payloads of an older version must stay readable, byte for byte."""
    payload = SUBJECT.codec.encode(CASES["text"])
    assert payload is not None
    assert (len(payload), hashlib.sha256(payload).hexdigest()[:16]) == FROZEN


def test_workers_serve_it() -> None:
    SUBJECT.check_served()


FROZEN = (2959, "ef6e7ee8cd92911f")
