"""FORMAT.md is normative: its tables, read from the document, describe the very bytes that the code writes."""

from __future__ import annotations

import dataclasses
import re
import stat
from pathlib import Path

import pytest
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from nnfs import codec
from nnfs.codec.base import CM, FIRST_COLD, NEURAL
from nnfs.store import modelfiles, moments, quotas, schema, sealing
from nnfs.store.fragments import PAGE, PAGE_HEADER, cut_payload
from nnfs.store.schema import Block, Dentry, Inode, MapNode, Model, Scrub, State, Superblock, Total

DOCUMENT = (Path(schema.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
FLAT = " ".join(DOCUMENT.split())  # as if it had no lines
SIZES = {"u8": 1, "u16": 2, "u64": 8, "s64": 8}


def rows(heading: str) -> list[list[str]]:
    """Cells of the first table behind a line that begins with `heading`, head and rule left out."""
    lines = DOCUMENT[DOCUMENT.index(f"\n{heading}") + 1 :].splitlines()[1:]
    start = next(n for n, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def layout(heading: str) -> list[tuple[str, int, int]]:
    """(field, offset, size) of a record; the field that takes the rest is left out."""
    fields, offset = [], 0
    for size, name, _ in rows(heading):
        if size == "rest":
            continue
        fields.append((name, offset, int(size)))
        offset += int(size)
    return fields


def sizes_in(text: str) -> list[int]:
    """Sizes of the fields in prose such as "sealed: due time s64, commit u64"."""
    return [
        SIZES[word] if word in SIZES else int(word.split()[0]) for word in re.findall(r"\b[us]\d+\b|\b\d+ bytes", text)
    ]


def meaning(heading: str, field: str) -> str:
    """A field as the document describes it."""
    return next(text for _, name, text in rows(heading) if name == field)


def flags_of(heading: str) -> dict[int, str]:
    """Flags of a record and the first words about each, up to a colon or three words."""
    found = {}
    for number, words in re.findall(r"(?:^|; )(\d+): ([^;]*)", meaning(heading, "flags")):
        first = words.split(":")[0]
        found[int(number)] = " ".join(first.split()[:3])
    return found


def assert_fields(heading: str, body: bytes, values: dict[str, int | bytes]) -> None:
    """Each field of the document's table lies where the table says, and no other field exists."""
    fields = layout(heading)
    assert [name for name, _, _ in fields] == list(values)
    for name, offset, size in fields:
        value = values[name]
        expected = value if isinstance(value, bytes) else value.to_bytes(size, "big", signed=value < 0)
        assert body[offset : offset + size] == expected, name
    end = fields[-1][1] + fields[-1][2]
    assert len(body) == end, "the record has bytes that the document does not know"


def distinct(names: list[str]) -> dict[str, int]:
    """A value for each field that no other has and that fits into one byte."""
    return {name: number for number, name in enumerate(names, start=3)}


def test_tables_have_the_documents_names_and_tags() -> None:
    listed = {int(number): name for number, name, _, _ in rows("## Tables")}
    assert listed == {tag[0]: name for name, tag in sealing.TAGS.items()}


def test_superblock() -> None:
    superblock = Superblock(b"U" * 16, 1 << 17, -5, 77, 1, 0, 2, 3, 4)
    body = superblock.pack()[:-8]
    values: dict[str, int | bytes] = {
        "magic": b"nnfs", "version": 1, "engine": 0, "uuid": b"U" * 16, "chunk_size": 1 << 17, "reserved": 0,
        "compat": 2, "ro_compat": 3, "incompat": 4, "created": -5, "seed": 77,
    }  # fmt: skip
    assert_fields("**Superblock**", body, values)
    assert schema.MAGIC == b"nnfs"
    assert f"The store format, version {schema.FORMAT_VERSION}\n" in DOCUMENT
    assert f"opened with `lib_version={schema.ENGINE}`" in FLAT


def test_state() -> None:
    values = distinct([field.name for field in dataclasses.fields(State)])
    assert_fields("**State**", State(**values).pack()[:-8], dict(values))
    assert flags_of("**State**") == {State.FLAG_UNSETTLED: "unsettled", State.FLAG_UNSETTLING: "unsettling"}


def test_inode() -> None:
    names = [name for name in Inode.__slots__ if name not in ("ino", "target")]
    inode = Inode(9, 0, 0, 0, 0)
    values = distinct(names)
    for name, value in values.items():
        setattr(inode, name, value)
    assert_fields("**Inode**", inode.pack()[:-8], dict(values))
    inode.target = b"somewhere"
    assert inode.pack()[:-8].endswith(b"somewhere")
    assert flags_of("**Inode**") == {Inode.FLAG_COLLISIONS: "the directory has", Inode.FLAG_SETTLED: "settled"}
    assert f"up to {schema.SYMLINK_MAX} bytes" in meaning("**Inode**", "target")


def test_block_header() -> None:
    names = [name for name, _, _ in layout("**Block header**")]
    values: dict[str, int | bytes] = {**distinct(names), "hash": b"H" * 64}
    key = schema.KEY.pack(1)
    assert_fields("**Block header**", Block(**values).pack(key)[:-8], values)  # type: ignore[arg-type]
    assert flags_of("**Block header**") == {Block.FLAG_TRIED: "tried"}
    codecs = {**codec.NAMES, NEURAL: "neural", CM: "cm"}
    for number, name in codecs.items():
        assert f"{number} {name}" in meaning("**Block header**", "codec")
    assert f"{FIRST_COLD} and above: cold codecs" in meaning("**Block header**", "codec")


def test_model() -> None:
    names = [name for name, _, _ in layout("**Model**")]
    values: dict[str, int | bytes] = {**distinct(names), "fingerprint": b"F" * 64}
    assert_fields("**Model**", Model(**values).pack(b"\0\1")[:-8], values)  # type: ignore[arg-type]
    assert flags_of("**Model**") == {Model.FLAG_RETIRED: "retired", Model.FLAG_GONE: "gone"}
    described = next(record for _, name, _, record in rows("## Tables") if name == "model")
    assert f"under `{modelfiles.COPY.decode()}`, number u16" in described
    assert modelfiles.places(7) == (("model", b"\0\7"), ("main", b"nnfs.model\0\7"))


def test_scrub() -> None:
    values = distinct([field.name for field in dataclasses.fields(Scrub)])
    assert_fields("**Scrub**", Scrub(**values).pack()[:-8], dict(values))


def test_snapshot() -> None:
    names = [name for name, _, _ in layout("**Snapshot**")]
    values = distinct(names)
    body = moments.Moment(1, b"", **values).pack()[:-8]
    assert_fields("**Snapshot**", body, dict(values))
    assert moments.Moment(1, b"before", **values).pack()[:-8] == body + b"before"
    assert flags_of("**Snapshot**") == {moments.Moment.FLAG_DELETING: "it is being"}
    assert f"The bit {moments.RO_SNAPSHOTS} of `ro_compat`" in FLAT


def test_quota() -> None:
    values = distinct([name for name, _, _ in layout("**Quota**")])
    assert_fields("**Quota**", quotas.Quota(1, **values).pack()[:-8], dict(values))
    assert flags_of("**Quota**") == {quotas.Quota.FLAG_COUNTING: "counting", quotas.Quota.FLAG_REMOVING: "removing"}
    assert f"The bit {quotas.RO_QUOTAS} of `ro_compat` is set while there are quotas" in FLAT


def test_records_described_in_prose() -> None:
    key8, key16 = schema.KEY.pack(7), schema.KEY2.pack(7, 1 << 16)
    described = {name: record for _, name, _, record in rows("## Tables")}
    packed = {
        "orphan": schema.pack_orphan(key8, 2),
        "total": Total(1, 2, 3, 4).pack(b"\0\0\0"),
        "xattr": schema.pack_xattr(key8 + b"user.a", b"", 2),
    }
    for table, record in packed.items():
        assert "sealed" in described[table], table
        assert len(record) == sum(sizes_in(described[table])) + 8, table
    dentry = re.search(r"\*\*Dentry\*\*: (.*?), name", FLAT)
    node = re.search(r"\*\*Map node\*\*: (.*?), then one block number (u64) for every set bit", FLAT)
    assert dentry
    assert node
    assert len(Dentry(1, 8, b"abc", 2).pack(key16)) == sum(sizes_in(dentry[1])) + 3 + 8
    assert len(MapNode({0: 1, 63: 2}, 5).pack(key16)) == sum(sizes_in(node[1])) + 2 * SIZES[node[2]] + 8


def test_keys() -> None:
    keys = {name: key for _, name, key, _ in rows("## Tables")}
    plain = ", ".join(f"`{key.decode()}`" for key in (schema.SUPER_KEY, schema.STATE_KEY, schema.SCRUB_KEY))
    numbered = [f"`{key.decode()}` with number u16" for key in (moments.MOMENT_KEY, quotas.QUOTA_KEY)]
    assert keys["meta"] == ", ".join([plain, *numbered])
    assert (moments.key_of(7), quotas.key_of(7)) == (b"nnfs.snap\0\7", b"nnfs.quota\0\7")
    sizes = {name: sum(sizes_in(key)) for name, key in keys.items()}
    expected = {
        "inode": schema.KEY, "dentry": schema.KEY2, "map": schema.KEY2, "block": schema.KEY,
        "orphan": schema.KEY, "payload": schema.FRAGMENT_KEY, "total": schema.TOTAL_KEY,
    }  # fmt: skip
    assert {name: sizes[name] for name in expected} == {name: key.size for name, key in expected.items()}
    assert sizes["model"] == len(modelfiles.key_of(1))
    assert f"first {schema.INDEX_SIZE} bytes" in keys["hash"]
    assert keys["queue"] == ""
    payload = next(record for _, name, _, record in rows("## Tables") if name == "payload")
    assert payload == "stored bytes: an extent or a fragment"
    assert f"fragments of at most {schema.FRAGMENT_MAX} bytes" in FLAT
    assert f"Of a payload of {PAGE - PAGE_HEADER} bytes or more the first fragment is an *extent*" in FLAT
    assert f"of {PAGE} k - {PAGE_HEADER} bytes" in FLAT
    assert f"below 2^{schema.INO_BITS}" in FLAT


def test_a_seal_is_the_xxh3_of_tag_key_and_body() -> None:
    assert "XXH3-64 of (table tag, one byte; key; body)" in FLAT
    record = schema.pack_orphan(schema.KEY.pack(20), 3)
    body = (3).to_bytes(8, "big")
    assert record == body + xxh3_64_digest(b"\x0a" + schema.KEY.pack(20) + body)
    assert sealing.checksum_of(record) == xxh3_64_intdigest(b"\x0a" + schema.KEY.pack(20) + body)


def test_cookies() -> None:
    cookie = schema.cookie_of(b"name", 42)
    assert cookie >> 16 == xxh3_64_intdigest(b"name", 42) >> 17
    assert cookie & 0xFFFF == 0
    assert 1 << 16 <= cookie < 1 << 63


def test_constants_of_the_text() -> None:
    assert f"Node n maps the chunks {schema.NODE_SPAN} n to {schema.NODE_SPAN} n + {schema.NODE_SPAN - 1}" in FLAT
    assert f"name (1 to {schema.NAME_MAX} bytes" in FLAT
    chunk_size = next(meaning for _, name, meaning in rows("**Superblock**") if name == "chunk_size")
    low, high, default = schema.MIN_CHUNK_SIZE, schema.MAX_CHUNK_SIZE, schema.DEFAULT_CHUNK_SIZE
    assert chunk_size == f"{low >> 10} KiB to {high >> 20} MiB, a power of two; {default >> 10} KiB by default"


# Frozen on the day that the format was made: a change of any of these is a new format version.
GOLDEN = {
    "superblock": (
        Superblock(bytes(range(16)), 131072, 1_700_000_000_000_000_000, 0x0123456789ABCDEF).pack(),
        (
            "6e6e66730000000100000000000102030405060708090a0b0c0d0e0f0002000000000000000000000000000000000000"
            "00000000000000000000000017979cfe362a00000123456789abcdef24cd6978a5afa30a"
        ),
    ),
    "state": (
        State(5, 20, 30, 4, 123456, 7, 5).pack(),
        (
            "00000000000000050000000000000014000000000000001e0000000000000004000000000001e2400000000000000007"
            "0000000000000005005a021027049c6a64"
        ),
    ),
    "dentry": (
        Dentry(17, 8, b"caf\xe9", 3).pack(schema.KEY2.pack(1, 1 << 40)),
        "0000000000000011080000000000000003636166e99f001f7895ef9eba",
    ),
    "map": (
        MapNode({0: 5, 63: 6}, 9).pack(schema.KEY2.pack(17, 2)),
        "8000000000000001000000000000000900000000000000050000000000000006c3b8a52642765144",
    ),
    "block": (
        Block(1, 0, 131072, 999, 1_700_000_000, 0xFEED, 12, 2, bytes(range(64)), 9).pack(schema.KEY.pack(12)),
        (
            "0100000000020000000003e76553f100000000000000feed000000000000000c00000000000000020000000000000009"
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f"
            "303132333435363738393a3b3c3d3e3f2c17fc3f802c36c9"
        ),
    ),
    "model": (
        Model(bytes(range(64)), 2, 1, 13_893_512, 0xFEED, 40, 41, 1_700_000_000, 9).pack(b"\0\3"),
        (
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f"
            "303132333435363738393a3b3c3d3e3f0002010000000000d3ff88000000000000feed00000000000000280000000000"
            "000029000000006553f1000000000000000009f3aa9576cf24c228"
        ),
    ),
    "snapshot": (
        moments.Moment(3, b"before", 9, 30, 1_700_000_000_000_000_000, 4, 123456, 1, 10).pack(),
        (
            "0000000000000009000000000000001e17979cfe362a00000000000000000004000000000001e2400100000000000000"
            "0a6265666f7265b5a9bca115447283"
        ),
    ),
    "scrub": (
        Scrub(77, 1, 1_700_000_000_000_000_000, 76, 2, 9).pack(),
        "000000000000004d0117979cfe362a0000000000000000004c000000000000000200000000000000096e7b93f9b28fb8b5",
    ),
}


def test_the_example_is_right() -> None:
    key = schema.KEY2.pack(1, 1 << 40)
    record = Dentry(17, 8, b"caf\xe9", 3).pack(key)
    for line in (f"key        {key[:8].hex()} {key[8:].hex()}", f"record     {record.hex()}"):
        assert f"\n{line}\n" in DOCUMENT
    assert f"\nXXH3-64    {record[-8:].hex()}\n" in DOCUMENT
    assert f"with seed 77 is {xxh3_64_digest(b'caf' + bytes([0xE9]), 77).hex()}," in FLAT
    assert f"is tried for it is {schema.cookie_of(b'caf' + bytes([0xE9]), 77):016x}." in FLAT


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_records(name: str) -> None:
    record, frozen = GOLDEN[name]
    assert record.hex() == frozen


def test_golden_inode() -> None:
    inode = Inode(17, stat.S_IFLNK | 0o777, 1000, 100, -1)
    inode.size, inode.target, inode.commit, inode.xattrs = 3, b"abc", 2, 0xFEED
    assert inode.pack().hex() == (
        "0000a1ff000003e800000064000000010000000000000000000000030000000000000000ffffffffffffffffffffffff"
        "ffffffffffffffffffffffffffffffffffffffff00000000000000000000000000000000000000000000feed00000000"
        "0000000000000000000000026162632613b4a19714d852"
    )


@pytest.mark.parametrize("room", [4, 17, 100, 4080])
@pytest.mark.parametrize("length", [0, 1, 4079, 4080, 4081, 8176, 100_000, 131_072])
def test_payloads_are_cut_into_an_extent_and_fragments(length: int, room: int) -> None:
    payload = bytes(n % 251 for n in range(length))
    items, _ = cut_payload(3, payload, room)
    assert [key for key, _ in items] == [schema.FRAGMENT_KEY.pack(3, n) for n in range(len(items))]
    assert b"".join(fragment for _, fragment in items) == payload
    fragments = [len(fragment) for _, fragment in items]
    if length >= 4080:
        pages = (length + 16) // 4096
        assert fragments.pop(0) == 4096 * pages - 16
    assert all(1 <= size <= schema.FRAGMENT_MAX for size in fragments)
