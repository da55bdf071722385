"""Records: what is packed comes back, a record belongs to its key and table, arbitrary bytes are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nnfs.errors import RecordDamaged
from nnfs.store import schema, sealing
from nnfs.store.schema import Block, Dentry, Inode, MapNode, Model, Scrub, State, Superblock, Total

steady = settings(deadline=None, derandomize=True)  # the same examples on every machine, however slow

u8, u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32, 64))
s64 = st.integers(-(1 << 63), (1 << 63) - 1)
inos = st.integers(1, (1 << schema.INO_BITS) - 1)
names = st.binary(min_size=1, max_size=schema.NAME_MAX)
KEY8, KEY16 = schema.KEY.pack(17), schema.KEY2.pack(17, 1 << 20)

superblocks = st.builds(
    Superblock, st.binary(min_size=16, max_size=16), u32, s64, u64, u32, u32, u64, u64, u64
)  # fmt: skip
states = st.builds(State, u64, u64, u64, u64, u64, u64, u64, u8)
dentries = st.builds(Dentry, u64, u8, names, u64)
nodes = st.builds(MapNode, st.dictionaries(st.integers(0, 63), u64), u64)
block_hashes = st.binary(min_size=64, max_size=64)
blocks = st.builds(Block, u8, u16, u32, u32, u32, u64, u64, u64, block_hashes, u64, u8)
totals = st.builds(Total, u64, u64, u64, u64)
models = st.builds(Model, block_hashes, u16, u8, u64, u64, u64, u64, s64, u64)
scrubs = st.builds(Scrub, u64, u8, s64, u64, u64, u64)

INODE_FIELDS = {
    "mode": u32, "uid": u32, "gid": u32, "nlink": u32, "flags": u32, "size": u64, "aux": u64,
    "atime": s64, "mtime": s64, "ctime": s64, "btime": s64, "count": u64, "proof": u64, "xattrs": u64,
    "stored": u64, "commit": u64, "target": st.binary(max_size=schema.SYMLINK_MAX),
}  # fmt: skip


@st.composite
def inodes(draw: st.DrawFn) -> Inode:
    inode = Inode(draw(inos), 0, 0, 0, 0)
    for name, values in INODE_FIELDS.items():
        setattr(inode, name, draw(values))
    return inode


def as_dict(record: Any) -> dict[str, Any]:
    if isinstance(record, Inode):
        return {name: getattr(record, name) for name in Inode.__slots__}
    return dataclasses.asdict(record)


UNPACK: dict[str, tuple[bytes, Callable[[bytes, bytes], Any]]] = {
    "inode": (KEY8, lambda key, record: Inode.unpack(schema.KEY.unpack(key)[0], record)),
    "dentry": (KEY16, Dentry.unpack),
    "map": (KEY16, MapNode.unpack),
    "block": (KEY8, Block.unpack),
    "total": (schema.TOTAL_KEY.pack(1, 0), Total.unpack),
    "xattr": (KEY8 + b"user.name", schema.unpack_xattr),
    "orphan": (KEY8, schema.unpack_orphan),
    "model": (b"\0\1", Model.unpack),
}
TWICE = {
    "superblock": (schema.SUPER_KEY, lambda _, record: Superblock.unpack(record)),
    "state": (schema.STATE_KEY, lambda _, record: State.unpack(record)),
    "scrub": (schema.SCRUB_KEY, lambda _, record: Scrub.unpack(record)),
}


@steady
@given(st.one_of(superblocks, states, scrubs))
def test_records_of_fixed_keys_come_back(record: Superblock | State | Scrub) -> None:
    assert type(record).unpack(record.pack()) == record


@steady
@given(inodes())
def test_inodes_come_back(inode: Inode) -> None:
    assert as_dict(Inode.unpack(inode.ino, inode.pack())) == as_dict(inode)


@steady
@given(st.one_of(dentries, nodes, blocks, totals, models), st.binary(min_size=1, max_size=30))
def test_keyed_records_come_back(record: Dentry | MapNode | Block | Total | Model, key: bytes) -> None:
    found = type(record).unpack(key, record.pack(key))
    assert found == record
    assert found.pack(key) == record.pack(key)


@steady
@given(st.binary(max_size=2000), u64)
def test_small_records_come_back(value: bytes, commit: int) -> None:
    assert schema.unpack_xattr(KEY8, schema.pack_xattr(KEY8, value, commit)) == value
    assert schema.unpack_orphan(KEY8, schema.pack_orphan(KEY8, commit)) == commit


def sealed_samples() -> dict[str, bytes]:
    """One good record of each table, for its key in UNPACK."""
    inode = Inode(17, 0o100644, 1, 2, 3)
    key = {table: UNPACK[table][0] for table in UNPACK}
    return {
        "inode": inode.pack(),
        "dentry": Dentry(18, 8, b"name", 4).pack(key["dentry"]),
        "map": MapNode({0: 1, 5: 2, 63: 3}, 4).pack(key["map"]),
        "block": Block(1, 0, 100, 50, 6, 7, 8, 9, bytes(64), 4).pack(key["block"]),
        "total": Total(1, 2, 3, 4).pack(key["total"]),
        "xattr": schema.pack_xattr(key["xattr"], b"value", 4),
        "orphan": schema.pack_orphan(key["orphan"], 4),
        "model": Model(bytes(64), 0, 0, 9, 8, 7, 6, 5, 4).pack(key["model"]),
    }


@pytest.mark.parametrize("table", UNPACK)
def test_a_record_under_another_key_is_refused(table: str) -> None:
    key, unpack = UNPACK[table]
    record = sealed_samples()[table]
    unpack(key, record)
    other = key[:-1] + bytes([key[-1] ^ 1])
    with pytest.raises(RecordDamaged):
        unpack(other, record)


@pytest.mark.parametrize("table", UNPACK)
def test_a_record_in_another_table_is_refused(table: str) -> None:
    key = UNPACK[table][0]
    record = sealed_samples()[table]
    for other, (_, unpack) in UNPACK.items():
        if other != table and not (other == "inode" and len(key) != 8):
            with pytest.raises(RecordDamaged):
                unpack(key, record)


@pytest.mark.parametrize("table", UNPACK)
def test_every_flipped_bit_is_found(table: str) -> None:
    key, unpack = UNPACK[table]
    record = sealed_samples()[table]
    for bit in range(8 * len(record)):
        damaged = bytearray(record)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RecordDamaged):
            unpack(key, bytes(damaged))


@pytest.mark.parametrize("table", UNPACK)
def test_every_cut_is_found(table: str) -> None:
    key, unpack = UNPACK[table]
    record = sealed_samples()[table]
    for length in range(len(record)):
        with pytest.raises(RecordDamaged):
            unpack(key, record[:length])


@pytest.mark.parametrize("table", [*UNPACK, *TWICE])
@settings(steady, max_examples=200)
@given(body=st.binary(max_size=400))
@example(body=b"")
@example(body=schema.MAGIC)
def test_arbitrary_bytes_are_damaged_or_sound(table: str, body: bytes) -> None:
    """Bytes as they are, and under a right seal, raise no exception but `RecordDamaged`."""
    key, unpack = (UNPACK | TWICE)[table]
    tag = "meta" if table in TWICE else table
    with pytest.raises(RecordDamaged):
        unpack(key, body)  # 2^-64 of a chance to fit
    sealed = sealing.seal(tag, key, body)
    try:
        unpack(key, sealed)
    except RecordDamaged:
        pass


def test_map_nodes_with_wrong_lengths_are_refused() -> None:
    for bitmap, slots in ((0b11, 1), (0, 1), (0b1, 0), ((1 << 64) - 1, 63)):
        body = schema.KEY2.pack(bitmap, 1) + schema.KEY.pack(5) * slots
        with pytest.raises(RecordDamaged):
            MapNode.unpack(KEY16, sealing.seal("map", KEY16, body))


@steady
@given(names, u64)
def test_cookies_leave_room_and_are_positive(name: bytes, seed: int) -> None:
    cookie = schema.cookie_of(name, seed)
    assert 1 << 16 <= cookie < 1 << 63
    assert cookie & 0xFFFF == 0
