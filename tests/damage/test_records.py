"""Fuzzing the decoders of every record: arbitrary bytes are a record or refused as `RecordDamaged`, nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnfs.errors import RecordDamaged
from nnfs.store import schema, sealing
from nnfs.store.vectors import Vector

DECODERS: dict[str, tuple[str, Callable[[bytes, bytes], object]]] = {
    "superblock": ("meta", lambda key, record: schema.Superblock.unpack(record)),
    "state": ("meta", lambda key, record: schema.State.unpack(record)),
    "inode": ("inode", lambda key, record: schema.Inode.unpack(int.from_bytes(key, "big"), record)),
    "dentry": ("dentry", schema.Dentry.unpack),
    "xattr": ("xattr", schema.unpack_xattr),
    "map": ("map", schema.MapNode.unpack),
    "block": ("block", schema.Block.unpack),
    "scrub": ("meta", lambda key, record: schema.Scrub.unpack(record)),
    "model": ("model", schema.Model.unpack),
    "orphan": ("orphan", schema.unpack_orphan),
    "total": ("total", schema.Total.unpack),
    "vector": ("vector", Vector.unpack),
}
KEYS = {
    "superblock": schema.SUPER_KEY, "state": schema.STATE_KEY, "scrub": schema.SCRUB_KEY,
    "dentry": bytes(16), "map": bytes(16),
}  # fmt: skip
EXAMPLES = {
    "superblock": schema.Superblock(bytes(16), 131072, 5, 6).pack(),
    "state": schema.State(commit=9).pack(),
    "inode": schema.Inode(0, 0o100644, 1, 2, 3).pack(),
    "dentry": schema.Dentry(17, 8, b"name", 5).pack(bytes(16)),
    "xattr": schema.pack_xattr(bytes(8), b"value", 5),
    "map": schema.MapNode({0: 5, 63: 9}, 5).pack(bytes(16)),
    "block": schema.Block(1, 0, 9, 5, 1, 2, 3, 4, bytes(64)).pack(bytes(8)),
    "scrub": schema.Scrub(7, 1, 6, 5, 4, 3).pack(),
    "model": schema.Model(bytes(64), 0, 0, 9, 8, 7, 6, 5, 4).pack(bytes(8)),
    "orphan": schema.pack_orphan(bytes(8), 5),
    "total": schema.Total(1, 2, 3, 4).pack(bytes(8)),
    "vector": Vector(7, bytes(256), 5).pack(bytes(8)),
}


def decode(name: str, record: bytes) -> object | None:
    """The decoded record, None when it was refused. Any other exception fails the test."""
    try:
        return DECODERS[name][1](KEYS.get(name, bytes(8)), record)
    except RecordDamaged:
        return None


def test_every_sealed_table_has_its_decoder() -> None:
    others = {"payload", "hash", "queue"}  # two are not sealed, the third is empty
    assert {table for table, _ in DECODERS.values()} == set(sealing.TABLES) - others
    assert EXAMPLES.keys() == DECODERS.keys()
    assert all(decode(name, record) is not None for name, record in EXAMPLES.items())


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_arbitrary_bytes(name: str, data: st.DataObject) -> None:
    decode(name, data.draw(st.binary(max_size=300)))


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_arbitrary_bytes_with_a_right_checksum(name: str, data: st.DataObject) -> None:
    """A seal is no proof of sense: bytes sealed by a bug, or by someone who can hash, are still no other exception."""
    table, example = DECODERS[name][0], EXAMPLES[name][:-8]
    body = data.draw(st.binary(max_size=300) | st.binary(min_size=len(example), max_size=len(example)))
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(example)))
        body = example[:at] + body[: max(0, len(example) - at)]
    decode(name, sealing.seal(table, KEYS.get(name, bytes(8)), body))


@pytest.mark.parametrize("name", DECODERS)
def test_every_flipped_bit_is_found(name: str) -> None:
    example = EXAMPLES[name]
    for bit in range(8 * len(example)):
        flipped = bytearray(example)
        flipped[bit // 8] ^= 1 << bit % 8
        assert decode(name, bytes(flipped)) is None
    assert all(decode(name, example[:size]) is None for size in range(len(example)))


@pytest.mark.parametrize("name", sorted(DECODERS.keys() - {"superblock", "state", "scrub"}))
def test_a_record_under_another_key_or_table_is_found(name: str) -> None:
    table, unpack = DECODERS[name]
    key = bytes(len(KEYS.get(name, bytes(8))) - 1) + b"\1"
    with pytest.raises(RecordDamaged):
        unpack(key, EXAMPLES[name])
    other = "xattr" if table != "xattr" else "total"
    with pytest.raises(RecordDamaged):
        sealing.unseal(other, KEYS.get(name, bytes(8)), EXAMPLES[name])
