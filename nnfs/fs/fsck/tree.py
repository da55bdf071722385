"""Checks of inodes, names, links, orphans and extended attributes."""

from __future__ import annotations

import stat
from functools import partial

from nnfs.errors import RecordDamaged
from nnfs.fs.fsck.context import MASK, Context, Node
from nnfs.fs.fsck.fixer import Fixer
from nnfs.store import schema, sealing
from nnfs.store.schema import Dentry, Inode

DIR, FILE, LINK = stat.S_IFDIR >> 12, stat.S_IFREG >> 12, stat.S_IFLNK >> 12
KINDS = {DIR, FILE, LINK, stat.S_IFIFO >> 12, stat.S_IFSOCK >> 12, stat.S_IFBLK >> 12, stat.S_IFCHR >> 12}
SIZE_MAX = (1 << 63) - 1


def check_inodes(c: Context) -> None:
    """Check every inode record by itself."""
    for key, record in c.scan("inode"):
        if c.kept.sees("inode", key, record):
            continue
        if len(key) != 8:
            c.problem("key", f"inode table has a key {key.hex()}", fix=partial(Fixer.delete, table="inode", key=key))
            continue
        ino: int = schema.KEY.unpack(key)[0]
        try:
            inode = Inode.unpack(ino, record)
        except RecordDamaged as error:
            c.damaged_inodes[ino] = 0
            c.problem("inode", f"inode {ino}: {error}", ino, fix=partial(Fixer.rebuild_inode, ino=ino))
            continue
        c.nodes[ino] = Node(
            inode.mode >> 12, inode.nlink, inode.flags, inode.size, inode.aux, inode.count, inode.proof, inode.xattrs
        )  # fmt: skip
        for why in _wrong_in(c, inode, record):
            c.problem("inode", f"inode {ino}: {why}", ino)
        c.check_commit(f"inode {ino}", inode.commit, ino)
    root = c.nodes.get(schema.ROOT_INO)
    if root is not None:
        root.parent = schema.ROOT_INO
    if (root is None and schema.ROOT_INO not in c.damaged_inodes) or (root is not None and root.kind != DIR):
        c.problem("root", "there is no root directory", schema.ROOT_INO, fix=Fixer.make_root)


def _wrong_in(c: Context, inode: Inode, record: bytes) -> list[str]:
    """Return the faults of an inode."""
    kind, wrong = inode.mode >> 12, []
    if inode.pack() != record:
        wrong.append("record is not in its canonical form")
    if inode.ino == 0 or inode.ino >> schema.INO_BITS or inode.ino >= c.state.next_ino:
        wrong.append(f"number is not below the next one, {c.state.next_ino}")
    if kind not in KINDS:
        wrong.append(f"unknown type in mode {inode.mode:o}")
    if inode.size > SIZE_MAX:
        wrong.append(f"size {inode.size} is too large")
    if kind == LINK and not 1 <= len(inode.target) <= schema.SYMLINK_MAX:
        wrong.append(f"symbolic link with a target of {len(inode.target)} bytes")
    if kind == LINK and inode.size != len(inode.target):
        wrong.append(f"symbolic link of size {inode.size} with a target of {len(inode.target)} bytes")
    if kind != LINK and inode.target:
        wrong.append("has a link target, but is no symbolic link")
    return wrong


def check_orphans(c: Context) -> None:
    """Check orphan records by themselves. They are legal after an unclean stop; the next mount releases them."""
    for key, record in c.scan("orphan"):
        drop = partial(Fixer.delete, table="orphan", key=key)
        if len(key) != 8:
            c.problem("key", f"orphan table has a key {key.hex()}", fix=drop)
            continue
        ino: int = schema.KEY.unpack(key)[0]
        try:
            c.check_commit(f"orphan {ino}", schema.unpack_orphan(key, record), ino)
        except RecordDamaged as error:
            c.problem("orphan", str(error), ino, fix=drop)
            continue
        if ino in c.nodes or ino in c.damaged_inodes:
            c.orphans.add(ino)
        else:
            c.problem("orphan", f"orphan {ino}: there is no such inode", fix=drop)
    if c.orphans:
        c.note(f"{len(c.orphans)} inodes without names wait for the next mount to release them (unclean stop)")


