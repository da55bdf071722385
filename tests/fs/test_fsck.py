"""fsck: each invariant, broken by hand in a small store, is found; what can be repaired is, and stays so."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import stat
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from nnfs import codec
from nnfs.codec.base import NEURAL
from nnfs.constants import DATA_FILE
from nnfs.errors import NotAStore, StoreBusy, UsageError
from nnfs.fs import fsck
from nnfs.fs.fsck import Report
from nnfs.store import schema, sealing
from nnfs.store.blocks import BlockWriter, Encoded, load_block
from nnfs.store.env import Store
from nnfs.store.schema import Block, Dentry, Inode, MapNode, State, Total
from nnfs.store.txn import Snapshot, WriteTxn
from tests.harness import FULL

CHUNK = 16384
ROOT, DIRECTORY, SUB, FILE, SECOND, LINK, FIFO = 1, 16, 17, 18, 19, 20, 21
DIR_KIND, FILE_KIND = stat.S_IFDIR >> 12, stat.S_IFREG >> 12
COLOUR = schema.inode_key(FILE) + b"user.colour"
MASK = (1 << 64) - 1
NOW = 1_700_000_000_000_000_000


def text(seed: int, length: int = CHUNK) -> bytes:
    """Compressible bytes."""
    return (b"line %d of some text\n" % seed * (length // 16))[:length]


def noise(seed: int, length: int = CHUNK) -> bytes:
    """Incompressible bytes."""
    return b"".join(blake2b(b"%d %d" % (seed, n)).digest() for n in range(length // 64 + 1))[:length]


def encoded(plain: bytes) -> Encoded:
    number, payload = codec.encode_hot(plain)
    return Encoded(blake2b(plain).digest(), number, len(plain), payload)


class Maker:
    """Writes a tree by hand, so that fsck is held against the format and not against the filesystem's own code."""

    def __init__(self, txn: WriteTxn, store: Store) -> None:
        self.txn, self.seed = txn, store.superblock.seed
        self.state = store.state
        self.state.commit += 1
        self.blocks = BlockWriter(txn, self.state, NOW // 10**9, 4080)
        self.inodes: dict[int, Inode] = {}
        root = txn.get("inode", schema.inode_key(ROOT))
        assert root is not None
        self.inodes[ROOT] = Inode.unpack(ROOT, root)

    def inode(self, ino: int, mode: int) -> Inode:
        inode = self.inodes[ino] = Inode(ino, mode, 0, 0, NOW)
        inode.nlink = 2 if stat.S_ISDIR(mode) else 0
        self.state.inodes += 1
        self.state.next_ino = max(self.state.next_ino, ino + 1)
        return inode

    def name(self, parent: int, name: bytes, ino: int) -> None:
        inode, directory = self.inodes[ino], self.inodes[parent]
        key = schema.KEY2.pack(parent, schema.cookie_of(name, self.seed))
        record = Dentry(ino, inode.mode >> 12, name, self.state.commit).pack(key)
        self.txn.put("dentry", key, record)
        directory.count += 1
        directory.proof = (directory.proof + sealing.checksum_of(record)) & MASK
        if stat.S_ISDIR(inode.mode):
            inode.aux = parent
            directory.nlink += 1
        else:
            inode.nlink += 1

    def content(self, ino: int, chunks: dict[int, bytes], size: int) -> None:
        inode = self.inodes[ino]
        inode.size, inode.count = size, len(chunks)
        nodes: dict[int, MapNode] = {}
        for chunk, plain in chunks.items():
            node = nodes.setdefault(chunk // 64, MapNode({}, self.state.commit))
            stored = encoded(plain)
            node.blocks[chunk % 64] = self.blocks.add(stored)
            inode.stored += len(stored.payload)
            self.state.logical += len(plain)
        for number, node in nodes.items():
            key = schema.KEY2.pack(ino, number)
            record = node.pack(key)
            self.txn.put("map", key, record)
            inode.proof = (inode.proof + sealing.checksum_of(record)) & MASK

    def xattr(self, ino: int, name: bytes, value: bytes) -> None:
        key = schema.inode_key(ino) + name
        record = schema.pack_xattr(key, value, self.state.commit)
        self.inodes[ino].xattrs = (self.inodes[ino].xattrs + sealing.checksum_of(record)) & MASK
        self.txn.put("xattr", key, record)

    def finish(self) -> None:
        self.blocks.flush()
        for ino, inode in self.inodes.items():
            inode.commit = self.state.commit
            self.txn.put("inode", schema.inode_key(ino), inode.pack())
        self.txn.put_state(self.state)


def make_store(path: Path) -> Store:
    """A store of every kind of thing: shared chunks, holes, hard links, one file of two map nodes, xattrs."""
    store = Store.create(path, CHUNK)
    with store.write() as txn:
        maker = Maker(txn, store)
        maker.inode(DIRECTORY, stat.S_IFDIR | 0o755)
        maker.inode(SUB, stat.S_IFDIR | 0o755)
        maker.inode(FILE, stat.S_IFREG | 0o644)
        maker.inode(SECOND, stat.S_IFREG | 0o644)
        link = maker.inode(LINK, stat.S_IFLNK | 0o777)
        link.target, link.size = b"dir/second", 10
        maker.inode(FIFO, stat.S_IFIFO | 0o600)
        maker.name(ROOT, b"dir", DIRECTORY)
        maker.name(DIRECTORY, b"sub", SUB)
        maker.name(ROOT, b"file", FILE)
        maker.name(DIRECTORY, b"second", SECOND)
        maker.name(SUB, b"hard", SECOND)
        maker.name(ROOT, b"link", LINK)
        maker.name(SUB, b"fifo", FIFO)
        maker.content(FILE, {0: text(1), 2: noise(2), 200: text(3, 100)}, 200 * CHUNK + 100)
        maker.content(SECOND, {0: text(1), 1: noise(4, 5000)}, CHUNK + 5000)
        maker.xattr(FILE, b"user.colour", b"blue")
        maker.finish()
    return store


@pytest.fixture
def store(tmp_path: Path) -> Any:
    store = make_store(tmp_path / "store")
    yield store
    store.close()


def check(store: Store, *, data: bool = False, repair: bool = False) -> Report:
    return fsck.check(store, data=data, repair=repair, progress=lambda stage, done, total: None)


def kinds(report: Report) -> set[str]:
    return {problem.kind for problem in report.problems}


# -- tools for breaking things


def edit_inode(txn: WriteTxn, ino: int, **changes: int) -> None:
    record = txn.get("inode", schema.inode_key(ino))
    assert record is not None
    inode = Inode.unpack(ino, record)
    for name, value in changes.items():
        setattr(inode, name, value)
    txn.put("inode", schema.inode_key(ino), inode.pack())


def edit_block(txn: WriteTxn, number: int, **changes: int | bytes) -> None:
    block = load_block(txn, number)
    assert block is not None
    key = schema.KEY.pack(number)
    txn.put("block", key, dataclasses.replace(block, **changes).pack(key))  # type: ignore[arg-type]


def edit_state(txn: WriteTxn, **changes: int) -> None:
    record = txn.get("meta", schema.STATE_KEY)
    assert record is not None
    txn.put_state(dataclasses.replace(State.unpack(record), **changes))


def damage(txn: WriteTxn, table: str, key: bytes, byte: int = 0) -> None:
    """Flip bits of a stored record."""
    record = txn.get(table, key)
    assert record is not None
    broken = bytearray(record)
    broken[byte] ^= 0x55
    txn.put(table, key, bytes(broken))


def dentry_key(store: Store, parent: int, name: bytes) -> bytes:
    return schema.KEY2.pack(parent, schema.cookie_of(name, store.superblock.seed))


def put_dentry(txn: WriteTxn, key: bytes, dentry: Dentry) -> None:
    """Enter or replace a dentry with its directory's count and proof kept true."""
    parent = schema.KEY2.unpack(key)[0]
    old, new = txn.get("dentry", key), dentry.pack(key)
    record = txn.get("inode", schema.inode_key(parent))
    assert record is not None
    inode = Inode.unpack(parent, record)
    change = sealing.checksum_of(new) - (sealing.checksum_of(old) if old else 0)
    edit_inode(txn, parent, count=inode.count + (old is None), proof=(inode.proof + change) & MASK)
    txn.put("dentry", key, new)


def remove_dentry(txn: WriteTxn, key: bytes) -> None:
    parent = schema.KEY2.unpack(key)[0]
    old, record = txn.get("dentry", key), txn.get("inode", schema.inode_key(parent))
    assert old is not None
    assert record is not None
    inode = Inode.unpack(parent, record)
    edit_inode(txn, parent, count=inode.count - 1, proof=(inode.proof - sealing.checksum_of(old)) & MASK)
    txn.delete("dentry", key)


def block_of(snapshot: Snapshot, ino: int, chunk: int) -> int:
    key = schema.KEY2.pack(ino, chunk // 64)
    record = snapshot.get("map", key)
    assert record is not None
    return MapNode.unpack(key, record).blocks[chunk % 64]


def payload_key(txn: WriteTxn, ino: int, chunk: int) -> bytes:
    block = load_block(txn, block_of(txn, ino, chunk))
    assert block is not None
    return schema.FRAGMENT_KEY.pack(block.payload, 0)


def recode_header(txn: WriteTxn, number: int, **changes: int) -> None:
    """Have a block's header say something else, and the totals with it."""
    for sign in (-1, 1):
        block = load_block(txn, number)
        assert block is not None
        key = schema.TOTAL_KEY.pack(block.codec, block.model)
        record = txn.get("total", key)
        total = Total.unpack(key, record) if record else Total()
        total.blocks += sign
        total.plain += sign * block.plain
        total.stored += sign * block.stored
        txn.put("total", key, total.pack(key))
        if sign < 0:
            edit_block(txn, number, **changes)


# -- what can be broken and repaired

Break = Callable[[WriteTxn, Store], None]
REPAIRABLE: dict[str, tuple[str, Break]] = {}
LASTING: dict[str, tuple[str, Break]] = {}


def repairable(kind: str) -> Callable[[Break], Break]:
    def note(function: Break) -> Break:
        REPAIRABLE[function.__name__] = (kind, function)
        return function

    return note


def lasting(kind: str) -> Callable[[Break], Break]:
    def note(function: Break) -> Break:
        LASTING[function.__name__] = (kind, function)
        return function

    return note


@repairable("copies")
def state_copy_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "main", schema.STATE_KEY)


@repairable("copies")
def superblock_copy_missing(txn: WriteTxn, store: Store) -> None:
    txn.delete("meta", schema.SUPER_KEY)


@repairable("copies")
def state_copies_differ(txn: WriteTxn, store: Store) -> None:
    txn.put("main", schema.STATE_KEY, dataclasses.replace(store.state, settings=3).pack())


@repairable("state")
def inode_number_count(txn: WriteTxn, store: Store) -> None:
    edit_state(txn, inodes=99)


@repairable("state")
def logical_bytes(txn: WriteTxn, store: Store) -> None:
    edit_state(txn, logical=1)


@repairable("state")
def next_inode_number(txn: WriteTxn, store: Store) -> None:
    edit_state(txn, next_ino=18)


@repairable("state")
def next_block_number(txn: WriteTxn, store: Store) -> None:
    edit_state(txn, next_number=2)


@repairable("state")
def clean_after_the_last_commit(txn: WriteTxn, store: Store) -> None:
    edit_state(txn, clean_commit=999)


@repairable("commit")
def commit_of_the_future(txn: WriteTxn, store: Store) -> None:
    edit_inode(txn, FILE, commit=1000)


@repairable("nlink")
def link_count_of_a_file(txn: WriteTxn, store: Store) -> None:
    edit_inode(txn, SECOND, nlink=7)


@repairable("nlink")
def link_count_of_a_directory(txn: WriteTxn, store: Store) -> None:
    edit_inode(txn, DIRECTORY, nlink=2)


@repairable("parent")
def parent_of_a_directory(txn: WriteTxn, store: Store) -> None:
    edit_inode(txn, SUB, aux=ROOT)


@repairable("proof")
def xattrs_that_nobody_proves(txn: WriteTxn, store: Store) -> None:
    edit_inode(txn, FILE, xattrs=0)


@repairable("proof")
def xattr_lost(txn: WriteTxn, store: Store) -> None:
    txn.delete("xattr", COLOUR)


@repairable("proof")
def xattr_of_yesterday(txn: WriteTxn, store: Store) -> None:
    txn.put("xattr", COLOUR, schema.pack_xattr(COLOUR, b"grey", 1))


@repairable("xattr")
def xattr_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "xattr", COLOUR, byte=9)


@repairable("xattr")
def checksum_of_an_xattr_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "xattr", COLOUR, byte=-1)


