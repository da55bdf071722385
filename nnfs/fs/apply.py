"""Applying one epoch in one write transaction. It runs in the commit thread, and uses nothing but its arguments."""

from __future__ import annotations

import copy
import functools
import logging
import stat
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nnfs.errors import RecordDamaged, StoreDamaged, kept
from nnfs.fs.epoch import Epoch
from nnfs.fs.keysets import KeySet, KeySets, load_keys
from nnfs.fs.metadata import write_metadata
from nnfs.store import modelfiles, schema, sealing
from nnfs.store.blocks import BlockWriter, ChunkChanges, Encoded
from nnfs.store.env import Store
from nnfs.store.keeper import Keeper
from nnfs.store.moments import Moment
from nnfs.store.schema import Block, Inode, MapNode, State
from nnfs.store.txn import WriteTxn

RELEASE_NODES = 256  # map nodes released per commit (16,384 chunks, 2 GiB), so that deleting a large file stalls nobody
_MASK = (1 << 64) - 1

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Applied:
    """The result of a commit."""

    state: State
    maps: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)  # ino: count, proof, stored, flags
    unfinished: set[int] = field(default_factory=set)  # releases to go on with in the next commit
    failed: dict[int, StoreDamaged] = field(default_factory=dict)  # inodes whose chunks could not all be changed
    repaired: set[int] = field(default_factory=set)  # blocks that could not be read, and can be now
    inodes: int = 0  # change of the number of inodes
    nodes: dict[int, dict[int, bool]] = field(default_factory=dict)  # ino: map nodes that came (True) or went
    loaded: dict[int, KeySet] = field(default_factory=dict)  # ino: all its map nodes before that
    moments: tuple[Moment, ...] | None = None  # all snapshots, if they have changed


