"""Reads a store as `nnfs/store/FORMAT.md` says: every record is checked, every chunk decoded and compared.

`python -m tests.format.decoder.store STORE` prints the tree with a digest of each file's chunks. Key and value pairs
come from the lmdb package, XXH3-64 from xxhash, BLAKE2b from hashlib.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from struct import calcsize, pack, unpack_from
from typing import Any, NamedTuple

import lmdb
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from tests.format.decoder import payloads
from tests.format.decoder.models import Model, compose

TAGS = {
    "meta": 1, "inode": 2, "dentry": 3, "xattr": 4, "map": 5, "block": 6, "payload": 7, "hash": 8, "model": 9,
    "orphan": 10, "queue": 11, "total": 12, "vector": 13,
}  # fmt: skip
SUPER, STATE, INODE, BLOCK = ">4sII16sIIQQQqQ", ">QQQQQQQB", ">IIIIIQQqqqqQQQQQ", ">BBHIIIQQQQ64s"
M64 = (1 << 64) - 1


class Broken(Exception):
    """A store that does not follow the document."""


class Inode(NamedTuple):
    """An inode record without its target."""

    mode: int
    uid: int
    gid: int
    nlink: int
    flags: int
    size: int
    aux: int
    atime: int
    mtime: int
    ctime: int
    btime: int
    count: int  # type: ignore[assignment] # the document's name; the tuple's method is not used
    proof: int
    xattrs: int
    stored: int
    commit: int


class Block(NamedTuple):
    """A block header."""

    codec: int
    flags: int
    model: int
    plain: int
    stored: int
    born: int
    xxh3: int
    payload: int
    refs: int
    commit: int
    hash: bytes


@dataclass
class Entry:
    """One line of the tree."""

    path: bytes
    inode: Inode
    target: bytes
    xattrs: dict[bytes, bytes]
    chunks: dict[int, bytes]

    @property
    def digest(self) -> str:
        """BLAKE2b, 16 bytes, of the mapped chunks in order: number of the chunk (u64, big-endian), plain bytes."""
        digest = blake2b(digest_size=16)
        for number, plain in sorted(self.chunks.items()):
            digest.update(pack(">Q", number) + plain)
        return digest.hexdigest()


class Store:
    """A store that nobody has open."""

    def __init__(self, path: str) -> None:
        self.env = lmdb.open(path, readonly=True, lock=False, max_dbs=len(TAGS), lib_version=0)
        tables = {name: self.env.open_db(name.encode(), create=False) for name in TAGS if name != "vector"}
        self.tables: dict[str, Any] = {**tables, "main": None}
        self.txn = self.env.begin()
        superblock = self.twice(b"nnfs.super", SUPER)
        magic, version, engine, self.uuid, self.chunk_size, _, _, _, incompat, _, self.seed = superblock
        if (magic, version, engine, incompat) != (b"nnfs", 1, 0, 0):
            raise Broken("another version, or a feature that this reader does not know")
        self.commit, _, _, self.inodes, self.logical, _, self.clean_commit, _ = self.twice(b"nnfs.state", STATE)
        self.models: dict[int, Model] = {}
        self.blocks: dict[int, int] = {}  # number to how many slots name it
        self.known: dict[int, dict[int, bytes]] = {}  # chunks by inode

    # -- records

    def range(self, table: str, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of what begins with a prefix, in order."""
        with self.txn.cursor(self.tables[table]) as cursor:
            if cursor.set_range(prefix):
                for key, value in cursor:
                    if not key.startswith(prefix):
                        return
                    yield key, value

    def unsealed(self, table: str, key: bytes, record: bytes | None) -> bytes:
        """The body of a record whose seal is right."""
        if record is None or record[-8:] != xxh3_64_digest(bytes([TAGS[table]]) + key + record[:-8]):
            raise Broken(f"{table} {key.hex()}: missing, or its seal is wrong")
        return record[:-8]

    def twice(self, key: bytes, layout: str) -> tuple[Any, ...]:
        """The fields of a record that is kept twice."""
        copies = [self.txn.get(key, db=self.tables[table]) for table in ("meta", "main")]
        bodies = [self.unsealed("meta", key, copy) for copy in copies if copy is not None]
        if len(set(bodies)) != 1:
            raise Broken(f"{key!r}: no copy, or they differ")
        return unpack_from(layout, bodies[0])

    def sealed(self, table: str, prefix: bytes) -> tuple[list[tuple[bytes, bytes]], int]:
        """Key and body of all records with a prefix, and the sum of their checksums."""
        found, total = [], 0
        for key, record in self.range(table, prefix):
            found.append((key, self.unsealed(table, key, record)))
            total = total + int.from_bytes(record[-8:], "big") & M64
        return found, total

    # -- inodes

    def inode(self, ino: int) -> tuple[Inode, bytes]:
        """An inode and its target."""
        key = pack(">Q", ino)
        body = self.unsealed("inode", key, self.txn.get(key, db=self.tables["inode"]))
        return Inode(*unpack_from(INODE, body)), body[calcsize(INODE) :]

    def xattrs(self, ino: int, inode: Inode) -> dict[bytes, bytes]:
        """Names and values."""
        found, total = self.sealed("xattr", pack(">Q", ino))
        if total != inode.xattrs:
            raise Broken(f"inode {ino}: attributes are missing")
        return {key[8:]: body[8:] for key, body in found}

    def dentries(self, ino: int, inode: Inode) -> dict[bytes, tuple[int, int]]:
        """Name to inode number and type, in the order of their cookies."""
        found, total = self.sealed("dentry", pack(">Q", ino))
        if total != inode.proof or len(found) != inode.count:
            raise Broken(f"directory {ino}: names are missing")
        names = {}
        for key, body in found:
            number, kind, _ = unpack_from(">QBQ", body)
            name, cookie = body[17:], int.from_bytes(key[8:], "big")
            if cookie >> 16 != ((xxh3_64_intdigest(name, self.seed) >> 17) or 1):
                raise Broken(f"directory {ino}: {name!r} has another name's cookie")
            names[name] = number, kind
        return names

    def chunks(self, ino: int, inode: Inode) -> dict[int, bytes]:
        """Chunk number to plain bytes; a chunk that is not there is zeros."""
        if ino in self.known:
            return self.known[ino]  # it has several names
        found, total = self.sealed("map", pack(">Q", ino))
        chunks: dict[int, bytes] = {}
        for key, body in found:
            node = int.from_bytes(key[8:], "big")
            bitmap, _ = unpack_from(">QQ", body)
            slots = [slot for slot in range(64) if bitmap >> slot & 1]
            if len(body) != 16 + 8 * len(slots):
                raise Broken(f"inode {ino}: node {node} has another length than its bitmap")
            for slot, number in zip(slots, unpack_from(f">{len(slots)}Q", body, 16), strict=True):
                chunks[64 * node + slot] = self.plain(number)
        if total != inode.proof or len(chunks) != inode.count:
            raise Broken(f"inode {ino}: map nodes are missing")
        self.known[ino] = chunks
        return chunks

    # -- blocks

    def payload(self, number: int, size: int, xxh3: int) -> bytes:
        """The stored bytes under a payload number."""
        data = b"".join(value for _, value in self.range("payload", pack(">Q", number)))
        if len(data) != size or xxh3_64_intdigest(data) != xxh3:
            raise Broken(f"payload {number} is damaged")
        return data

    def plain(self, number: int) -> bytes:
        """The chunk of a block."""
        key = pack(">Q", number)
        block = Block(*unpack_from(BLOCK, self.unsealed("block", key, self.txn.get(key, db=self.tables["block"]))))
        stored = self.payload(block.payload, block.stored, block.xxh3)
        plain = payloads.decode(block.codec, stored, block.plain, self.model(block.model) if block.model else None)
        if blake2b(plain).digest() != block.hash:
            raise Broken(f"block {number} has another content than its hash names")
        self.blocks[number] = self.blocks.get(number, 0) + 1
        return plain

    def model(self, number: int) -> Model:
        """A model by its number."""
        if number not in self.models:
            key = pack(">H", number)
            body = self.unsealed("model", key, self.txn.get(key, db=self.tables["model"]))
            if self.txn.get(b"nnfs.model" + key, db=None) != self.txn.get(key, db=self.tables["model"]):
                raise Broken(f"the copies of model {number} differ")
            fingerprint, base, _, size, xxh3, first, second, _, _ = unpack_from(">64sHBQQQQqQ", body)
            file = self.payload(first, size, xxh3)
            if file != self.payload(second, size, xxh3):
                raise Broken(f"the files of model {number} differ")
            model = compose(self.model(base), file) if base else Model(file)
            if model.fingerprint != fingerprint:
                raise Broken(f"model {number} is another one")
            self.models[number] = model
        return self.models[number]

    # -- the tree

    def tree(self, ino: int = 1, path: bytes = b"") -> Iterator[Entry]:
        """Everything below a directory, itself first; names in the order of their bytes."""
        inode, target = self.inode(ino)
        is_directory, is_file = inode.mode >> 12 == 4, inode.mode >> 12 == 8
        yield Entry(path, inode, target, self.xattrs(ino, inode), self.chunks(ino, inode) if is_file else {})
        if is_directory:
            for name, (number, kind) in sorted(self.dentries(ino, inode).items()):
                if self.inode(number)[0].mode >> 12 != kind:
                    raise Broken(f"{name!r}: its type is not its inode's")
                yield from self.tree(number, path + b"/" + name)

    def orphans(self) -> list[int]:
        """Inodes without names."""
        return [int.from_bytes(key, "big") for key, _ in self.sealed("orphan", b"")[0]]

    def check_totals(self) -> None:
        """Compare reference counts, totals and the hash index with the blocks; call it after `tree` was walked."""
        totals: dict[tuple[int, int], list[int]] = {}
        for number in self.orphans():
            self.chunks(number, self.inode(number)[0])
        for key, body in self.sealed("block", b"")[0]:
            block = Block(*unpack_from(BLOCK, body))
            if self.blocks.get(int.from_bytes(key, "big"), 0) != block.refs:
                raise Broken(f"block {key.hex()} has another number of references")
            total = totals.setdefault((block.codec, block.model), [0, 0, 0])
            total[:] = total[0] + 1, total[1] + block.plain, total[2] + block.stored
            if self.txn.get(block.hash[:16], db=self.tables["hash"]) != key:
                raise Broken(f"block {key.hex()} is not in the hash index")
        told = {unpack_from(">BH", key): unpack_from(">QQQ", body) for key, body in self.sealed("total", b"")[0]}
        if {kind: tuple(total) for kind, total in totals.items()} != {k: t for k, t in told.items() if t[0]}:
            raise Broken("the totals are not those of the blocks")

    def close(self) -> None:
        """Let go of it."""
        self.txn.abort()
        self.env.close()


def lines(store: Store) -> Iterator[str]:
    """The tree as text: mode, owner, size, digest, name."""
    for entry in store.tree():
        i = entry.inode
        what = entry.digest if i.mode >> 12 == 8 else entry.target.decode(errors="backslashreplace")
        name = (entry.path or b"/").decode(errors="backslashreplace")
        yield f"{i.mode:06o} {i.uid}:{i.gid} {i.size} {name} {what}".rstrip()


if __name__ == "__main__":
    for line in lines(Store(sys.argv[1])):
        print(line)