@repairable("xattr")
def xattr_and_its_inode_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "inode", schema.inode_key(FILE), byte=20)
    damage(txn, "xattr", COLOUR, byte=9)


@repairable("key")
def xattr_without_a_name(txn: WriteTxn, store: Store) -> None:
    txn.put("xattr", schema.inode_key(FILE), schema.pack_xattr(schema.inode_key(FILE), b"", 1))


@repairable("proof")
def dentry_lost(txn: WriteTxn, store: Store) -> None:
    txn.delete("dentry", dentry_key(store, SUB, b"fifo"))


@repairable("dentry")
def dentry_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "dentry", dentry_key(store, ROOT, b"file"), byte=7)


@repairable("dentry")
def dentry_of_a_directory_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "dentry", dentry_key(store, ROOT, b"dir"), byte=7)


@repairable("dangling")
def dentry_without_inode(txn: WriteTxn, store: Store) -> None:
    put_dentry(txn, dentry_key(store, SUB, b"ghost"), Dentry(15, FILE_KIND, b"ghost", 1))


@repairable("dangling")
def inode_lost(txn: WriteTxn, store: Store) -> None:
    txn.delete("inode", schema.inode_key(SECOND))


@repairable("dentry")
def dentry_in_a_file(txn: WriteTxn, store: Store) -> None:
    key = dentry_key(store, FIFO, b"inside")
    txn.put("dentry", key, Dentry(FILE, FILE_KIND, b"inside", 1).pack(key))


