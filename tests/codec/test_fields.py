"""Records of numbers: all engines write the same and read it again, and the encoder finds the layout."""

from __future__ import annotations

import hashlib
import random
from functools import partial
from struct import pack

import numpy as np
import pytest

from nnfs.codec import base, fieldlayout
from nnfs.codec.base import CM
from nnfs.codec.cm import FIELDS, GENERIC, ContextMixing
from nnfs.codec.fieldlayout import Fields
from nnfs.codec.layout import repeats
from nnfs.errors import CodecError
from nnfs.mixer import native
from tests.codec.kit import Subject
from tests.kernels.kit import library
from tests.model.golden import sample

NATIVE = {level: native.Kernels(library(), level) for level in library().levels}
ENGINES = {level: (lambda kernels=kernels: kernels) for level, kernels in NATIVE.items()} | {"numba": lambda: None}


def offsets(count: int) -> bytes:
    """Return a table of lengths and offsets, as message catalogues have it."""
    rng, at, out = random.Random(1), 28 + 8 * count, b""
    for _ in range(count):
        length = rng.randrange(5, 90)
        out += pack("<II", length, at)
        at += length + 1
    return out


def tree(count: int) -> bytes:
    """Return a table of pairs of 24-bit pointers and leaves."""
    rng, out = random.Random(2), b""
    for n in range(count):
        for child in (n + 1, rng.choice([n + 2, 0xFFFF00 + rng.randrange(9)])):
            out += child.to_bytes(3, "little")
    return out


def prices(count: int) -> bytes:
    """Return a column of doubles."""
    rng, now, out = random.Random(3), 100.0, b""
    for _ in range(count):
        now += rng.gauss(0, 0.1)
        out += pack("<d", round(now, 2))
    return out


CASES: dict[str, tuple[bytes, Fields]] = {
    "offsets": (offsets(300), Fields(8, 4)),
    "a tree": (tree(300), Fields(6, 3)),
    "a tree, cut and turned": (tree(300)[4:], Fields(6, 3, 2, True, True)),
    "doubles": (prices(200), Fields(8, 8)),
    "big-endian": (np.arange(0, 4000, 7).astype(">u4").tobytes() + b"ab", Fields(4, 4, 0, True)),
    "records longer than the chunk": (sample(500, 1), Fields(65535)),
    "a byte": (b"a", Fields(1)),
    "less than a field": (b"abc", Fields(8, 8, 7, False, True)),
}


class OneLayout:
    """`cm` with a layout that is given, as a codec."""

    def __init__(self, layout: Fields) -> None:
        self.id, self.name, self.layout, self.codec = CM, "cm", layout, ContextMixing()

    def encode(self, plain: bytes) -> bytes | None:
        return self.codec._encode_fields(plain, self.layout)

    def decode(self, payload: bytes, plain_length: int) -> bytes:
        return self.codec.decode(payload, plain_length)


def subject(layout: Fields) -> Subject:
    return Subject(OneLayout(layout), native, ENGINES)


@pytest.mark.parametrize("case", CASES)
def test_all_engines_write_and_read_the_same(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, layout = CASES[case]
    made = subject(layout).results(monkeypatch, partial(subject(layout).codec.encode, plain))
    assert isinstance(made[0], bytes)
    assert all(payload == made[0] for payload in made)
    read = subject(layout).results(monkeypatch, partial(subject(layout).codec.decode, made[0], len(plain)))
    assert all(one == plain for one in read)


@pytest.mark.parametrize("case", ["offsets", "a tree, cut and turned"])
def test_damage_ends_alike_with_all_engines(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, layout = CASES[case]
    subject(layout).check_damage(plain[:400], monkeypatch)


@pytest.mark.parametrize("head", [b"\3", b"\3\0\0", b"\3\0\0\0ab", b"\3\3\0\6ab", b"\3\x1b\0\x08ab", b"\3\0\0\1"])
def test_impossible_heads(head: bytes) -> None:
    for size in (100, 0, -1):
        with pytest.raises(CodecError):
            ContextMixing().decode(head + b"\xff" * 30, size)


@pytest.mark.parametrize("case", ["offsets", "a tree", "doubles"])
def test_the_encoder_finds_the_layout(case: str) -> None:
    plain, layout = CASES[case]
    codec = ContextMixing()
    payload = codec.encode(plain)
    assert payload is not None
    assert payload[0] == FIELDS
    assert case == "doubles" or (payload[1] & 7) + 1 == layout.width
    assert codec.decode(payload, len(plain)) == plain
    assert len(payload) < 0.97 * len(codec._mix(plain, layout.stride))


def test_a_table_before_text_is_found() -> None:
    plain = offsets(900) + sample(12000, 4)
    payload, codec = ContextMixing().encode(plain), ContextMixing()
    assert payload is not None
    assert payload[0] == FIELDS
    assert len(payload) < len(codec._mix(plain, 0))
    assert codec.decode(payload, len(plain)) == plain


def test_text_has_no_fields() -> None:
    array = np.frombuffer(sample(20000, 5), np.uint8)
    assert {stride for stride, _ in fieldlayout.strides(array, False)} == {0}
    payload = ContextMixing().encode(array.tobytes())
    assert payload is not None
    assert payload[0] == GENERIC


def test_sound_that_repeats_is_not_coded_as_samples_alone() -> None:
    wave = np.random.default_rng(1).normal(0, 900, 9000).cumsum().astype("<i2").tobytes()
    codec = ContextMixing()
    once, twice = codec.encode(wave), codec.encode(wave * 3)
    assert repeats(wave * 3)
    assert not repeats(wave)
    assert once is not None
    assert twice is not None
    assert len(twice) < 2 * len(once)
    assert codec.decode(twice, 3 * len(wave)) == wave * 3


def test_turned_fields_turn_back() -> None:
    for size in range(20):
        plain = bytes(range(size))
        for layout in (Fields(6, 3, 2), Fields(8, 8, 7), Fields(4, 1)):
            assert fieldlayout.turned(fieldlayout.turned(plain, layout), layout) == plain


def test_frozen() -> None:
    """Payloads of an older version must stay readable, byte for byte."""
    found = {case: OneLayout(layout).encode(plain) or b"" for case, (plain, layout) in CASES.items()}
    assert {case: hashlib.sha256(payload).hexdigest()[:16] for case, payload in found.items()} == FROZEN


FROZEN: dict[str, str] = {
    "offsets": "cd970ed5a319ed0b",
    "a tree": "cc26e6d623e86e56",
    "a tree, cut and turned": "9355aa6e43764dfa",
    "doubles": "56ed7dc402bad119",
    "big-endian": "e50e4d323aefd295",
    "records longer than the chunk": "a03c2d50e8ec9f67",
    "a byte": "9b3187d3a5916f70",
    "less than a field": "f68221d510b92bca",
}


def test_only_fields_have_another_id_than_their_codec() -> None:
    fields, generic = (ContextMixing().encode(plain) for plain in (offsets(2000), b"words of a text, " * 40))
    assert fields is not None
    assert generic is not None
    assert [base.format_of(base.CM, payload) for payload in (fields, generic, b"")] == [base.FIELDS, base.CM, base.CM]
    assert base.format_of(base.NEURAL, fields) == base.NEURAL
    assert base.coder_of(base.FIELDS) == base.CM
    assert base.rung(base.FIELDS) == base.rung(base.CM)