class Entries:
    """Checks dentries one after the other, in key order."""

    def __init__(self, c: Context) -> None:
        self.c = c
        self.seed = c.store.superblock.seed
        self.group = (0, 0)  # directory and hash of the names gathered
        self.names: set[bytes] = set()

    def run(self) -> None:
        for key, record in self.c.scan("dentry"):
            if self.c.kept.sees("dentry", key, record):
                continue
            drop = partial(Fixer.delete, table="dentry", key=key)
            if len(key) != 16:
                self.c.problem("key", f"dentry table has a key {key.hex()}", fix=drop)
                continue
            directory, cookie = schema.KEY2.unpack(key)
            node = self.c.nodes.get(directory)
            if not self.c.may_be(directory, DIR):
                self.c.problem("dentry", f"entry of {directory}, which is no directory", directory, fix=drop)
                continue
            if node is not None:
                node.count -= 1
                node.proof = (node.proof - sealing.checksum_of(record)) & MASK
            try:
                dentry = Dentry.unpack(key, record)
            except RecordDamaged as error:
                drop = partial(Fixer.drop_dentry, key=key)
                self.c.problem("dentry", f"directory {directory} has a damaged entry: {error}", directory, fix=drop)
                continue
            self.entry(key, directory, cookie, dentry, node)

    def entry(self, key: bytes, directory: int, cookie: int, dentry: Dentry, node: Node | None) -> None:
        """Check a dentry whose record is sound and whose directory exists."""
        c, name, drop = self.c, dentry.name, partial(Fixer.drop_dentry, key=key)
        what = f"directory {directory}, entry {name!r}"
        if self.group != (directory, cookie >> 16):
            self.group, self.names = (directory, cookie >> 16), set()
        if not 1 <= len(name) <= schema.NAME_MAX or b"/" in name or b"\0" in name or name in (b".", b".."):
            c.problem("name", f"{what}: not a possible name", directory, dentry.ino, fix=drop)
            return
        if name in self.names:
            c.problem("name", f"{what}: is there twice", directory, dentry.ino, fix=drop)
            return
        self.names.add(name)
        if cookie >> 16 != schema.cookie_of(name, self.seed) >> 16:
            c.problem(
                "cookie", f"{what}: its cookie does not fit its name", directory, dentry.ino,
                fix=partial(Fixer.rehash_dentry, key=key),
            )  # fmt: skip
        elif cookie & 0xFFFF and node is not None and not node.flags & Inode.FLAG_COLLISIONS:
            c.problem(
                "flags", f"directory {directory}: has names of one hash, but not the flag that says so", directory,
                fix=partial(Fixer.set_flag, ino=directory, flag=Inode.FLAG_COLLISIONS), derived=True,
            )  # fmt: skip
        c.check_commit(what, dentry.commit, directory)
        self.target(key, directory, cookie, dentry, what, node)

    def target(self, key: bytes, directory: int, cookie: int, dentry: Dentry, what: str, node: Node | None) -> None:
        """Check the inode that a dentry names. `what` names the dentry for people."""
        c, ino, drop = self.c, dentry.ino, partial(Fixer.drop_dentry, key=key)
        child = c.nodes.get(ino)
        if child is None:
            if ino in c.damaged_inodes:
                c.damaged_inodes[ino] = dentry.kind
                if node is not None and dentry.kind == DIR:
                    node.subdirs += 1
            else:
                c.problem("dangling", f"{what}: there is no inode {ino}", directory, fix=drop)
            return
        if child.kind == DIR:
            if child.parent:
                c.problem("dentry", f"{what}: directory {ino} has another name already", directory, ino, fix=drop)
                return
            child.parent, child.cookie = directory, cookie
            if node is not None:
                node.subdirs += 1
        child.links += 1
        if child.kind != dentry.kind:
            c.problem(
                "kind", f"{what}: says type {dentry.kind}, inode {ino} is {child.kind}", directory, ino,
                fix=partial(Fixer.set_dentry_kind, key=key, kind=child.kind),
            )  # fmt: skip


def check_directories(c: Context) -> None:
    """Check entry counts and proofs of directories, from which `Entries` has subtracted the entries."""
    for ino, node in c.nodes.items():
        if node.kind == DIR and (node.count or node.proof):
            lost = f"{node.count} entries too few" if node.count else "other entries than it proves"
            c.problem(
                "proof", f"directory {ino}: {lost}", ino, fix=partial(Fixer.recount_directory, ino=ino), derived=True
            )


