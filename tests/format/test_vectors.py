"""Vectors for search: the numbers of FORMAT.md, and that they never change."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnfs.fs.search import content
from tests.format.decoder.vectors import vector

TEXT = b"An invoice from the plumber, 2019-03-04: new taps, EUR 240.\nThe INVOICE was paid.\n" * 20
CASES = {
    "text": (TEXT, "9fe8"), "one byte": (b"x", "e3b0"), "zeros": (bytes(5000), "e3b0"),
    "bytes": (bytes(range(256)) * 4, "6e22"), "umlauts": ("Grüße aus Köln".encode(), "2601"),
}  # fmt: skip


def numbers(data: bytes) -> list[int]:
    return list(memoryview(content.vector(data)).cast("b"))


@pytest.mark.parametrize("name", CASES)
def test_the_document_gives_the_same_numbers(name: str) -> None:
    assert numbers(CASES[name][0]) == vector(CASES[name][0])


@given(st.one_of(st.binary(max_size=1500), st.text(max_size=600).map(str.encode)))
def test_any_content(data: bytes) -> None:
    assert numbers(data) == vector(data)


@pytest.mark.parametrize("name", CASES)
def test_the_numbers_stay_for_ever(name: str) -> None:
    data, begin = CASES[name]
    assert hashlib.sha256(content.vector(data)).hexdigest()[:4] == begin
