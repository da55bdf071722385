"""Ways to break a small store: its state, inodes, names, attributes and orphans."""

from __future__ import annotations

import dataclasses
import stat

from nnfs.store import schema, sealing
from nnfs.store.env import Store
from nnfs.store.schema import Dentry, Inode
from nnfs.store.txn import WriteTxn
from tests.fs.kit import (
    COLOUR,
    DIRECTORY,
    FIFO,
    FILE,
    MASK,
    ROOT,
    SECOND,
    SUB,
    Breaks,
    damage,
    dentry_key,
    edit_inode,
    edit_state,
    noted,
    remove_dentry,
)

DIR_KIND, FILE_KIND = stat.S_IFDIR >> 12, stat.S_IFREG >> 12


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


BROKEN_NAMES: Breaks = {}


@noted(BROKEN_NAMES, "copies")
def state_copy_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "main", schema.STATE_KEY)


@noted(BROKEN_NAMES, "copies")
def superblock_copy_missing(txn: WriteTxn, store: Store) -> None:
    txn.delete("meta", schema.SUPER_KEY)


@noted(BROKEN_NAMES, "copies")
def state_copies_differ(txn: WriteTxn, store: Store) -> None:
    txn.put("main", schema.STATE_KEY, dataclasses.replace(store.state, settings=3).pack())


@noted(BROKEN_NAMES, "state")
def inode_number_count(txn: WriteTxn, store: Store) -> None:
    edit_state(txn, inodes=99)


@noted(BROKEN_NAMES, "state")
def logical_bytes(txn: WriteTxn, store: Store) -> None:
    edit_state(txn, logical=1)


@noted(BROKEN_NAMES, "state")
def next_inode_number(txn: WriteTxn, store: Store) -> None:
    edit_state(txn, next_ino=18)


@noted(BROKEN_NAMES, "state")
def next_block_number(txn: WriteTxn, store: Store) -> None:
    edit_state(txn, next_number=2)


@noted(BROKEN_NAMES, "state")
def clean_after_the_last_commit(txn: WriteTxn, store: Store) -> None:
    edit_state(txn, clean_commit=999)


@noted(BROKEN_NAMES, "commit")
def commit_of_the_future(txn: WriteTxn, store: Store) -> None:
    edit_inode(txn, FILE, commit=1000)


@noted(BROKEN_NAMES, "nlink")
def link_count_of_a_file(txn: WriteTxn, store: Store) -> None:
    edit_inode(txn, SECOND, nlink=7)


@noted(BROKEN_NAMES, "nlink")
def link_count_of_a_directory(txn: WriteTxn, store: Store) -> None:
    edit_inode(txn, DIRECTORY, nlink=2)


@noted(BROKEN_NAMES, "parent")
def parent_of_a_directory(txn: WriteTxn, store: Store) -> None:
    edit_inode(txn, SUB, aux=ROOT)


@noted(BROKEN_NAMES, "proof")
def xattrs_that_nobody_proves(txn: WriteTxn, store: Store) -> None:
    edit_inode(txn, FILE, xattrs=0)


@noted(BROKEN_NAMES, "proof")
def xattr_lost(txn: WriteTxn, store: Store) -> None:
    txn.delete("xattr", COLOUR)


@noted(BROKEN_NAMES, "proof")
def xattr_of_yesterday(txn: WriteTxn, store: Store) -> None:
    txn.put("xattr", COLOUR, schema.pack_xattr(COLOUR, b"grey", 1))


@noted(BROKEN_NAMES, "xattr")
def xattr_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "xattr", COLOUR, byte=9)


@noted(BROKEN_NAMES, "xattr")
def checksum_of_an_xattr_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "xattr", COLOUR, byte=-1)


@noted(BROKEN_NAMES, "xattr")
def xattr_and_its_inode_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "inode", schema.inode_key(FILE), byte=20)
    damage(txn, "xattr", COLOUR, byte=9)


@noted(BROKEN_NAMES, "key")
def xattr_without_a_name(txn: WriteTxn, store: Store) -> None:
    txn.put("xattr", schema.inode_key(FILE), schema.pack_xattr(schema.inode_key(FILE), b"", 1))


@noted(BROKEN_NAMES, "proof")
def dentry_lost(txn: WriteTxn, store: Store) -> None:
    txn.delete("dentry", dentry_key(store, SUB, b"fifo"))


@noted(BROKEN_NAMES, "dentry")
def dentry_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "dentry", dentry_key(store, ROOT, b"file"), byte=7)


@noted(BROKEN_NAMES, "dentry")
def dentry_of_a_directory_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "dentry", dentry_key(store, ROOT, b"dir"), byte=7)


@noted(BROKEN_NAMES, "dangling")
def dentry_without_inode(txn: WriteTxn, store: Store) -> None:
    put_dentry(txn, dentry_key(store, SUB, b"ghost"), Dentry(15, FILE_KIND, b"ghost", 1))


@noted(BROKEN_NAMES, "dangling")
def inode_lost(txn: WriteTxn, store: Store) -> None:
    txn.delete("inode", schema.inode_key(SECOND))


@noted(BROKEN_NAMES, "dentry")
def dentry_in_a_file(txn: WriteTxn, store: Store) -> None:
    key = dentry_key(store, FIFO, b"inside")
    txn.put("dentry", key, Dentry(FILE, FILE_KIND, b"inside", 1).pack(key))


@noted(BROKEN_NAMES, "dentry")
def directory_with_two_names(txn: WriteTxn, store: Store) -> None:
    put_dentry(txn, dentry_key(store, ROOT, b"sub again"), Dentry(SUB, DIR_KIND, b"sub again", 1))