@repairable("dentry")
def directory_with_two_names(txn: WriteTxn, store: Store) -> None:
    put_dentry(txn, dentry_key(store, ROOT, b"sub again"), Dentry(SUB, DIR_KIND, b"sub again", 1))


@repairable("dentry")
def root_has_a_name(txn: WriteTxn, store: Store) -> None:
    put_dentry(txn, dentry_key(store, SUB, b"top"), Dentry(ROOT, DIR_KIND, b"top", 1))


@repairable("kind")
def dentry_of_the_wrong_kind(txn: WriteTxn, store: Store) -> None:
    put_dentry(txn, dentry_key(store, SUB, b"fifo"), Dentry(FIFO, FILE_KIND, b"fifo", 1))


@repairable("cookie")
def cookie_of_another_name(txn: WriteTxn, store: Store) -> None:
    remove_dentry(txn, dentry_key(store, SUB, b"fifo"))
    put_dentry(txn, schema.KEY2.pack(SUB, 77 << 16), Dentry(FIFO, stat.S_IFIFO >> 12, b"fifo", 1))


@repairable("flags")
def collision_without_the_flag(txn: WriteTxn, store: Store) -> None:
    remove_dentry(txn, dentry_key(store, SUB, b"fifo"))
    cookie = schema.cookie_of(b"fifo", store.superblock.seed) + 1
    put_dentry(txn, schema.KEY2.pack(SUB, cookie), Dentry(FIFO, stat.S_IFIFO >> 12, b"fifo", 1))


@repairable("name")
def name_twice(txn: WriteTxn, store: Store) -> None:
    cookie = schema.cookie_of(b"fifo", store.superblock.seed) + 1
    put_dentry(txn, schema.KEY2.pack(SUB, cookie), Dentry(FIFO, stat.S_IFIFO >> 12, b"fifo", 1))
    edit_inode(txn, FIFO, nlink=2)


@repairable("name")
def name_with_a_slash(txn: WriteTxn, store: Store) -> None:
    put_dentry(txn, dentry_key(store, SUB, b"a/b"), Dentry(FILE, FILE_KIND, b"a/b", 1))


@repairable("name")
def name_dot_dot(txn: WriteTxn, store: Store) -> None:
    put_dentry(txn, dentry_key(store, SUB, b".."), Dentry(FILE, FILE_KIND, b"..", 1))


@repairable("lost")
def file_without_a_name(txn: WriteTxn, store: Store) -> None:
    remove_dentry(txn, dentry_key(store, ROOT, b"file"))


@repairable("lost")
def directory_without_a_name(txn: WriteTxn, store: Store) -> None:
    remove_dentry(txn, dentry_key(store, DIRECTORY, b"sub"))


@repairable("lost")
def deleted_but_no_orphan(txn: WriteTxn, store: Store) -> None:
    remove_dentry(txn, dentry_key(store, ROOT, b"file"))
    edit_inode(txn, FILE, nlink=0)


