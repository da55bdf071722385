"""Records of the store: byte layouts and keys. `FORMAT.md` is normative; a test holds both together.

All integers are big-endian. `sealing.py` has the checksums. Every sealed record holds the number of the commit that
last changed it.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct, pack, unpack
from typing import ClassVar

from xxhash import xxh3_64_intdigest

from nnfs import constants
from nnfs.errors import RecordDamaged
from nnfs.store.sealing import fields_of, seal, unseal

FORMAT_VERSION = 1
MAGIC = b"nnfs"
ENGINE = 0  # lib_version= of py-lmdb: LMDB 0.9, data format 1

ROOT_INO = constants.ROOT_INO
FIRST_FREE_INO = 16  # 2..15 are reserved (lost+found and what may come)
INO_BITS = 48  # the upper 16 bits of an inode number in a key are room for a snapshot number; 0 is the live tree
NODE_SPAN = 64  # chunks mapped by one map node
DEFAULT_CHUNK_SIZE = constants.DEFAULT_CHUNK_SIZE
MIN_CHUNK_SIZE, MAX_CHUNK_SIZE = 16 * 1024, 1024 * 1024
NAME_MAX = 255
SYMLINK_MAX = 4095
XATTR_MAX = 65536
FRAGMENT_MAX = 2020  # two such fragments with their node headers fill a 4 KiB leaf page of LMDB to the byte
HASH_SIZE = 64  # BLAKE2b-512
INDEX_SIZE = 16  # bytes of the hash that key the hash index

KEY = Struct(">Q")
KEY2 = Struct(">QQ")
FRAGMENT_KEY = Struct(">QH")
TOTAL_KEY = Struct(">BH")

_SUPER = Struct(">4sII16sIIQQQqQ")  # magic version engine uuid chunk_size reserved compat ro incompat created seed
_STATE = Struct(">QQQQQQQB")  # commit next_ino next_number inodes logical settings clean_commit flags
_INODE = Struct(">IIIIIQQqqqqQQQQQ")
_DENTRY = Struct(">QBQ")  # ino type commit
_COMMIT = Struct(">Q")
_MAP = Struct(">QQ")  # bitmap commit
_BLOCK = Struct(">BBHIIIQQQQ64s")  # codec flags model plain stored born xxh3 payload refs commit hash
_MODEL = Struct(">64sHBQQQQqQ")  # fingerprint base flags size xxh3 payload_a payload_b added commit
_SCRUB = Struct(">QBqQQQ")  # next deep started blocks damaged commit
_TOTAL = Struct(">QQQQ")

SUPER_KEY = b"nnfs.super"
STATE_KEY = b"nnfs.state"
SCRUB_KEY = b"nnfs.scrub"


def inode_key(ino: int) -> bytes:
    """Return the key in the tables inode and orphan, which is the prefix of the keys of dentry, xattr and map."""
    return KEY.pack(ino)


def cookie_of(name: bytes, seed: int) -> int:
    """Return the first cookie to try for a name: 47 bits of its seeded hash, and 16 bits to tell collisions apart.

    Cookies are positive 63-bit integers of at least 2^16, so 0, 1 and 2 are free for the start, "." and "..".
    """
    return ((xxh3_64_intdigest(name, seed) >> 17) or 1) << 16


@dataclass(slots=True)
class Superblock:
    """The superblock: facts that never change in a store, except its feature words."""

    uuid: bytes
    chunk_size: int
    created: int  # ns
    seed: int  # of the name hash
    version: int = FORMAT_VERSION
    engine: int = ENGINE
    compat: int = 0
    ro_compat: int = 0
    incompat: int = 0

    def pack(self) -> bytes:
        body = _SUPER.pack(
            MAGIC, self.version, self.engine, self.uuid, self.chunk_size, 0,
            self.compat, self.ro_compat, self.incompat, self.created, self.seed,
        )  # fmt: skip
        return seal("meta", SUPER_KEY, body)

    @classmethod
    def unpack(cls, record: bytes) -> Superblock:
        body = unseal("meta", SUPER_KEY, record)
        if len(body) < _SUPER.size or body[:4] != MAGIC:
            raise RecordDamaged("meta", SUPER_KEY, "not a superblock")
        _, version, engine, uuid, chunk_size, _, compat, ro_compat, incompat, created, seed = _SUPER.unpack_from(body)
        return cls(uuid, chunk_size, created, seed, version, engine, compat, ro_compat, incompat)


@dataclass(slots=True)
class State:
    """The state: counters that change with every commit."""

    FLAG_UNSETTLED = 1  # a policy or a model has changed: what inodes say about being settled does not count
    FLAG_UNSETTLING = 2  # a pass over all files because of that has begun, and has not ended
    ROUND_BITS: ClassVar[int] = 12  # how often that has happened, modulo 4: what blocks say of an earlier round is void

    commit: int = 0
    next_ino: int = FIRST_FREE_INO
    next_number: int = 1  # of blocks and of payloads
    inodes: int = 0
    logical: int = 0  # bytes: plain length of all mapped chunks, a shared chunk counted for each file that maps it
    settings: int = 0  # of recompression, with which files were marked as settled: see `fs/swapping.py`
    clean_commit: int = 0  # the commit of the last clean unmount; equal to `commit` when nothing came after it
    flags: int = 0

    @property
    def round(self) -> int:
        return (self.flags & self.ROUND_BITS) >> 2

    def next_round(self) -> None:
        self.flags = self.flags & ~self.ROUND_BITS | ((self.round + 1) << 2 & self.ROUND_BITS)

    def pack(self) -> bytes:
        return seal("meta", STATE_KEY, _STATE.pack(
            self.commit, self.next_ino, self.next_number, self.inodes,
            self.logical, self.settings, self.clean_commit, self.flags,
        ))  # fmt: skip

    @classmethod
    def unpack(cls, record: bytes) -> State:
        return cls(*fields_of("meta", STATE_KEY, record, _STATE)[0])


class Inode:
    """One inode record; also the object that the filesystem works on.

    `aux` is the device number of a device node and the parent's inode number of a directory. `count` and `proof` prove
    the set of records that belong to the inode: mapped chunks and the sum (mod 2^64) of the checksums of its map nodes
    for a file, entries and the sum of the checksums of its dentries for a directory. `xattrs` is the same sum over its
    extended attributes, 0 when it has none. `stored` is the bytes of its mapped blocks' payloads.
    """

    __slots__ = (
        "ino", "mode", "uid", "gid", "nlink", "flags", "size", "aux",
        "atime", "mtime", "ctime", "btime", "count", "proof", "xattrs", "stored", "commit", "target",
    )  # fmt: skip

    FLAG_COLLISIONS = 1  # a directory that held two names of one hash: an absent first cookie proves nothing
    FLAG_SETTLED = 2  # recompression has looked at all chunks of this file as they are now
    RUNG_BITS: ClassVar[int] = 12  # it has done so up to this rung, and slower ones may still make them smaller
    LOOKED_AT: ClassVar[int] = FLAG_SETTLED | RUNG_BITS
    QUOTA_BITS: ClassVar[int] = 0xFFFF0000

    def __init__(self, ino: int, mode: int, uid: int, gid: int, now: int) -> None:
        self.ino, self.mode, self.uid, self.gid = ino, mode, uid, gid
        self.nlink = 1
        self.flags = self.size = self.aux = self.count = self.proof = self.xattrs = self.stored = self.commit = 0
        self.atime = self.mtime = self.ctime = self.btime = now
        self.target = b""

    @property
    def rung(self) -> int:
        """The rung up to which recompression has looked at all chunks of this file as they are now, 0: none."""
        return (self.flags & self.RUNG_BITS) >> 2

    @property
    def quota(self) -> int:
        """The number of the quota that counts the inode, 0: none."""
        return self.flags >> 16

    @quota.setter
    def quota(self, number: int) -> None:
        self.flags = self.flags & ~self.QUOTA_BITS | number << 16

    def __copy__(self) -> Inode:
        """Copy the inode in a quarter of the time of copy.copy: every dirty inode is copied for its commit."""
        twin = Inode.__new__(Inode)
        for name in Inode.__slots__:
            setattr(twin, name, getattr(self, name))
        return twin

    @property
    def is_directory(self) -> bool:
        return self.mode >> 12 == 4

    def pack(self) -> bytes:
        """Return the sealed record for the key `inode_key(self.ino)`."""
        body = _INODE.pack(
            self.mode, self.uid, self.gid, self.nlink, self.flags, self.size, self.aux,
            self.atime, self.mtime, self.ctime, self.btime,
            self.count, self.proof, self.xattrs, self.stored, self.commit,
        )  # fmt: skip
        return seal("inode", KEY.pack(self.ino), body + self.target)

    @classmethod
    def unpack(cls, ino: int, record: bytes) -> Inode:
        """Return the inode of a sealed record. Raises `RecordDamaged`."""
        fields, target = fields_of("inode", KEY.pack(ino), record, _INODE)
        inode = cls.__new__(cls)
        inode.ino = ino
        (
            inode.mode, inode.uid, inode.gid, inode.nlink, inode.flags, inode.size, inode.aux,
            inode.atime, inode.mtime, inode.ctime, inode.btime,
            inode.count, inode.proof, inode.xattrs, inode.stored, inode.commit,
        ) = fields  # fmt: skip
        inode.target = target
        return inode


@dataclass(slots=True)
class Dentry:
    """One name in a directory. `kind` is the file type (mode >> 12)."""

    ino: int
    kind: int
    name: bytes
    commit: int = 0

    def pack(self, key: bytes) -> bytes:
        return seal("dentry", key, _DENTRY.pack(self.ino, self.kind, self.commit) + self.name)

    @classmethod
    def unpack(cls, key: bytes, record: bytes) -> Dentry:
        (ino, kind, commit), name = fields_of("dentry", key, record, _DENTRY)
        return cls(ino, kind, name, commit)


def pack_xattr(key: bytes, value: bytes, commit: int) -> bytes:
    """Seal the value of an extended attribute."""
    return seal("xattr", key, _COMMIT.pack(commit) + value)


def unpack_xattr(key: bytes, record: bytes) -> bytes:
    """Return the value of a sealed extended attribute. Raises `RecordDamaged`."""
    return fields_of("xattr", key, record, _COMMIT)[1]


@dataclass(slots=True)
class MapNode:
    """Blocks of `NODE_SPAN` consecutive chunks of a file: slot (0..63) to block number; absent slots are holes."""

    blocks: dict[int, int]
    commit: int = 0

    def pack(self, key: bytes) -> bytes:
        slots = sorted(self.blocks)
        bitmap = sum(1 << slot for slot in slots)
        ids = pack(f">{len(slots)}Q", *[self.blocks[slot] for slot in slots])
        return seal("map", key, _MAP.pack(bitmap, self.commit) + ids)

    @classmethod
    def unpack(cls, key: bytes, record: bytes) -> MapNode:
        (bitmap, commit), ids = fields_of("map", key, record, _MAP)
        if bitmap.bit_count() * 8 != len(ids):
            raise RecordDamaged("map", key, "length and bitmap disagree")
        numbers = unpack(f">{len(ids) // 8}Q", ids)
        full = len(numbers) == NODE_SPAN
        slots = range(NODE_SPAN) if full else [slot for slot in range(NODE_SPAN) if bitmap >> slot & 1]
        return cls(dict(zip(slots, numbers, strict=True)), commit)


@dataclass(slots=True)
class Block:
    """Header of one block. `payload` is the number under which its stored bytes lie in the payload table."""

    FLAG_TRIED: ClassVar[int] = 1  # the cold codecs, and none made it smaller
    ROUND_BITS: ClassVar[int] = 6  # in which round of the state

    codec: int
    model: int
    plain: int  # bytes
    stored: int  # bytes
    born: int  # unix seconds
    xxh3: int  # of the stored bytes
    payload: int
    refs: int
    hash: bytes  # BLAKE2b-512 of the plain bytes
    commit: int = 0
    flags: int = 0

    def note_try(self, round_: int) -> None:
        """Note that no cold codec made it smaller, in this round of the state."""
        self.flags = self.FLAG_TRIED | round_ << 1

    def was_tried(self, round_: int) -> bool:
        return bool(self.flags & self.FLAG_TRIED) and (self.flags & self.ROUND_BITS) >> 1 == round_

    def pack(self, key: bytes) -> bytes:
        return seal("block", key, _BLOCK.pack(
            self.codec, self.flags, self.model, self.plain, self.stored, self.born,
            self.xxh3, self.payload, self.refs, self.commit, self.hash,
        ))  # fmt: skip

    @classmethod
    def unpack(cls, key: bytes, record: bytes) -> Block:
        body = unseal("block", key, record)
        if len(body) != _BLOCK.size:
            raise RecordDamaged("block", key, "wrong length")
        codec, flags, model, plain, stored, born, xxh3, payload, refs, commit, hash_ = _BLOCK.unpack(body)
        return cls(codec, model, plain, stored, born, xxh3, payload, refs, hash_, commit, flags)


@dataclass(slots=True)
class Total:
    """Blocks, plain and stored bytes of one (codec, model)."""

    blocks: int = 0
    plain: int = 0
    stored: int = 0
    commit: int = 0

    def pack(self, key: bytes) -> bytes:
        return seal("total", key, _TOTAL.pack(self.blocks, self.plain, self.stored, self.commit))

    @classmethod
    def unpack(cls, key: bytes, record: bytes) -> Total:
        return cls(*fields_of("total", key, record, _TOTAL)[0])


def pack_orphan(key: bytes, commit: int) -> bytes:
    """Seal the record of an inode without names."""
    return seal("orphan", key, _COMMIT.pack(commit))


def unpack_orphan(key: bytes, record: bytes) -> int:
    """Return the commit of an orphan record. Raises `RecordDamaged`."""
    return fields_of("orphan", key, record, _COMMIT)[0][0]


@dataclass(slots=True)
class Model:
    """One model of the store, under its number (key: >H). Its file lies twice in the payload table."""

    FLAG_RETIRED: ClassVar[int] = 1  # nothing is encoded with it any more; it goes with the last block that needs it
    FLAG_GONE: ClassVar[int] = 2  # retired, and its files are deleted: only the record is left

    fingerprint: bytes
    base: int  # number of the model that the file is a delta over; 0: it is whole
    flags: int
    size: int  # bytes of the file
    xxh3: int  # of the file
    payload_a: int
    payload_b: int
    added: int  # unix seconds
    commit: int = 0

    @property
    def retired(self) -> bool:
        return bool(self.flags & self.FLAG_RETIRED)

    @property
    def gone(self) -> bool:
        return bool(self.flags & self.FLAG_GONE)

    @property
    def payloads(self) -> tuple[int, int]:
        """The payload numbers of both copies of the file."""
        return self.payload_a, self.payload_b

    def pack(self, key: bytes) -> bytes:
        return seal("model", key, _MODEL.pack(
            self.fingerprint, self.base, self.flags, self.size, self.xxh3,
            self.payload_a, self.payload_b, self.added, self.commit,
        ))  # fmt: skip

    @classmethod
    def unpack(cls, key: bytes, record: bytes) -> Model:
        body = unseal("model", key, record)
        if len(body) != _MODEL.size:
            raise RecordDamaged("model", key, "wrong length")
        return cls(*_MODEL.unpack(body))


@dataclass(slots=True)
class Scrub:
    """The progress of a scrub (meta table, `SCRUB_KEY`), kept so that it goes on after a remount."""

    next: int  # number of the first block not looked at
    deep: int  # 1: decodes everything
    started: int  # unix ns; 0: none is under way
    blocks: int = 0  # looked at
    damaged: int = 0  # found
    commit: int = 0

    def pack(self) -> bytes:
        fields = (self.next, self.deep, self.started, self.blocks, self.damaged, self.commit)
        return seal("meta", SCRUB_KEY, _SCRUB.pack(*fields))

    @classmethod
    def unpack(cls, record: bytes) -> Scrub:
        return cls(*fields_of("meta", SCRUB_KEY, record, _SCRUB)[0])