def check_links(c: Context) -> None:
    """Check link counts and parents, and that every inode is an orphan or reachable."""
    for ino, node in c.nodes.items():
        is_named = node.parent != 0 if node.kind == DIR else node.links > 0
        if ino in c.orphans:
            _check_orphan(c, ino, node, is_named)
        elif not is_named:
            _nameless(c, ino, node)
        else:
            _check_named(c, ino, node)
    _check_cycles(c)


def _check_orphan(c: Context, ino: int, node: Node, is_named: bool) -> None:
    if is_named:
        key = schema.inode_key(ino)
        c.problem("orphan", f"orphan {ino} has a name", ino, fix=partial(Fixer.delete, table="orphan", key=key))
        _check_named(c, ino, node)
    elif node.nlink:
        fix = partial(Fixer.set_nlink, ino=ino, nlink=0)
        c.problem("nlink", f"orphan {ino} has link count {node.nlink}", ino, fix=fix, derived=True)


def _nameless(c: Context, ino: int, node: Node) -> None:
    if node.nlink == 0:
        c.problem("lost", f"inode {ino} was deleted, but is no orphan", ino, fix=partial(Fixer.make_orphan, ino=ino))
    else:
        c.problem("lost", f"inode {ino} has no name", ino, fix=partial(Fixer.attach, ino=ino, subdirs=node.subdirs))


def _check_named(c: Context, ino: int, node: Node) -> None:
    expected = 2 + node.subdirs if node.kind == DIR else node.links
    if node.nlink != expected:
        c.problem(
            "nlink", f"inode {ino}: link count {node.nlink}, not {expected}", ino,
            fix=partial(Fixer.set_nlink, ino=ino, nlink=expected), derived=True,
        )  # fmt: skip
    if node.kind == DIR and node.aux != node.parent:
        c.problem(
            "parent", f"directory {ino}: its parent is {node.parent}, its record says {node.aux}", ino,
            fix=partial(Fixer.set_parent, ino=ino, parent=node.parent), derived=True,
        )  # fmt: skip


def _check_cycles(c: Context) -> None:
    """Check that the parents of every directory lead to the root, a nameless or a damaged one, and not in a circle."""
    ending = {schema.ROOT_INO, 0}
    for start, node in c.nodes.items():
        if node.kind != DIR:
            continue
        way: dict[int, None] = {}
        ino = start
        while ino not in ending and ino not in way and ino in c.nodes:
            way[ino] = None
            ino = c.nodes[ino].parent
        if ino in way:
            key = schema.KEY2.pack(c.nodes[ino].parent, c.nodes[ino].cookie)
            fix = partial(Fixer.cut_cycle, ino=ino, key=key)
            c.problem("cycle", f"directory {ino} lies within itself", ino, fix=fix)
        ending.update(way)


def check_xattrs(c: Context) -> None:
    """Check that every extended attribute belongs to an inode, whose sum proves it."""
    for key, record in c.scan("xattr"):
        if c.kept.sees("xattr", key, record):
            continue
        drop = partial(Fixer.drop_xattr, key=key)
        if not 9 <= len(key) <= 8 + schema.NAME_MAX:
            c.problem("key", f"xattr table has a key {key.hex()}", fix=drop)
            continue
        ino, name = schema.KEY.unpack(key[:8])[0], key[8:]
        node = c.nodes.get(ino)
        if node is not None:
            node.xattrs = (node.xattrs - sealing.checksum_of(record)) & MASK
        elif ino not in c.damaged_inodes:
            c.problem("xattr", f"attribute {name!r} of inode {ino}, which is not there", fix=drop)
            continue
        try:
            value = schema.unpack_xattr(key, record)
        except RecordDamaged as error:
            lose = partial(Fixer.lose_xattr, key=key)
            c.problem("xattr", f"inode {ino}, attribute {name!r}: {error}", ino, fix=lose)
            continue
        c.check_commit(f"attribute {name!r} of inode {ino}", int.from_bytes(record[:8], "big"), ino)
        if len(value) > schema.XATTR_MAX:
            c.problem("xattr", f"inode {ino}, attribute {name!r}: {len(value)} bytes long", ino)
    for ino, node in c.nodes.items():
        if node.xattrs:
            c.problem(
                "proof", f"inode {ino}: its extended attributes are not those that it proves", ino,
                fix=partial(Fixer.recount_xattrs, ino=ino), derived=True,
            )  # fmt: skip