@repairable("cycle")
def directory_within_itself(txn: WriteTxn, store: Store) -> None:
    remove_dentry(txn, dentry_key(store, ROOT, b"dir"))
    put_dentry(txn, dentry_key(store, SUB, b"dir"), Dentry(DIRECTORY, DIR_KIND, b"dir", 1))
    edit_inode(txn, DIRECTORY, aux=SUB)


@repairable("cycle")
def directory_its_own_parent(txn: WriteTxn, store: Store) -> None:
    remove_dentry(txn, dentry_key(store, ROOT, b"dir"))
    put_dentry(txn, dentry_key(store, DIRECTORY, b"me"), Dentry(DIRECTORY, DIR_KIND, b"me", 1))


@repairable("orphan")
def orphan_with_a_name(txn: WriteTxn, store: Store) -> None:
    key = schema.inode_key(FILE)
    txn.put("orphan", key, schema.pack_orphan(key, 1))


@repairable("orphan")
def orphan_without_inode(txn: WriteTxn, store: Store) -> None:
    key = schema.inode_key(15)
    txn.put("orphan", key, schema.pack_orphan(key, 1))


@repairable("orphan")
def orphan_damaged(txn: WriteTxn, store: Store) -> None:
    txn.put("orphan", schema.inode_key(FILE), b"x" * 16)


@repairable("nlink")
def orphan_with_links(txn: WriteTxn, store: Store) -> None:
    key = schema.inode_key(FILE)
    remove_dentry(txn, dentry_key(store, ROOT, b"file"))
    txn.put("orphan", key, schema.pack_orphan(key, 1))


@repairable("xattr")
def xattr_of_nothing(txn: WriteTxn, store: Store) -> None:
    key = schema.inode_key(15) + b"user.a"
    txn.put("xattr", key, schema.pack_xattr(key, b"", 1))


@repairable("inode")
def inode_of_a_file_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "inode", schema.inode_key(FILE), byte=20)


@repairable("inode")
def inode_of_a_directory_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "inode", schema.inode_key(DIRECTORY), byte=20)


@repairable("inode")
def inode_of_the_root_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "inode", schema.inode_key(ROOT), byte=20)


@repairable("root")
def root_lost(txn: WriteTxn, store: Store) -> None:
    txn.delete("inode", schema.inode_key(ROOT))


@repairable("key")
def key_of_a_wrong_length(txn: WriteTxn, store: Store) -> None:
    for table in ("inode", "dentry", "xattr", "map", "block", "orphan"):
        txn.put(table, b"\0\1", b"?" * 20)


@repairable("map")
def map_of_nothing(txn: WriteTxn, store: Store) -> None:
    key = schema.KEY2.pack(15, 0)
    txn.put("map", key, MapNode({0: block_of(txn, FILE, 2)}, 1).pack(key))


@repairable("beyond")
def chunks_beyond_the_end(txn: WriteTxn, store: Store) -> None:
    edit_inode(txn, FILE, size=CHUNK)


@repairable("count")
def chunk_count(txn: WriteTxn, store: Store) -> None:
    edit_inode(txn, FILE, count=9)


@repairable("proof")
def fifo_that_proves_chunks(txn: WriteTxn, store: Store) -> None:
    edit_inode(txn, FIFO, count=1, proof=5)


@repairable("refs")
def references_too_high(txn: WriteTxn, store: Store) -> None:
    edit_block(txn, block_of(txn, FILE, 2), refs=5)


@repairable("refs")
def references_too_low(txn: WriteTxn, store: Store) -> None:
    edit_block(txn, block_of(txn, FILE, 0), refs=1)


@repairable("refs")
def block_without_references(txn: WriteTxn, store: Store) -> None:
    state = dataclasses.replace(store.state)
    writer = BlockWriter(txn, state, 0, 0)
    writer.add(encoded(noise(9)))
    writer.flush()
    txn.put_state(state)


@repairable("index")
def index_entry_lost(txn: WriteTxn, store: Store) -> None:
    block = load_block(txn, block_of(txn, FILE, 2))
    assert block is not None
    txn.delete("hash", block.hash[:16])


@repairable("index")
def index_entry_to_another_block(txn: WriteTxn, store: Store) -> None:
    block = load_block(txn, block_of(txn, FILE, 2))
    assert block is not None
    txn.put("hash", block.hash[:16], schema.KEY.pack(block_of(txn, FILE, 0)))


@repairable("index")
def index_entry_to_nothing(txn: WriteTxn, store: Store) -> None:
    txn.put("hash", b"?" * 16, schema.KEY.pack(77))


@repairable("payload")
def payload_of_no_block(txn: WriteTxn, store: Store) -> None:
    txn.put("payload", schema.FRAGMENT_KEY.pack(store.state.next_number - 1 + 40, 0), b"abc")


@repairable("total")
def total_wrong(txn: WriteTxn, store: Store) -> None:
    key = schema.TOTAL_KEY.pack(1, 0)
    txn.put("total", key, Total(1, 2, 3, 1).pack(key))


@repairable("total")
def total_lost(txn: WriteTxn, store: Store) -> None:
    txn.delete("total", schema.TOTAL_KEY.pack(0, 0))


@repairable("total")
def total_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "total", schema.TOTAL_KEY.pack(0, 0))


@repairable("queue")
def record_in_the_reserved_table(txn: WriteTxn, store: Store) -> None:
    txn.put("queue", schema.KEY.pack(1), b"??")


@repairable("scrub")
def scrub_record_damaged(txn: WriteTxn, store: Store) -> None:
    txn.put("meta", schema.SCRUB_KEY, schema.Scrub(1, 0, 2).pack())
    damage(txn, "meta", schema.SCRUB_KEY)


# -- what stays: nothing is made up


@lasting("data")
def payload_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "payload", payload_key(txn, FILE, 2), byte=50)


@lasting("data")
def payload_lost(txn: WriteTxn, store: Store) -> None:
    txn.delete("payload", payload_key(txn, FILE, 2))


