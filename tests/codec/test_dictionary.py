"""A dictionary: every chunk has it as its past, whoever codes it and with whichever others."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest

from nnfs.codec.neural import Neural
from nnfs.codec.storeddictionary import dictionary_of, stored_dictionary
from nnfs.errors import ModelMissing
from nnfs.model import selftest
from nnfs.model.dictionary import LARGEST
from nnfs.model.weights import Weights
from tests.model.golden import sample

SIZES = (300, 9001, 65_600)  # 1, 1 and 5 lanes


@cache
def model(size: int = 20_000) -> Weights:
    return dataclasses.replace(selftest.weights(), dictionary=stored_dictionary(sample(size, 3)))


@cache
def codec(threads: int = 1) -> Neural:
    return Neural(model(), threads)


@cache
def payload_of(size: int) -> bytes:
    payload = codec().encode(sample(size, 3))
    assert payload is not None
    return payload


@pytest.mark.parametrize("size", SIZES)
def test_gives_back(size: int) -> None:
    assert codec().decode(payload_of(size), size) == sample(size, 3)


@pytest.mark.parametrize("size", SIZES[:2])
def test_what_is_in_the_dictionary_costs_next_to_nothing(size: int) -> None:
    without = Neural(selftest.weights()).encode(sample(size, 3))
    assert without is not None
    assert len(payload_of(size)) < len(without) / 4


def test_a_chunk_does_not_depend_on_its_batch() -> None:
    plains = [sample(size, 3) for size in SIZES]
    assert codec(2).encode_many(plains * 2) == [payload_of(size) for size in SIZES] * 2
    assert codec(2).decode_many([(payload_of(size), size) for size in SIZES]) == plains


def test_a_dictionary_that_is_too_long_is_refused() -> None:
    size = np.frombuffer((LARGEST + 1).to_bytes(4, "little"), np.uint8)
    stored = np.concatenate((size, model().dictionary[4:]))
    with pytest.raises(ModelMissing, match=f"takes {LARGEST}"):
        dictionary_of(dataclasses.replace(model(), dictionary=stored))


def test_a_damaged_dictionary_is_refused() -> None:
    with pytest.raises(ModelMissing, match="cannot be read"):
        dictionary_of(dataclasses.replace(model(), dictionary=model().dictionary[:-8]))


def test_the_dictionary_is_part_of_the_fingerprint() -> None:
    assert model().fingerprint() not in (selftest.weights().fingerprint(), model(10_000).fingerprint())
