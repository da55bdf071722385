"""A small store that is written by hand, and tools to break it, for the tests of fsck."""

from __future__ import annotations

import dataclasses
import stat
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from nnfs import codec
from nnfs.fs import fsck
from nnfs.fs.fsck import Report
from nnfs.store import schema, sealing
from nnfs.store.blocks import BlockWriter, Encoded, load_block
from nnfs.store.env import Store
from nnfs.store.schema import Dentry, Inode, MapNode, State, Total
from nnfs.store.txn import Snapshot, WriteTxn

CHUNK = 16384
ROOT, DIRECTORY, SUB, FILE, SECOND, LINK, FIFO = 1, 16, 17, 18, 19, 20, 21
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

    def folders(self) -> None:
        """Make /dir and /dir/sub."""
        self.inode(DIRECTORY, stat.S_IFDIR | 0o755)
        self.inode(SUB, stat.S_IFDIR | 0o755)
        self.name(ROOT, b"dir", DIRECTORY)
        self.name(DIRECTORY, b"sub", SUB)

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
        maker.folders()
        maker.inode(FILE, stat.S_IFREG | 0o644)
        maker.inode(SECOND, stat.S_IFREG | 0o644)
        link = maker.inode(LINK, stat.S_IFLNK | 0o777)
        link.target, link.size = b"dir/second", 10
        maker.inode(FIFO, stat.S_IFIFO | 0o600)
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


def check(store: Store, *, data: bool = False, repair: bool = False) -> Report:
    return fsck.check(store, data=data, repair=repair, progress=lambda stage, done, total: None)


def kinds(report: Report) -> set[str]:
    return {problem.kind for problem in report.problems}


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


def rewrite_header(txn: WriteTxn, number: int, **changes: int) -> None:
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


Break = Callable[[WriteTxn, Store], None]
Breaks = dict[str, tuple[str, Break]]  # by name: the kind of the problem that fsck finds, and the function


def noted(breaks: Breaks, kind: str) -> Callable[[Break], Break]:
    """Enter a function that breaks something."""

    def note(function: Break) -> Break:
        breaks[function.__name__] = (kind, function)
        return function

    return note


def reload(store: Store) -> None:
    """Return the records that an opening reads anew."""
    snapshot = store.read()
    try:
        record = snapshot.get("meta", schema.STATE_KEY) or snapshot.get("main", schema.STATE_KEY)
        assert record is not None
        store.state = State.unpack(record)
    finally:
        snapshot.close()


def run(path: Path, **how: bool) -> Report:
    return fsck.run(
        path, data=how.get("data", False), repair=how.get("repair", False), progress=lambda stage, done, total: None
    )