@lasting("block")
def block_header_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "block", schema.KEY.pack(block_of(txn, FILE, 2)), byte=9)


@lasting("map")
def block_lost(txn: WriteTxn, store: Store) -> None:
    txn.delete("block", schema.KEY.pack(block_of(txn, FILE, 2)))


@lasting("map")
def map_node_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "map", schema.KEY2.pack(FILE, 0), byte=9)


@lasting("proof")
def map_node_lost(txn: WriteTxn, store: Store) -> None:
    txn.delete("map", schema.KEY2.pack(FILE, 0))


@lasting("proof")
def map_node_of_yesterday(txn: WriteTxn, store: Store) -> None:
    key = schema.KEY2.pack(FILE, 0)
    txn.put("map", key, MapNode({0: block_of(txn, FILE, 0), 2: block_of(txn, FILE, 200)}, 1).pack(key))


@lasting("tail")
def chunk_longer_than_the_file(txn: WriteTxn, store: Store) -> None:
    edit_inode(txn, FILE, size=200 * CHUNK + 99)


@lasting("block")
def codec_unknown(txn: WriteTxn, store: Store) -> None:
    recode_header(txn, block_of(txn, FILE, 2), codec=99)


@lasting("model")
def model_unknown(txn: WriteTxn, store: Store) -> None:
    recode_header(txn, block_of(txn, FILE, 2), codec=NEURAL, model=3)


@lasting("block")
def neural_without_a_model(txn: WriteTxn, store: Store) -> None:
    recode_header(txn, block_of(txn, FILE, 2), codec=NEURAL)


@lasting("block")
def raw_with_a_model(txn: WriteTxn, store: Store) -> None:
    recode_header(txn, block_of(txn, FILE, 2), model=3)


@lasting("model")
def model_damaged(txn: WriteTxn, store: Store) -> None:
    txn.put("model", b"\0\1", b"?" * 80)


# -- the tests


def test_a_sound_store_is_clean(store: Store) -> None:
    report = check(store, data=True)
    assert report.problems == []
    assert report.notes == []
    assert report.exit_code == 0
    assert report.counts["inode"] == 7
    assert report.counts["dentry"] == 7
    assert report.counts["map"] == 3


def test_repair_changes_nothing_in_a_sound_store(store: Store) -> None:
    before = store.state.commit
    assert check(store, repair=True).exit_code == 0
    assert store.state.commit == before


@pytest.mark.parametrize("name", REPAIRABLE)
def test_found_and_repaired(store: Store, name: str) -> None:
    kind, broken = REPAIRABLE[name]
    with store.write() as txn:
        broken(txn, store)
    reload(store)
    found = check(store)
    assert kind in kinds(found), found.as_dict()
    assert found.exit_code == 4
    assert not any(problem.fixed for problem in found.problems)
    repaired = check(store, repair=True)
    assert kind in {problem.kind for problem in repaired.problems if problem.fixed}
    assert repaired.exit_code == 1, repaired.as_dict()
    again = check(store, data=True)
    assert again.problems == [], again.as_dict()


@pytest.mark.parametrize("name", LASTING)
def test_found_named_and_left_alone(store: Store, name: str) -> None:
    kind, broken = LASTING[name]
    with store.write() as txn:
        broken(txn, store)
    found = check(store)
    assert kind in kinds(found), found.as_dict()
    assert found.exit_code == 4
    if name not in ("model_damaged", "codec_unknown", "neural_without_a_model"):
        assert any("/file" in path for problem in found.problems for path in problem.paths), found.as_dict()
    for _ in range(2):
        repaired = check(store, repair=True)
        assert repaired.exit_code == 4
        assert kind in {problem.kind for problem in repaired.problems if not problem.fixed}
    snapshot = store.read()
    number = block_of(snapshot, SECOND, 0)
    block = load_block(snapshot, number)
    snapshot.close()
    assert block is not None, "a block that a sound file needs was dropped"


def reload(store: Store) -> None:
    """What an opening reads anew."""
    snapshot = store.read()
    try:
        record = snapshot.get("meta", schema.STATE_KEY) or snapshot.get("main", schema.STATE_KEY)
        assert record is not None
        store.state = State.unpack(record)
    finally:
        snapshot.close()


def names_in(snapshot: Snapshot, directory: int) -> dict[bytes, int]:
    found = [Dentry.unpack(key, record) for key, record in snapshot.prefix("dentry", schema.inode_key(directory))]
    return {dentry.name: dentry.ino for dentry in found}


def test_what_has_no_name_is_found_again_in_lost_and_found(store: Store) -> None:
    with store.write() as txn:
        remove_dentry(txn, dentry_key(store, ROOT, b"file"))
        remove_dentry(txn, dentry_key(store, DIRECTORY, b"sub"))
    report = check(store, repair=True)
    assert any("/lost+found/#18" in note for note in report.notes)
    snapshot = store.read()
    home = names_in(snapshot, ROOT)[b"lost+found"]
    assert names_in(snapshot, home) == {b"#18": FILE, b"#17": SUB}
    assert set(names_in(snapshot, SUB)) == {b"hard", b"fifo"}
    record = snapshot.get("inode", schema.inode_key(home))
    assert record is not None
    inode = Inode.unpack(home, record)
    assert stat.S_IMODE(inode.mode) == 0o700
    assert inode.nlink == 3
    snapshot.close()
    with store.write() as txn:  # the next find goes to the same place
        remove_dentry(txn, dentry_key(store, ROOT, b"link"))
    check(store, repair=True)
    snapshot = store.read()
    assert set(names_in(snapshot, home)) == {b"#17", b"#18", b"#20"}
    snapshot.close()