class Work:
    """A commit in progress: its txn, epoch and blocks, for amendments too."""

    def __init__(
        self, txn: WriteTxn, epoch: Epoch, blocks: BlockWriter, state: State, store: Store, nodes: KeySets,
        budget: int,
    ) -> None:  # fmt: skip
        self.txn, self.epoch, self.blocks, self.state = txn, epoch, blocks, state
        self.superblock = copy.copy(store.superblock)  # an amendment that changes it stores it
        self.keeper = Keeper(txn, store.moments)
        self._orphaned: dict[int, int | None] = {}
        self._nodes = nodes  # map nodes of files, as of the last commit
        self.stored_below = store.state.next_ino
        self.spares: set[int] = set()  # inode numbers that may be older and are used for the first time
        self.done = Applied(state)
        self.budget = budget

    # -- chunk map

    def change_chunks(self, ino: int, changes: ChunkChanges) -> None:
        try:
            inode = self.load(ino)
        except StoreDamaged as error:
            self.done.failed[ino] = kept(error)
            return
        if inode is None:
            return
        try:
            if changes.cut is not None and inode.count:
                self.cut(inode, changes.cut, changes.spare)
        except StoreDamaged as error:
            self.done.failed[ino] = kept(error)
        by_node: dict[int, dict[int, Encoded | None]] = {}
        for chunk, content in changes.chunks.items():
            slots = by_node.setdefault(chunk // schema.NODE_SPAN, {})
            slots[chunk % schema.NODE_SPAN] = content
        for number in sorted(by_node):
            try:
                self.set_slots(inode, number, by_node[number])
            except StoreDamaged as error:
                self.done.failed[ino] = kept(error)
        inode.flags &= ~Inode.LOOKED_AT
        self.note(inode)

    def note(self, inode: Inode) -> None:
        """Note that an inode's chunks, or marks about them, have changed."""
        self.done.maps[inode.ino] = (inode.count, inode.proof, inode.stored, inode.flags)
        self.epoch.inodes[inode.ino] = inode

    def load(self, ino: int) -> Inode | None:
        """Return an inode as this commit has it, None when it is gone. Raises `RecordDamaged`."""
        inode = self.epoch.inodes.get(ino)
        if inode is None:
            record = self.txn.get("inode", schema.KEY.pack(ino))
            inode = Inode.unpack(ino, record) if record is not None else None
        return inode

    def set_slots(self, inode: Inode, number: int, slots: dict[int, Encoded | None]) -> None:
        key = schema.KEY2.pack(inode.ino, number)
        record = self.txn.get("map", key)
        if record is None and inode.count:
            self._check_absence(inode, number, key)
        node = MapNode.unpack(key, record) if record is not None else MapNode({})
        # Steps that can fail come first. New content is added before old is released: equal content keeps its block.
        added = {slot: self.blocks.add(content) for slot, content in sorted(slots.items()) if content is not None}
        kept = self._keep_node(inode, key, record, [n for slot, n in node.blocks.items() if slot not in slots])
        for slot, content in slots.items():
            old = node.blocks.pop(slot, None)
            if old is not None:
                self.unmap(inode, old, kept=kept)
            if content is not None:
                node.blocks[slot] = added[slot]
                inode.count += 1
                inode.stored += len(content.payload)
                self.done.state.logical += content.plain
        self.put_node(inode, key, record, node)

    def _keep_node(self, inode: Inode, key: bytes, record: bytes | None, stays: Iterable[int]) -> bool:
        """Keep a map node that is about to change, if a snapshot shares it. Return whether it is kept.

        Blocks that the live node goes on to name get one reference more; those of the others move.
        """
        if record is None or not self.keeper.active:
            return False
        if not self.keeper.keep("map", key, record, self.orphaned(inode)):
            return False
        for number in stays:
            try:
                self.blocks.ref(number)
            except StoreDamaged as error:
                log.warning("inode %d: a block that a snapshot shares is damaged: %s", inode.ino, error)
        return True

    def orphaned(self, inode: Inode) -> int | None:
        """Return the commit that took an inode's last name, None if it has one or loses it now."""
        if inode.nlink:
            return None
        if inode.ino not in self._orphaned:
            key = schema.KEY.pack(inode.ino)
            record = self.txn.get("orphan", key)
            self._orphaned[inode.ino] = None if record is None else schema.unpack_orphan(key, record)
        return self._orphaned[inode.ino]

    def _check_absence(self, inode: Inode, number: int, key: bytes) -> None:
        """Raise `RecordDamaged` unless a missing map node is provably absent: its chunks would become holes."""
        is_there = self.done.nodes.get(inode.ino, {}).get(number)
        if is_there is None:
            is_there = self._had_node(inode, number, key)
        if is_there:
            raise RecordDamaged("map", key, "missing, and its file has it")

    def _had_node(self, inode: Inode, number: int, key: bytes) -> bool:
        nodes = self._nodes.peek(inode.ino) or self.done.loaded.get(inode.ino)
        if nodes is not None:
            return number in nodes
        try:
            nodes = self.done.loaded[inode.ino] = load_keys(self.txn, inode, "map")
            return number in nodes
        except RecordDamaged:
            return not self._lacks(inode, key)  # another node is damaged: that must not keep the file from growing

    def _lacks(self, inode: Inode, key: bytes) -> bool:
        """Return whether all nodes of a file are there, damaged ones included, and none of them belongs to `key`."""
        total = 0
        for _, record in self.txn.prefix("map", schema.KEY.pack(inode.ino)):
            if sealing.is_sealed("map", key, record):
                return False
            total += sealing.checksum_of(record)
        return total & _MASK == inode.proof & _MASK

    def put_node(self, inode: Inode, key: bytes, old: bytes | None, node: MapNode) -> None:
        """Store a changed node (delete an empty one) and keep the inode's proof true."""
        new = None
        if node.blocks:
            node.commit = self.epoch.commit
            new = node.pack(key)
            self.txn.put("map", key, new)
        elif old is not None:
            self.txn.delete("map", key)
        if (old is None) != (new is None):
            self._note_node(inode.ino, key, present=new is not None)
        inode.proof += (sealing.checksum_of(new) if new else 0) - (sealing.checksum_of(old) if old else 0)
        inode.proof &= _MASK

    def _note_node(self, ino: int, key: bytes, *, present: bool) -> None:
        self.done.nodes.setdefault(ino, {})[schema.KEY2.unpack(key)[1]] = present

    def unmap(self, inode: Inode, number: int, *, kept: bool = False) -> None:
        inode.count -= 1
        try:
            block = self.blocks.peek(number) if kept else self.blocks.unref(number)
        except StoreDamaged as error:
            # The new content is what matters; the count of a damaged block is fsck's to repair.
            log.warning("inode %d: replaced a chunk whose block is damaged: %s", inode.ino, error)
            return
        inode.stored = max(0, inode.stored - block.stored)
        self.done.state.logical = max(0, self.done.state.logical - block.plain)

    def cut(self, inode: Inode, first: int, spare: int) -> None:
        """Unmap chunks from `first` on. Many whole nodes go to the orphan `spare`, to be released later."""
        span = schema.NODE_SPAN
        if first % span:
            key = schema.KEY2.pack(inode.ino, first // span)
            record = self.txn.get("map", key)
            if record is not None:
                node = MapNode.unpack(key, record)
                stays = [number for slot, number in node.blocks.items() if slot < first % span]
                if len(stays) < len(node.blocks):
                    kept = self._keep_node(inode, key, record, stays)
                    for slot in [slot for slot in node.blocks if slot >= first % span]:
                        self.unmap(inode, node.blocks.pop(slot), kept=kept)
                    self.put_node(inode, key, record, node)
        low = schema.KEY2.pack(inode.ino, -(-first // span))
        nodes = list(self.txn.range("map", low, schema.KEY.pack(inode.ino + 1)))
        if spare and len(nodes) > RELEASE_NODES:
            self.hand_over(inode, nodes, spare)
            return
        for key, record in nodes:
            self.release_node(inode, key, record)

    def release_node(self, inode: Inode, key: bytes, record: bytes) -> None:
        self.txn.delete("map", key)
        self._note_node(inode.ino, key, present=False)
        inode.proof = (inode.proof - sealing.checksum_of(record)) & _MASK
        try:
            node = MapNode.unpack(key, record)
        except StoreDamaged as error:
            log.warning("inode %d: removed a damaged map node, fsck will find its blocks: %s", inode.ino, error)
            return
        kept = self._keep_node(inode, key, record, ())
        for number in node.blocks.values():
            self.unmap(inode, number, kept=kept)

    def hand_over(self, inode: Inode, nodes: list[tuple[bytes, bytes]], spare: int) -> None:
        orphan = Inode(spare, stat.S_IFREG, 0, 0, inode.ctime)
        orphan.nlink, orphan.commit = 0, self.epoch.commit
        before, stored = inode.count, inode.stored
        for key, record, node in [(key, record, MapNode.unpack(key, record)) for key, record in nodes]:
            if self.keeper.holder("map", record, self.orphaned(inode)) is not None:
                self.release_node(inode, key, record)  # it goes to a snapshot, and no block is released
                continue
            self.put_node(inode, key, record, MapNode({}))
            moved = schema.KEY2.pack(spare, schema.KEY2.unpack(key)[1])
            self.put_node(orphan, moved, None, node)
            inode.count -= len(node.blocks)
            orphan.count += len(node.blocks)
        orphan.stored = stored * orphan.count // max(1, before)  # about: exact would be asking every block
        inode.stored = max(0, inode.stored - orphan.stored)
        self.epoch.inodes[spare] = orphan
        self.spares.add(spare)
        self.epoch.orphans.add(spare)
        self.epoch.release.add(spare)
        self.done.inodes += 1

    # -- release

    def release(self, ino: int) -> None:
        """Delete an inode with all that belongs to it, as far as this commit's budget goes."""
        key = schema.KEY.pack(ino)
        try:
            inode = self.load(ino)
        except StoreDamaged as error:
            log.error("inode %d cannot be released, fsck can see to it: %s", ino, error)
            inode = None
        if inode is None:
            self.txn.delete("orphan", key)
            return
        if inode.count or inode.proof:
            for node_key, record in list(self._first_nodes(key)):
                self.release_node(inode, node_key, record)
                self.budget -= 1
        if self.budget <= 0 and any(True for _ in self.txn.prefix("map", key)):
            inode.nlink, inode.commit = 0, self.epoch.commit
            self.epoch.inodes[ino] = inode
            self.epoch.orphans.add(ino)
            self.done.unfinished.add(ino)
            return
        self.epoch.inodes.pop(ino, None)
        self.epoch.orphans.discard(ino)
        changed = self.epoch.xattrs.pop(ino, None)
        if self.keeper.may_share(ino):
            self._keep_released(inode)
        self.txn.delete("inode", key)
        self.txn.delete("orphan", key)
        if inode.xattrs or changed:  # removed in this very epoch: the store still has them
            self.txn.delete_prefix("xattr", key)
        self.done.inodes -= 1

    def _keep_released(self, inode: Inode) -> None:
        """Keep the inode and the attributes of what is about to be deleted."""
        key, orphaned = schema.KEY.pack(inode.ino), self.orphaned(inode)
        record = self.txn.get("inode", key)
        if record is not None:
            self.keeper.keep("inode", key, record, orphaned)
        for name, value in list(self.txn.prefix("xattr", key)):
            self.keeper.keep("xattr", name, value, orphaned)

    def _first_nodes(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        nodes: list[tuple[bytes, bytes]] = []
        for item in self.txn.prefix("map", prefix):
            if len(nodes) >= self.budget:
                break
            nodes.append(item)
        return nodes


Amendment = Callable[[Work], None]  # a change of the store that no request made; keeps its own errors to itself


def apply(
    store: Store,
    frozen: Epoch,
    chunks: Mapping[int, ChunkChanges],
    now: int,
    room: int,
    amendments: Sequence[Amendment] = (),
    damaged: Container[int] = (),
    nodes: KeySets | None = None,
    budget: int | None = None,
) -> tuple[Applied, int]:
    """Commit an epoch, durably. Return what was done, and the bytes left in the payload table's last page.

    `now` is unix seconds; amendments come after requests; `damaged` are blocks of which a reader has found
    that they cannot be decoded: writing their content once more repairs them; `nodes` are the map nodes that
    files are known to have had at the last commit; `budget` is the most map nodes that are released. Raises
    `OutOfSpace` and other `StoreError`s with nothing changed; a damaged map of a single inode does not stop the commit
    but is reported in `Applied.failed`.
    """
    epoch = copy.copy(frozen)  # a failed try must leave the epoch as it was
    epoch.inodes = {ino: copy.copy(inode) for ino, inode in frozen.inodes.items()}
    epoch.xattrs, epoch.orphans, epoch.release = dict(frozen.xattrs), set(frozen.orphans), set(frozen.release)
    state = copy.copy(store.state)
    state.commit, state.next_ino, state.inodes = epoch.commit, epoch.state.next_ino, epoch.state.inodes
    if epoch.unsettles:
        state.flags |= State.FLAG_UNSETTLED
    with store.write() as txn:
        blocks = BlockWriter(txn, state, now, room, _readable(store, damaged))
        budget = RELEASE_NODES if budget is None else budget
        work = Work(txn, epoch, blocks, state, store, nodes or KeySets(), budget)
        for ino in sorted(chunks):
            if ino not in epoch.release:
                work.change_chunks(ino, chunks[ino])
        for ino in sorted(epoch.release):
            if work.budget > 0:
                work.release(ino)
            else:
                work.done.unfinished.add(ino)
        for amend in amendments:
            amend(work)
        write_metadata(work)
        room = blocks.flush()
        state.inodes += work.done.inodes
        txn.put_state(state)
    store.state, store.superblock = state, work.superblock
    if work.done.moments is not None:
        store.moments = work.done.moments
    work.done.repaired = blocks.repaired
    return work.done, room


def _readable(store: Store, damaged: Container[int]) -> Callable[[int, Block], bool]:
    """Return a function that tells whether a block can be decoded, as far as that is known without decoding it."""

    @functools.cache
    def usable(model: int) -> bool:
        with store.read() as snapshot:  # a write txn that meets damaged pages would be lost
            return modelfiles.is_usable(snapshot, model)

    return lambda number, block: number not in damaged and (not block.model or usable(block.model))
