"""The live filesystem state: inode cache, epochs over LMDB, life and death of inodes. Synchronous: see DESIGN.md."""

from __future__ import annotations

import copy
import errno
import time
from collections.abc import Callable, Iterator
from itertools import islice

from nnfs.errors import FsError, RecordDamaged
from nnfs.fs.apply import Applied
from nnfs.fs.epoch import Epoch
from nnfs.store import schema
from nnfs.store.env import Snapshot, Store
from nnfs.store.schema import Dentry, Inode

CACHED_INODES = 20_000  # clean ones, about 600 bytes each
PROVED_AT_ONCE = 20_000  # entries of a directory
MAX_COOKIE = (1 << 63) - 1


class Filesystem:
    """Inodes, dentries and xattrs as the requests so far have left them.

    `snapshot` is the loop's read txn at the last commit; `active` and `frozen` lie over it. `lookups` are the kernel's
    lookup counts: an inode without names is released when its count is gone (an open file holds its kernel inode, so
    that is after its last handle was closed).
    """

    def __init__(self, store: Store, on_release: Callable[[int], None] = lambda ino: None) -> None:
        self.store = store
        self.snapshot: Snapshot = store.read()
        self.state = copy.copy(store.state)
        self.active = Epoch(self.state.commit + 1)
        self.frozen: Epoch | None = None
        self.lookups: dict[int, int] = {}
        self.on_release = on_release
        self._inodes: dict[int, Inode] = {}
        self._sound: dict[int, set[str]] = {}  # tables whose proof was checked since the inode was loaded
        self._orphans: set[int] = set()  # without names, still looked up
        self.active.release.update(schema.KEY.unpack(key)[0] for key, _ in self.snapshot.range("orphan", b""))

    # -- inodes

    def inode(self, ino: int) -> Inode:
        """Return the live inode. Raises `FsError(ESTALE)` when there is none, `RecordDamaged`."""
        inode = self._inodes.get(ino)
        if inode is not None:
            return inode
        record = self.snapshot.get("inode", schema.KEY.pack(ino))
        if record is None:
            raise FsError(errno.ESTALE)
        inode = self._inodes[ino] = Inode.unpack(ino, record)
        if len(self._inodes) > 2 * CACHED_INODES:
            self._shrink()
        return inode

    def _shrink(self) -> None:
        pinned = self.active.inodes.keys() | (self.frozen.inodes.keys() if self.frozen else set())
        for ino in list(self._inodes):
            if ino not in pinned:
                del self._inodes[ino]
                self._sound.pop(ino, None)
            if len(self._inodes) <= CACHED_INODES:
                break

    def new_inode(self, mode: int, uid: int, gid: int) -> Inode:
        """Return a fresh inode, already part of the active epoch."""
        inode = Inode(self.new_ino(), mode, uid, gid, time.time_ns())
        self.state.inodes += 1
        self._inodes[inode.ino] = inode
        self.active.inodes[inode.ino] = inode
        return inode

    def new_ino(self) -> int:
        """Return an inode number that was never used."""
        self.state.next_ino += 1
        return self.state.next_ino - 1

    @property
    def named(self) -> int:
        """The number of inodes that have names, as of the last request.

        `state.inodes` counts the others, too, until a commit deletes them: how long that takes depends on open files,
        on when the kernel forgets, and on the commit. Whoever has removed a file expects to see one less at once.
        """
        nameless = self._orphans | self.active.release | (self.frozen.release if self.frozen else set())
        return max(1, self.state.inodes - len(nameless))

    def touch(self, inode: Inode) -> None:
        """Note that an inode was changed."""
        self.active.inodes[inode.ino] = inode

    def remember(self, ino: int) -> None:
        """Count one look-up by the kernel."""
        self.lookups[ino] = self.lookups.get(ino, 0) + 1

    def forget(self, ino: int, count: int) -> None:
        """Drop look-ups; releases an inode without names that nothing else holds."""
        left = self.lookups.get(ino, 0) - count
        if left > 0:
            self.lookups[ino] = left
            return
        self.lookups.pop(ino, None)
        self._release_if_dead(ino)

    def drop_link(self, inode: Inode, links: int = 1) -> None:
        """Take away names of an inode; the last one makes it an orphan."""
        inode.nlink = max(0, inode.nlink - links)
        inode.ctime = time.time_ns()
        self.touch(inode)
        if inode.nlink == 0:
            self.active.orphans.add(inode.ino)
            self._orphans.add(inode.ino)
            self._release_if_dead(inode.ino)

    def _release_if_dead(self, ino: int) -> None:
        if ino not in self._orphans or ino in self.lookups:
            return
        self._orphans.remove(ino)
        self.active.release.add(ino)
        self.on_release(ino)

    # -- dentries

    def dentry_record(self, key: bytes) -> bytes | None:
        """Return the sealed dentry at a key, as of now."""
        record: bytes | None
        if key in self.active.dentries:
            record = self.active.dentries[key]
        elif self.frozen is not None and key in self.frozen.dentries:
            record = self.frozen.dentries[key]
        else:
            record = self.snapshot.get("dentry", key)
        return record

    def dentries(self, ino: int, after: int, limit: int = 256) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield (cookie, key, sealed record) of a directory's entries with cookies above `after`, in order.

        Reads ahead in lists of `limit`, so the directory may change while the generator rests.
        """
        low, high = schema.KEY2.pack(ino, after + 1), schema.KEY2.pack(ino, MAX_COOKIE)
        while True:
            merged, last = self._merge(low, high, limit)
            for key, record in merged:
                yield schema.KEY2.unpack(key)[1], key, record
            if last is None:
                return
            low = last + b"\0"

    def _merge(self, low: bytes, high: bytes, limit: int) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        base = list(islice(self.snapshot.range("dentry", low, high), limit))
        merged: dict[bytes, bytes | None] = dict(base)
        ends = [base[-1][0]] if len(base) == limit else []
        for epoch in (self.frozen, self.active):
            if epoch is not None and epoch.dentries:
                keys = list(islice(epoch.dentries.irange(low, high), limit))
                merged.update((key, epoch.dentries[key]) for key in keys)
                if len(keys) == limit:
                    ends.append(keys[-1])
        last = min(ends) if ends else None  # behind it some layer has keys that were not read yet
        found = [(k, r) for k, r in sorted(merged.items()) if r is not None and (last is None or k <= last)]
        return found, last

    def find(self, parent: Inode, name: bytes) -> tuple[bytes, bytes, Dentry] | None:
        """Return (key, sealed record, dentry) of a name, or None when the directory provably lacks it."""
        cookie = schema.cookie_of(name, self.store.superblock.seed)
        key = schema.KEY2.pack(parent.ino, cookie)
        record = self.dentry_record(key)
        if record is not None:
            dentry = Dentry.unpack(key, record)
            if dentry.name == name:
                return key, record, dentry
        if record is not None or parent.flags & Inode.FLAG_COLLISIONS:
            for found, key, record in self.dentries(parent.ino, cookie, limit=8):
                if found >> 16 != cookie >> 16:
                    break
                dentry = Dentry.unpack(key, record)
                if dentry.name == name:
                    return key, record, dentry
        self.check_proof(parent, "dentry")
        return None

    def add_dentry(self, parent: Inode, name: bytes, ino: int, kind: int) -> None:
        """Enter a name that `find` did not find."""
        cookie = schema.cookie_of(name, self.store.superblock.seed)
        key = schema.KEY2.pack(parent.ino, cookie)
        while self.dentry_record(key) is not None:
            cookie += 1
            if cookie & 0xFFFF == 0:
                raise FsError(errno.ENOSPC)  # 65,536 names of one hash
            key = schema.KEY2.pack(parent.ino, cookie)
            parent.flags |= Inode.FLAG_COLLISIONS
        record = Dentry(ino, kind, name, self.active.commit).pack(key)
        self.active.dentries[key] = record
        self._count_dentry(parent, 1, schema.checksum_of(record))

    def remove_dentry(self, parent: Inode, key: bytes, record: bytes) -> None:
        """Take out an entry that `find` returned."""
        self.active.dentries[key] = None
        self._count_dentry(parent, -1, -schema.checksum_of(record))

    def _count_dentry(self, parent: Inode, count: int, checksum: int) -> None:
        parent.count += count
        parent.proof = (parent.proof + checksum) % (1 << 64)
        parent.mtime = parent.ctime = time.time_ns()
        self.touch(parent)

    def check_proof(self, inode: Inode, table: str) -> None:
        """Check once per load that no map node, dentry or xattr of an inode is lost. Raises `RecordDamaged`."""
        sound = self._sound.setdefault(inode.ino, set())
        if table not in sound:
            prove(self.snapshot, inode.ino, table)
            sound.add(table)

    def large_and_unproved(self, inode: Inode, table: str) -> bool:
        """Whether the check would hold up everybody else: then let a thread call `prove`, and note it with `proved`."""
        return inode.count > PROVED_AT_ONCE and table not in self._sound.get(inode.ino, ())

    def proved(self, ino: int, table: str) -> None:
        """Note that `prove` found nothing wrong."""
        self._sound.setdefault(ino, set()).add(table)

    # -- chunk map

    def block_numbers(self, inode: Inode, first: int, last: int) -> list[int]:
        """Return the block numbers of committed chunks first..last, 0 for holes. Raises `RecordDamaged`."""
        numbers: list[int] = []
        span = schema.NODE_SPAN
        for node in range(first // span, last // span + 1):
            key = schema.KEY2.pack(inode.ino, node)
            record = self.snapshot.get("map", key)
            blocks = schema.MapNode.unpack(key, record).blocks if record is not None else {}
            low, high = max(first, node * span), min(last, node * span + span - 1)
            numbers += [blocks.get(chunk - node * span, 0) for chunk in range(low, high + 1)]
        if inode.count and 0 in numbers:
            self.check_proof(inode, "map")
        return numbers

    # -- commit

    def freeze(self) -> Epoch:
        """End the active epoch and return it, frozen; a failed one still there takes in the active one."""
        epoch = self.active
        epoch.state = copy.copy(self.state)
        for ino, inode in epoch.inodes.items():
            inode.commit = epoch.commit
            epoch.inodes[ino] = copy.copy(inode)
        if self.frozen is not None:
            self.frozen.absorb(epoch)
        else:
            self.frozen = epoch
        self.active = Epoch(epoch.commit + 1)
        return self.frozen

    def committed(self, applied: Applied) -> None:
        """Drop the frozen epoch, whose commit is durable, and look at the store anew."""
        new = self.store.read()  # first, since it may fail
        frozen, self.frozen = self.frozen, None
        assert frozen is not None
        old, self.snapshot = self.snapshot, new
        old.close()
        self.state.commit = frozen.commit
        self.state.next_number, self.state.logical = applied.state.next_number, applied.state.logical
        self.state.inodes += applied.inodes
        for ino, (count, proof, stored, flags) in applied.maps.items():
            for inode in (self._inodes.get(ino), self.active.inodes.get(ino)):
                if inode is not None:
                    inode.count, inode.proof, inode.stored, inode.flags = count, proof, stored, flags
        for ino in frozen.release - applied.unfinished:
            self._inodes.pop(ino, None)
            self._sound.pop(ino, None)
            self.active.inodes.pop(ino, None)
            self.active.xattrs.pop(ino, None)
        self.active.release |= applied.unfinished

    @property
    def dirty(self) -> bool:
        """Whether the active epoch holds changes, or the frozen one waits for another try."""
        return not self.active.empty or self.frozen is not None

    def close(self) -> None:
        self.snapshot.close()


def prove(snapshot: Snapshot, ino: int, table: str) -> None:
    """Compare an inode's proof with the records that there are: 1.5 us for each. Raises `RecordDamaged`."""
    key = schema.KEY.pack(ino)
    record = snapshot.get("inode", key)
    if record is None:
        return  # not committed yet
    total = 0
    for found, element in snapshot.prefix(table, key):
        schema.unseal(table, found, element)  # a record under another key would keep the sum and lose the name
        total += schema.checksum_of(element)
    committed = Inode.unpack(ino, record)
    if total % (1 << 64) != (committed.xattrs if table == "xattr" else committed.proof):
        raise RecordDamaged(table, key, f"inode {ino} proves other {table} records than there are")