def test_a_damaged_directory_keeps_its_place_and_its_files(store: Store) -> None:
    with store.write() as txn:
        damage(txn, "inode", schema.inode_key(DIRECTORY), byte=3)
    report = check(store, repair=True)
    assert report.exit_code == 1
    assert any("rebuilt as a directory" in note for note in report.notes)
    snapshot = store.read()
    assert names_in(snapshot, ROOT)[b"dir"] == DIRECTORY
    assert names_in(snapshot, DIRECTORY) == {b"sub": SUB, b"second": SECOND}
    record = snapshot.get("inode", schema.inode_key(DIRECTORY))
    assert record is not None
    inode = Inode.unpack(DIRECTORY, record)
    assert (inode.nlink, inode.aux, inode.mode) == (3, ROOT, stat.S_IFDIR | 0o700)
    snapshot.close()


def test_a_damaged_file_is_rebuilt_from_its_map(store: Store) -> None:
    with store.write() as txn:
        damage(txn, "inode", schema.inode_key(FILE), byte=3)
    assert check(store, repair=True).exit_code == 1
    snapshot = store.read()
    record = snapshot.get("inode", schema.inode_key(FILE))
    assert record is not None
    inode = Inode.unpack(FILE, record)
    assert inode.size == 200 * CHUNK + 100
    assert (inode.count, inode.nlink, inode.mode, inode.uid) == (3, 1, stat.S_IFREG | 0o600, 0)
    snapshot.close()


@pytest.mark.parametrize("name", ["xattr_lost", "xattr_damaged", "checksum_of_an_xattr_damaged"])
def test_a_lost_attribute_is_told(store: Store, name: str) -> None:
    with store.write() as txn:
        key = schema.inode_key(FILE) + b"user.shape"
        record = txn.get("inode", schema.inode_key(FILE))
        assert record is not None
        shape = schema.pack_xattr(key, b"round", 1)
        edit_inode(txn, FILE, xattrs=(Inode.unpack(FILE, record).xattrs + sealing.checksum_of(shape)) & MASK)
        txn.put("xattr", key, shape)
        REPAIRABLE[name][1](txn, store)
    found = check(store)
    assert {path for problem in found.problems for path in problem.paths} == {"/file"}
    repaired = check(store, repair=True)
    assert any("has lost" in note and str(FILE) in note for note in repaired.notes)
    assert (name == "xattr_lost") != any("user.colour" in note for note in repaired.notes)
    snapshot = store.read()
    record = snapshot.get("inode", schema.inode_key(FILE))
    assert [key for key, _ in snapshot.prefix("xattr", schema.inode_key(FILE))] == [key]
    snapshot.close()
    assert record is not None
    assert Inode.unpack(FILE, record).xattrs == sealing.checksum_of(shape)


def test_an_attribute_that_was_not_counted_is_kept(store: Store) -> None:
    with store.write() as txn:
        edit_inode(txn, FILE, xattrs=0)
    repaired = check(store, repair=True)
    assert not any("lost" in note for note in repaired.notes)
    snapshot = store.read()
    assert snapshot.get("xattr", COLOUR) is not None
    snapshot.close()


def test_every_file_that_shares_a_damaged_block_is_named(store: Store) -> None:
    with store.write() as txn:
        damage(txn, "payload", payload_key(txn, FILE, 0), byte=20)
    problem = next(problem for problem in check(store).problems if problem.kind == "data")
    first, second = sorted(problem.paths)
    assert first in ("/dir/second at 0", "/dir/sub/hard at 0")
    assert second == "/file at 0"


def test_only_data_finds_content_under_a_wrong_hash(store: Store) -> None:
    with store.write() as txn:
        number = block_of(txn, FILE, 2)
        block = load_block(txn, number)
        assert block is not None
        txn.delete("hash", block.hash[:16])
        edit_block(txn, number, hash=bytes(64))
        txn.put("hash", bytes(16), schema.KEY.pack(number))
    assert check(store).problems == []
    report = check(store, data=True)
    assert kinds(report) == {"data"}
    assert "BLAKE2b" in report.problems[0].message
    assert check(store, data=True, repair=True).exit_code == 4


def test_references_are_not_lowered_while_a_map_is_uncertain(store: Store) -> None:
    with store.write() as txn:
        number = block_of(txn, FILE, 2)
        txn.delete("map", schema.KEY2.pack(FILE, 0))
    report = check(store, repair=True)
    assert report.exit_code == 4
    assert any("kept as they are" in note for note in report.notes)
    snapshot = store.read()
    block = load_block(snapshot, number)
    snapshot.close()
    assert block is not None
    assert block.refs == 1


def test_orphans_are_a_note(store: Store) -> None:
    with store.write() as txn:
        key = schema.inode_key(FILE)
        remove_dentry(txn, dentry_key(store, ROOT, b"file"))
        edit_inode(txn, FILE, nlink=0)
        txn.put("orphan", key, schema.pack_orphan(key, 1))
    report = check(store)
    assert report.problems == []
    assert report.exit_code == 0
    assert "1 inodes without names" in report.notes[0]


def test_many_things_broken_at_once(store: Store) -> None:
    with store.write() as txn:
        for name in ("link_count_of_a_file", "dentry_lost", "references_too_high", "total_lost", "inode_number_count"):
            REPAIRABLE[name][1](txn, store)
        REPAIRABLE["directory_within_itself"][1](txn, store)
        damage(txn, "inode", schema.inode_key(FILE), byte=1)
    reload(store)
    assert check(store, repair=True).exit_code == 1
    assert check(store, data=True).problems == []


# -- from the pages upwards


def run(path: Path, **how: bool) -> Report:
    return fsck.run(
        path, data=how.get("data", False), repair=how.get("repair", False), progress=lambda stage, done, total: None
    )


def test_run_opens_checks_and_closes(tmp_path: Path) -> None:
    make_store(tmp_path / "s").close()
    assert run(tmp_path / "s", data=True).exit_code == 0
    Store.open(tmp_path / "s").close()


