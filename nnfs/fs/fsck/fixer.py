"""The changes that `fsck --repair` makes, in one write txn.

Fixes that set derived values, computed from the records as the check saw them, come first; then those that change
records and keep counts, proofs and sums true.
"""

from __future__ import annotations

import contextlib
import stat
import time
from collections.abc import Iterable

from nnfs.errors import ModelMissing, RecordDamaged
from nnfs.fs.fsck.context import MASK, Context, Problem
from nnfs.store import moments, schema, sealing
from nnfs.store.blocks import load_block
from nnfs.store.env import Store
from nnfs.store.keeper import Keeper
from nnfs.store.modelfiles import repair_copies
from nnfs.store.moments import Moment
from nnfs.store.schema import Dentry, Inode, MapNode, State, Total
from nnfs.store.txn import WriteTxn

DIR = stat.S_IFDIR >> 12
LOST_FOUND = b"lost+found"


def apply_fixes(store: Store, context: Context) -> list[str]:
    """Apply the fixes of all problems that have one, mark them as fixed, and return notes for people."""
    wanted = [problem for problem in context.report.problems if problem.fix is not None]
    if not wanted:
        return []
    with store.write() as txn:
        fixer = Fixer(txn, store, State.unpack(context.state.pack()), context)
        fixer.apply(problem for problem in wanted if problem.is_derived)
        fixer.apply(problem for problem in wanted if not problem.is_derived)
        fixer.finish()
    store.state = fixer.state
    for problem in wanted:
        problem.fixed = True
    return fixer.notes


