"""The proof of a block: what is right is proved, each kind of damage is told in its own words."""

from __future__ import annotations

import hashlib

import pytest
import xxhash

from nnfs.proof import (
    WRONG_CHECKSUM,
    content_hash,
    has_content,
    payload_checksum,
    wrong_length,
    wrong_payload,
)

BYTES = b"some bytes of a chunk"


def test_hash_and_checksum_are_those_of_the_format() -> None:
    assert content_hash(BYTES) == hashlib.blake2b(BYTES).digest()
    assert len(content_hash(BYTES)) == 64
    assert payload_checksum(BYTES) == xxhash.xxh3_64(BYTES).intdigest()


@pytest.mark.parametrize("place", [0, len(BYTES) // 2, len(BYTES) - 1])
def test_a_flipped_bit_is_found(place: int) -> None:
    wrong = bytearray(BYTES)
    wrong[place] ^= 1
    assert not has_content(bytes(wrong), content_hash(BYTES))
    assert wrong_payload(bytes(wrong), len(BYTES), payload_checksum(BYTES)) == WRONG_CHECKSUM


@pytest.mark.parametrize("payload", [b"", BYTES[:-1], BYTES + b"\0"])
def test_a_wrong_length_is_told_before_the_checksum(payload: bytes) -> None:
    told = f"{len(payload)} of {len(BYTES)} stored bytes are there"
    assert wrong_length(payload, len(BYTES)) == told
    assert wrong_payload(payload, len(BYTES), payload_checksum(payload)) == told


@pytest.mark.parametrize("plain", [b"", BYTES])
def test_the_right_bytes_are_proved(plain: bytes) -> None:
    assert has_content(plain, content_hash(plain))
    assert not wrong_payload(plain, len(plain), payload_checksum(plain))


@pytest.mark.parametrize("result", [None, 0, [BYTES], BYTES.decode()])
def test_only_bytes_are_proved(result: object) -> None:
    assert not has_content(result, content_hash(BYTES))