@noted(BROKEN_NAMES, "dentry")
def root_has_a_name(txn: WriteTxn, store: Store) -> None:
    put_dentry(txn, dentry_key(store, SUB, b"top"), Dentry(ROOT, DIR_KIND, b"top", 1))


@noted(BROKEN_NAMES, "kind")
def dentry_of_the_wrong_kind(txn: WriteTxn, store: Store) -> None:
    put_dentry(txn, dentry_key(store, SUB, b"fifo"), Dentry(FIFO, FILE_KIND, b"fifo", 1))


@noted(BROKEN_NAMES, "cookie")
def cookie_of_another_name(txn: WriteTxn, store: Store) -> None:
    remove_dentry(txn, dentry_key(store, SUB, b"fifo"))
    put_dentry(txn, schema.KEY2.pack(SUB, 77 << 16), Dentry(FIFO, stat.S_IFIFO >> 12, b"fifo", 1))


@noted(BROKEN_NAMES, "flags")
def collision_without_the_flag(txn: WriteTxn, store: Store) -> None:
    remove_dentry(txn, dentry_key(store, SUB, b"fifo"))
    cookie = schema.cookie_of(b"fifo", store.superblock.seed) + 1
    put_dentry(txn, schema.KEY2.pack(SUB, cookie), Dentry(FIFO, stat.S_IFIFO >> 12, b"fifo", 1))


@noted(BROKEN_NAMES, "name")
def name_twice(txn: WriteTxn, store: Store) -> None:
    cookie = schema.cookie_of(b"fifo", store.superblock.seed) + 1
    put_dentry(txn, schema.KEY2.pack(SUB, cookie), Dentry(FIFO, stat.S_IFIFO >> 12, b"fifo", 1))
    edit_inode(txn, FIFO, nlink=2)


@noted(BROKEN_NAMES, "name")
def name_with_a_slash(txn: WriteTxn, store: Store) -> None:
    put_dentry(txn, dentry_key(store, SUB, b"a/b"), Dentry(FILE, FILE_KIND, b"a/b", 1))


@noted(BROKEN_NAMES, "name")
def name_dot_dot(txn: WriteTxn, store: Store) -> None:
    put_dentry(txn, dentry_key(store, SUB, b".."), Dentry(FILE, FILE_KIND, b"..", 1))


@noted(BROKEN_NAMES, "lost")
def file_without_a_name(txn: WriteTxn, store: Store) -> None:
    remove_dentry(txn, dentry_key(store, ROOT, b"file"))


@noted(BROKEN_NAMES, "lost")
def directory_without_a_name(txn: WriteTxn, store: Store) -> None:
    remove_dentry(txn, dentry_key(store, DIRECTORY, b"sub"))


@noted(BROKEN_NAMES, "lost")
def deleted_but_no_orphan(txn: WriteTxn, store: Store) -> None:
    remove_dentry(txn, dentry_key(store, ROOT, b"file"))
    edit_inode(txn, FILE, nlink=0)


@noted(BROKEN_NAMES, "cycle")
def directory_within_itself(txn: WriteTxn, store: Store) -> None:
    remove_dentry(txn, dentry_key(store, ROOT, b"dir"))
    put_dentry(txn, dentry_key(store, SUB, b"dir"), Dentry(DIRECTORY, DIR_KIND, b"dir", 1))
    edit_inode(txn, DIRECTORY, aux=SUB)


@noted(BROKEN_NAMES, "cycle")
def directory_its_own_parent(txn: WriteTxn, store: Store) -> None:
    remove_dentry(txn, dentry_key(store, ROOT, b"dir"))
    put_dentry(txn, dentry_key(store, DIRECTORY, b"me"), Dentry(DIRECTORY, DIR_KIND, b"me", 1))


@noted(BROKEN_NAMES, "orphan")
def orphan_with_a_name(txn: WriteTxn, store: Store) -> None:
    key = schema.inode_key(FILE)
    txn.put("orphan", key, schema.pack_orphan(key, 1))


@noted(BROKEN_NAMES, "orphan")
def orphan_without_inode(txn: WriteTxn, store: Store) -> None:
    key = schema.inode_key(15)
    txn.put("orphan", key, schema.pack_orphan(key, 1))


@noted(BROKEN_NAMES, "orphan")
def orphan_damaged(txn: WriteTxn, store: Store) -> None:
    txn.put("orphan", schema.inode_key(FILE), b"x" * 16)


@noted(BROKEN_NAMES, "nlink")
def orphan_with_links(txn: WriteTxn, store: Store) -> None:
    key = schema.inode_key(FILE)
    remove_dentry(txn, dentry_key(store, ROOT, b"file"))
    txn.put("orphan", key, schema.pack_orphan(key, 1))


@noted(BROKEN_NAMES, "xattr")
def xattr_of_nothing(txn: WriteTxn, store: Store) -> None:
    key = schema.inode_key(15) + b"user.a"
    txn.put("xattr", key, schema.pack_xattr(key, b"", 1))


@noted(BROKEN_NAMES, "inode")
def inode_of_a_file_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "inode", schema.inode_key(FILE), byte=20)


@noted(BROKEN_NAMES, "inode")
def inode_of_a_directory_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "inode", schema.inode_key(DIRECTORY), byte=20)


@noted(BROKEN_NAMES, "inode")
def inode_of_the_root_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "inode", schema.inode_key(ROOT), byte=20)


@noted(BROKEN_NAMES, "root")
def root_lost(txn: WriteTxn, store: Store) -> None:
    txn.delete("inode", schema.inode_key(ROOT))


@noted(BROKEN_NAMES, "key")
def key_of_a_wrong_length(txn: WriteTxn, store: Store) -> None:
    for table in ("inode", "dentry", "xattr", "map", "block", "orphan"):
        txn.put(table, b"\0\1", b"?" * 20)