class Fixer:
    """The changes that fixes are made of, within a write txn."""

    def __init__(self, txn: WriteTxn, store: Store, state: State, context: Context) -> None:
        self.txn, self.store, self.state, self.context = txn, store, state, context
        state.commit += 1
        self.notes: list[str] = []
        self._keeper = Keeper(txn, context.moments)
        self._kept_blocks: set[int] = set()
        self._inodes: dict[int, Inode | None] = {}

    def apply(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            assert problem.fix is not None
            problem.fix(self)

    def finish(self) -> None:
        for ino, inode in sorted(self._inodes.items()):
            if inode is not None:
                self._keep("inode", schema.inode_key(ino))
                inode.commit = self.state.commit
                self.txn.put("inode", schema.inode_key(ino), inode.pack())
        self.txn.put_superblock(self.store.superblock)
        self.txn.put_state(self.state)

    # -- records

    def put(self, table: str, key: bytes, record: bytes) -> None:
        self.txn.put(table, key, record)

    def delete(self, table: str, key: bytes) -> None:
        self.txn.delete(table, key)

    def delete_prefix(self, table: str, prefix: bytes) -> None:
        self.txn.delete_prefix(table, prefix)

    def _keep(self, table: str, key: bytes) -> bool:
        """Keep a record that is about to be changed, if a snapshot shares it. Return whether it is kept."""
        record = self.txn.get(table, key) if self._keeper.active else None
        if record is None or not sealing.is_sealed(table, key, record):
            return False
        return self._keeper.keep(table, key, record)

    def put_moment(self, moment: Moment) -> None:
        """Write both copies of a snapshot's record."""
        moments.put(self.txn, moment)

    def mark_snapshots(self, present: bool) -> None:
        """Have the superblock say whether there are snapshots."""
        others = self.store.superblock.ro_compat & ~moments.RO_SNAPSHOTS
        self.store.superblock.ro_compat = others | (moments.RO_SNAPSHOTS if present else 0)

    def set_state(self, name: str, value: int) -> None:
        setattr(self.state, name, value)

    def put_total(self, key: bytes, total: Total) -> None:
        total.commit = self.state.commit
        self.txn.put("total", key, total.pack(key))

    # -- inodes

    def inode(self, ino: int) -> Inode | None:
        """Return the inode as it will be written at the end, None when there is no sound one."""
        if ino not in self._inodes:
            record = self.txn.get("inode", schema.inode_key(ino))
            try:
                self._inodes[ino] = None if record is None else Inode.unpack(ino, record)
            except RecordDamaged:
                self._inodes[ino] = None
        return self._inodes[ino]

    def _change(self, ino: int, count: int = 0, proof: int = 0, nlink: int = 0) -> None:
        inode = self.inode(ino)
        if inode is not None:
            inode.count = max(0, inode.count + count)
            inode.proof = (inode.proof + proof) & MASK
            inode.nlink = max(0, inode.nlink + nlink)

    def add_count(self, ino: int, change: int) -> None:
        self._change(ino, count=change)

    def set_nlink(self, ino: int, nlink: int) -> None:
        inode = self.inode(ino)
        if inode is not None:
            inode.nlink = nlink

    def clear_proof(self, ino: int) -> None:
        inode = self.inode(ino)
        if inode is not None:
            inode.count = inode.proof = 0

    def set_parent(self, ino: int, parent: int) -> None:
        inode = self.inode(ino)
        if inode is not None:
            inode.aux = parent

    def set_flag(self, ino: int, flag: int) -> None:
        inode = self.inode(ino)
        if inode is not None:
            inode.flags |= flag

    def recount_directory(self, ino: int) -> None:
        """Set count and proof of a directory to those of the entries that are there."""
        inode = self.inode(ino)
        if inode is not None:
            inode.count, inode.proof = self._prove("dentry", ino)

    def _prove(self, table: str, ino: int) -> tuple[int, int]:
        """Return number and sum of the records of an inode that are there."""
        sums = [sealing.checksum_of(record) for _, record in self.txn.prefix(table, schema.inode_key(ino))]
        return len(sums), sum(sums) & MASK

    def make_orphan(self, ino: int) -> None:
        key = schema.inode_key(ino)
        self.txn.put("orphan", key, schema.pack_orphan(key, self.state.commit))

    def make_root(self) -> None:
        root = Inode(schema.ROOT_INO, stat.S_IFDIR | 0o700, 0, 0, time.time_ns())
        root.aux = schema.ROOT_INO
        self._recount_directory(root)
        self.state.inodes += self.txn.get("inode", schema.inode_key(root.ino)) is None
        self._inodes[root.ino] = root

    def rebuild_inode(self, ino: int) -> None:
        """Write a new inode in place of a damaged one: owner root, no permissions for others, times now.

        The other fields follow from other records; the size of a file is the end of its last chunk. Kinds without
        records of their own cannot be recognised, and become an empty file.
        """
        key = schema.inode_key(ino)
        kind = self.context.damaged_inodes.get(ino, 0)
        is_dir = kind == DIR or ino == schema.ROOT_INO or any(True for _ in self.txn.prefix("dentry", key))
        inode = Inode(ino, (stat.S_IFDIR | 0o700) if is_dir else (stat.S_IFREG | 0o600), 0, 0, time.time_ns())
        inode.xattrs = self._prove("xattr", ino)[1]
        if is_dir:
            self._recount_directory(inode)
        else:
            self._measure_file(inode)
        self._inodes[ino] = inode
        kind_name = "directory" if is_dir else f"file of {inode.size} bytes (to the end of its last chunk)"
        self.notes.append(f"inode {ino} was rebuilt as a {kind_name} of root's, mode {inode.mode & 0o777:o}, times now")

    def _recount_directory(self, inode: Inode) -> None:
        """Set count and proof. The parent and the link count are left to the next round, which knows them."""
        inode.flags |= Inode.FLAG_COLLISIONS
        inode.nlink = 2
        inode.count, inode.proof = self._prove("dentry", inode.ino)

    def _measure_file(self, inode: Inode) -> None:
        """Set size, count and proof to those of the chunks that are there."""
        chunk_size = self.store.superblock.chunk_size
        for key, record in self.txn.prefix("map", schema.inode_key(inode.ino)):
            inode.proof = (inode.proof + sealing.checksum_of(record)) & MASK
            first = schema.KEY2.unpack(key)[1] * schema.NODE_SPAN
            try:
                node = MapNode.unpack(key, record)
            except RecordDamaged:
                continue
            inode.count += len(node.blocks)
            for slot, number in node.blocks.items():
                inode.size = max(inode.size, (first + slot) * chunk_size + self._plain(number))

    def _plain(self, number: int) -> int:
        try:
            block = load_block(self.txn, number)
        except RecordDamaged:
            block = None
        return block.plain if block is not None else self.store.superblock.chunk_size

    # -- extended attributes

    def recount_xattrs(self, ino: int) -> None:
        """Set the sum to that of the attributes that are there."""
        inode = self.inode(ino)
        if inode is not None:
            if inode.xattrs:  # 0: nothing was proved, so nothing is missing
                self._tell_lost(ino, "an extended attribute")
            inode.xattrs = self._prove("xattr", ino)[1]

    def drop_xattr(self, key: bytes) -> None:
        """Remove an extended attribute that belongs to no inode."""
        record = self.txn.get("xattr", key)
        if record is None:
            return
        inode = self.inode(schema.KEY.unpack(key[:8])[0]) if len(key) >= 8 else None
        if inode is not None:
            inode.xattrs = (inode.xattrs - sealing.checksum_of(record)) & MASK
        self._keep("xattr", key)
        self.txn.delete("xattr", key)

    def lose_xattr(self, key: bytes) -> None:
        """Remove a damaged extended attribute: with it, the inode could not prove the others."""
        self._tell_lost(schema.KEY.unpack(key[:8])[0], f"attribute {key[8:]!r}")
        self.drop_xattr(key)

    def _tell_lost(self, ino: int, what: str) -> None:
        self.notes.append(f"inode {ino} has lost {what}: if that was an ACL, only its mode says now who may do what")

    # -- names

    def drop_dentry(self, key: bytes) -> None:
        record = self.txn.get("dentry", key)
        if record is not None:
            self._change(schema.KEY2.unpack(key)[0], -1, -sealing.checksum_of(record))
            self._keep("dentry", key)
            self.txn.delete("dentry", key)

    def set_dentry_kind(self, key: bytes, kind: int) -> None:
        record = self.txn.get("dentry", key)
        if record is not None:
            dentry = Dentry.unpack(key, record)
            self._keep("dentry", key)
            dentry.kind, dentry.commit = kind, self.state.commit
            new = dentry.pack(key)
            self._change(schema.KEY2.unpack(key)[0], 0, sealing.checksum_of(new) - sealing.checksum_of(record))
            self.txn.put("dentry", key, new)

    def rehash_dentry(self, key: bytes) -> None:
        """Move an entry to the cookie of its name."""
        record = self.txn.get("dentry", key)
        if record is not None:
            directory, dentry = schema.KEY2.unpack(key)[0], Dentry.unpack(key, record)
            self.drop_dentry(key)
            self._add_dentry(directory, dentry)

    def _add_dentry(self, directory: int, dentry: Dentry) -> None:
        cookie = schema.cookie_of(dentry.name, self.store.superblock.seed)
        key = schema.KEY2.pack(directory, cookie)
        while self.txn.get("dentry", key) is not None:
            cookie += 1
            key = schema.KEY2.pack(directory, cookie)
            self.set_flag(directory, Inode.FLAG_COLLISIONS)
        dentry.commit = self.state.commit
        record = dentry.pack(key)
        self.txn.put("dentry", key, record)
        self._change(directory, 1, sealing.checksum_of(record))

    def cut_cycle(self, ino: int, key: bytes) -> None:
        """Move a directory of a cycle, whose parent lies within it, to lost+found."""
        parent, node = schema.KEY2.unpack(key)[0], self.context.nodes[ino]
        self.drop_dentry(key)
        self._change(parent, nlink=-1)
        self.attach(ino, node.subdirs - (parent == ino))

    def attach(self, ino: int, subdirs: int) -> None:
        """Give an inode a name in lost+found."""
        inode = self.inode(ino)
        if inode is None:
            return
        home = self._lost_found()
        is_dir = stat.S_ISDIR(inode.mode)
        inode.nlink = 2 + subdirs if is_dir else 1
        self._add_dentry(home, Dentry(ino, inode.mode >> 12, b"#%d" % ino))
        if is_dir:
            inode.aux = home
            self._change(home, nlink=1)
        self.notes.append(f"inode {ino} is now /lost+found/#{ino}")

    def _lost_found(self) -> int:
        """Return the inode number of /lost+found. Make it if it does not exist."""
        cookie = schema.cookie_of(LOST_FOUND, self.store.superblock.seed)
        first, last = schema.KEY2.pack(schema.ROOT_INO, cookie), schema.KEY2.pack(schema.ROOT_INO, cookie | 0xFFFF)
        for key, record in self.txn.range("dentry", first, last):
            dentry = Dentry.unpack(key, record)
            if dentry.name == LOST_FOUND and dentry.kind == DIR:
                return dentry.ino
        home = Inode(self.state.next_ino, stat.S_IFDIR | 0o700, 0, 0, time.time_ns())
        home.aux, home.nlink = schema.ROOT_INO, 2
        self.state.next_ino += 1
        self.state.inodes += 1
        self._inodes[home.ino] = home
        self._add_dentry(schema.ROOT_INO, Dentry(home.ino, DIR, LOST_FOUND))
        self._change(schema.ROOT_INO, nlink=1)
        return home.ino

    # -- chunks

    def drop_node(self, key: bytes) -> None:
        """Remove a map node of an inode that is no file; the check has not counted its references."""
        self.txn.delete("map", key)

    def cut_node(self, key: bytes, size: int) -> None:
        """Remove the slots beyond the end of the file; the check has not counted their references."""
        record = self.txn.get("map", key)
        if record is None:
            return
        (ino, number), node = schema.KEY2.unpack(key), MapNode.unpack(key, record)
        if self._keep("map", key):
            for block in node.blocks.values():
                self._add_ref(block)
        before, chunk_size = len(node.blocks), self.store.superblock.chunk_size
        first = number * schema.NODE_SPAN
        node.blocks = {slot: block for slot, block in node.blocks.items() if (first + slot) * chunk_size < size}
        node.commit = self.state.commit
        proof = -sealing.checksum_of(record)
        if node.blocks:
            new = node.pack(key)
            proof += sealing.checksum_of(new)
            self.txn.put("map", key, new)
        else:
            self.txn.delete("map", key)
        self._change(ino, len(node.blocks) - before, proof)

    def _add_ref(self, number: int) -> None:
        """Count the reference of a map node that has been kept. The next round counts all anew."""
        block = load_block(self.txn, number)
        self._kept_blocks.add(number)
        if block is not None:
            self.set_refs(number, block.refs + 1)

    def set_refs(self, number: int, refs: int) -> None:
        block, key = load_block(self.txn, number), schema.KEY.pack(number)
        if block is not None:
            block.refs, block.commit = refs, self.state.commit
            self.txn.put("block", key, block.pack(key))

    def delete_block(self, number: int) -> None:
        """Remove a block that nothing refers to, with its payload, its index entry and its share of the totals."""
        block = load_block(self.txn, number)
        if block is None or number in self._kept_blocks:
            return
        self.txn.delete("block", schema.KEY.pack(number))
        self.txn.delete_prefix("payload", schema.KEY.pack(block.payload))
        self.delete_stray_index(block.hash[: schema.INDEX_SIZE], schema.KEY.pack(number))
        key = schema.TOTAL_KEY.pack(block.codec, block.model)
        record = self.txn.get("total", key)
        if record is not None:
            total = Total.unpack(key, record)
            total.blocks -= 1
            total.plain -= block.plain
            total.stored -= block.stored
            self.put_total(key, total)

    def repair_model(self, number: int) -> None:
        """Write a model's damaged copy, of its record or its file, anew from the sound one."""
        with contextlib.suppress(ModelMissing):  # without a sound file: that is a problem of its own
            repair_copies(self.txn, number)

    def delete_stray_index(self, key: bytes, record: bytes) -> None:
        """Delete an entry of the hash index unless another fix has replaced it."""
        if self.txn.get("hash", key) == record:
            self.txn.delete("hash", key)