def test_run_refuses_what_it_cannot_check(tmp_path: Path) -> None:
    with pytest.raises(NotAStore):
        run(tmp_path)
    store = make_store(tmp_path / "s")
    with pytest.raises(StoreBusy):
        run(tmp_path / "s")
    store.close()


def test_unknown_features_are_not_repaired(store: Store) -> None:
    store.superblock.ro_compat = 1
    with pytest.raises(UsageError):
        check(store, repair=True)


def page_flags(page: bytes) -> int:
    return int.from_bytes(page[10:12], "little")


@pytest.mark.parametrize("which", [0x01, 0x02])
def test_damaged_pages_are_found_and_nothing_is_repaired(tmp_path: Path, which: int) -> None:
    """A branch or leaf page whose header says that it is something else."""
    store = make_store(tmp_path / "s")
    with store.write() as txn:
        for number in range(2000):  # enough for branch pages
            key = schema.inode_key(15) + b"user.%d" % number
            txn.put("xattr", key, schema.pack_xattr(key, b"v" * 40, 1))
    store.close()
    file = tmp_path / "s" / DATA_FILE
    content = bytearray(file.read_bytes())
    assert kinds(run(tmp_path / "s")) == {"xattr"}  # there is no inode 15
    broken = 0
    for start in range(2 * 4096, len(content), 4096):
        if page_flags(bytes(content[start : start + 4096])) == which:
            content[start + 10] ^= 0x10
            broken += 1
    assert broken
    file.write_bytes(content)
    report = run(tmp_path / "s", repair=True)
    assert report.exit_code == 4
    assert "page" in kinds(report)
    assert not any(problem.fixed for problem in report.problems)
    assert any("were not repaired" in note for note in report.notes)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\0" * 8192, noise(1)])
def test_files_that_are_no_store_at_all(tmp_path: Path, content: bytes) -> None:
    make_store(tmp_path / "s").close()
    (tmp_path / "s" / DATA_FILE).write_bytes(content)
    report = run(tmp_path / "s")
    assert report.exit_code == 4


def test_a_truncated_file(tmp_path: Path) -> None:
    make_store(tmp_path / "s").close()
    file = tmp_path / "s" / DATA_FILE
    os.truncate(file, file.stat().st_size // 2 // 4096 * 4096)
    assert run(tmp_path / "s").exit_code == 4


def committed_uid(path: Path) -> int:
    """What the last commits of `meta_pages` wrote."""
    store = Store.open(path)
    snapshot = store.read()
    record = snapshot.get("inode", schema.inode_key(FIFO))
    snapshot.close()
    store.close()
    assert record is not None
    return Inode.unpack(FIFO, record).uid


META_FIELDS = {  # offset and length; what a flip of it is to fsck
    "page number": (0, 8, "mended"), "unused header": (8, 2, "no matter"), "page type": (10, 1, "either"),
    "unused bounds": (12, 4, "no matter"), "magic": (16, 4, "mended"), "version": (20, 4, "mended"),
    "address": (24, 8, "no matter"), "map size": (32, 8, "no matter"), "page size": (40, 4, "mended"),
    "freeDB flags": (44, 2, "mended"), "freeDB counts": (46, 34, "pages"), "freeDB root": (80, 8, "root"),
    "main pad": (88, 4, "pad"), "main flags": (92, 2, "mended"), "main counts": (94, 34, "pages"),
    "main root": (128, 8, "root"), "last page": (136, 8, "pages"), "txnid": (144, 8, "mended"),
    "behind it": (152, 16, "no matter"),
}  # fmt: skip


@pytest.mark.parametrize("is_newer", [True, False])
@pytest.mark.parametrize("field", META_FIELDS)
def test_meta_pages(tmp_path: Path, field: str, is_newer: bool) -> None:
    """One byte of LMDB's meta pages: found and mended, or found, or of no matter; never a commit lost in silence."""
    store = make_store(tmp_path / "s")
    for uid in (1, 2):
        with store.write() as txn:
            edit_inode(txn, FIFO, uid=uid)
    store.close()
    file = tmp_path / "s" / DATA_FILE
    sound = file.read_bytes()
    txnids = [int.from_bytes(sound[n * 4096 + 144 :][:8], "little") for n in (0, 1)]
    page = txnids.index(max(txnids) if is_newer else min(txnids))
    start, length, expected = META_FIELDS[field]
    for flip in (0x01, 0x02, 0x40, 0xFF) if FULL else (0x01, 0xFF):
        for byte in range(start, start + length):
            content = bytearray(sound)
            content[page * 4096 + byte] ^= flip
            file.write_bytes(content)
            look_at_a_meta_page(tmp_path / "s", expected, is_newer, f"byte {byte} ^ {flip:#x}")


def look_at_a_meta_page(path: Path, expected: str, is_newer: bool, story: str) -> None:
    before = (path / DATA_FILE).read_bytes()
    found, after = run(path), (path / DATA_FILE).read_bytes()
    repaired = run(path, repair=True)
    assert after == before, f"{story}: changed without being asked to"
    if "meta" in kinds(found):
        assert expected in ("mended", "either", "root"), story
        assert any("--repair" in note for note in found.notes)
        assert [problem.fixed for problem in repaired.problems] == [True], story
        assert (found.exit_code, repaired.exit_code) == (4, 1), story
        told = repaired.problems[0].message
        assert committed_uid(path) == (2 if "nothing is lost" in told else 1), story
        assert "nothing is lost" in told or expected == "root", story
        assert run(path, data=True).problems == [], story
    elif found.problems:
        assert is_newer, f"{story}: the older page is of no matter"
        assert expected in ("pages", "pad", "root"), story
        assert repaired.exit_code == 4
        assert (path / DATA_FILE).read_bytes() == before, f"{story}: nothing to repair it from"
    else:
        assert expected in ("no matter", "either", "pad") or not is_newer, story
        assert committed_uid(path) == 2, story


def test_damage_beside_a_meta_page_is_found_after_its_repair(tmp_path: Path) -> None:
    make_store(tmp_path / "s").close()
    file = tmp_path / "s" / DATA_FILE
    content = bytearray(file.read_bytes())
    content[16] ^= 1
    for start in range(8192, len(content), 4096):
        if page_flags(bytes(content[start : start + 16])) == 0x02:
            content[start] ^= 0x10  # number of the leaf page
    file.write_bytes(content)
    report = run(tmp_path / "s", repair=True)
    assert kinds(report) >= {"meta", "page"}
    assert report.exit_code == 4
    assert [problem.kind for problem in report.problems if problem.fixed] == ["meta"]
    assert any("restore a backup" in note for note in report.notes)


def test_the_report_is_json(store: Store) -> None:
    with store.write() as txn:
        txn.put("dentry", dentry_key(store, SUB, b"\xff\n"), b"?")
        payload_damaged(txn, store)
    answer = json.loads(json.dumps(check(store).as_dict()))
    assert answer["exit_code"] == 4
    assert not answer["clean"]
    assert {"kind", "message", "fixed", "fixable", "inodes", "paths"} == set(answer["errors"][0])


def test_block_headers_of_other_payload_numbers_are_followed(store: Store) -> None:
    """As recompression leaves them: the payload lies under a new number."""
    with store.write() as txn:
        number = block_of(txn, FILE, 2)
        block = load_block(txn, number)
        assert block is not None
        payload = txn.payload(block.payload, block.stored)
        txn.delete_prefix("payload", schema.KEY.pack(block.payload))
        new = store.state.next_number
        txn.put("payload", schema.FRAGMENT_KEY.pack(new, 0), payload[:2020])
        for n, start in enumerate(range(2020, len(payload), 2020), start=1):
            txn.put("payload", schema.FRAGMENT_KEY.pack(new, n), payload[start : start + 2020])
        edit_block(txn, number, payload=new)
        store.state.next_number += 1
        txn.put_state(store.state)
    assert check(store, data=True).problems == []


def test_marks_of_recompression_are_no_errors(store: Store) -> None:
    """Blocks that were tried, files that are settled, a store that is not, and estimates of what files occupy."""
    with store.write() as txn:
        edit_block(txn, block_of(txn, FILE, 2), flags=Block.FLAG_TRIED)
        edit_inode(txn, FILE, flags=Inode.FLAG_SETTLED, stored=12345)
        edit_state(txn, flags=State.FLAG_UNSETTLED)
        txn.put("meta", schema.SCRUB_KEY, schema.Scrub(1, 0, 2).pack())
    reload(store)
    assert check(store, data=True).problems == []


def test_unknown_flags_are_told(store: Store) -> None:
    with store.write() as txn:
        edit_block(txn, block_of(txn, FILE, 2), flags=0x82)
    assert kinds(check(store)) == {"block"}


def test_a_lost_model_is_told_once_with_all_that_needs_it(store: Store) -> None:
    with store.write() as txn:
        for chunk in (0, 2):
            recode_header(txn, block_of(txn, FILE, chunk), codec=NEURAL, model=3)
    [problem] = check(store, data=True).problems
    assert problem.kind == "model"
    assert problem.message.startswith("model 3 is not in the store (nnfs model add PATH FILE ")
    assert problem.message.endswith("; 2 blocks need it")
    assert {"/file at 0", f"/file at {2 * CHUNK}"} < set(problem.paths)


def test_what_may_be_a_lost_model_is_kept(store: Store) -> None:
    """Its record is gone, so its file belongs to nothing: a repair must not sweep it up."""
    with store.write() as txn:
        number = store.state.next_number
        txn.put("payload", schema.FRAGMENT_KEY.pack(number, 0), b"what may be a model")
        store.state.next_number += 1
        txn.put_state(store.state)
        recode_header(txn, block_of(txn, FILE, 2), codec=NEURAL, model=3)
    assert check(store, repair=True).exit_code == 4
    snapshot = store.read()
    assert snapshot.payload(number, 100) == b"what may be a model"
    snapshot.close()


TABLES = ("inode", "dentry", "xattr", "map", "block", "payload", "hash", "total", "orphan")


def everything(snapshot: Snapshot) -> dict[str, list[tuple[bytes, bytes]]]:
    return {table: list(snapshot.range(table, b"")) for table in TABLES}


def break_at_random(txn: WriteTxn, draw: random.Random) -> None:
    """Flip, delete, move or swap some record of some table."""
    table = draw.choice(TABLES)
    records = list(txn.range(table, b""))
    if not records:
        return
    key, record = draw.choice(records)
    how = draw.randrange(4)
    if how == 0:
        damage(txn, table, key, draw.randrange(len(record)))
    elif how == 1:
        txn.delete(table, key)
    elif how == 2:
        txn.put(table, draw.choice(records)[0], record)
    else:
        txn.delete(table, key)
        txn.put(table, draw.randbytes(len(key)), record)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(400 if FULL else 40))
def test_random_damage_never_confuses_a_repair(store: Store, seed: int) -> None:
    draw = random.Random(seed)
    with store.write() as txn:
        before = everything(txn)
        for _ in range(draw.choice((1, 1, 2, 5))):
            break_at_random(txn, draw)
        after = everything(txn)
    assert bool(check(store, data=True).problems) == (after != before)
    first = check(store, data=True, repair=True)
    again = check(store, data=True, repair=True)
    assert not any(problem.fixed for problem in again.problems), [p.message for p in again.problems if p.fixed]
    assert {p.message for p in again.problems} <= {p.message for p in first.problems if not p.fixed}
