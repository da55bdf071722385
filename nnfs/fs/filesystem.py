"""The live filesystem state: inode cache, epochs over LMDB, life and death of inodes. Synchronous: see DESIGN.md."""

from __future__ import annotations

import contextlib
import copy
import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import cast

from nnfs.errors import FsError, RecordDamaged, StoreDamaged
from nnfs.fs.apply import Applied
from nnfs.fs.epoch import Epoch
from nnfs.fs.keysets import KeySet, KeySets, load_inode, load_keys, proved_records
from nnfs.fs.loading import Loading
from nnfs.fs.pasts import PastLoading, Pasts, is_past
from nnfs.fs.quotas import Quotas
from nnfs.store import schema, sealing
from nnfs.store.env import Store
from nnfs.store.moments import PAST
from nnfs.store.schema import Dentry, Inode
from nnfs.store.txn import Snapshot

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
        self.on_commit: Callable[[Epoch, Applied], None] = lambda epoch, applied: None
        self._inodes: dict[int, Inode] = {}
        self._names = KeySets()  # cookies that directories have now
        self.nodes = KeySets()  # map nodes that files have at the last commit
        self.pasts = Pasts(self.snapshot, store.moments, store.superblock)
        self._stored_below = self.state.next_ino  # inodes with lower numbers are in the store, if they are at all
        self._orphans: set[int] = set()  # without names, still looked up
        self.quotas = Quotas(self.snapshot)
        if store.writable and not store.read_only:
            for key, _ in self.snapshot.range("orphan", b""):
                self._release(schema.KEY.unpack(key)[0])

    @property
    def keeps(self) -> bool:
        """Whether commits keep what they change, for snapshots."""
        return bool(self.pasts.moments)

    # -- inodes

    def inode(self, ino: int) -> Inode:
        """Return the live inode. Raises `FsError(ESTALE)` when there is none, and `RecordDamaged`.

        An inode that the kernel knows stays until the kernel forgets it.
        """
        inode = self._inodes.get(ino)
        if inode is not None:
            return inode
        if is_past(ino):
            return self.pasts.inode(ino)
        record = self.snapshot.get("inode", schema.KEY.pack(ino))
        if record is None:
            if ino in self.lookups or ino == schema.ROOT_INO:
                raise RecordDamaged("inode", schema.KEY.pack(ino), "missing")
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
        """The number of inodes with names, as of the last request.

        `state.inodes` also counts those without names until a commit deletes them. The time of that depends on open
        files, on when the kernel forgets, and on the commit, while a user who has removed a file expects to see one
        less at once.
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
            self.quotas.removed(inode)
            self.active.orphans.add(inode.ino)
            self._orphans.add(inode.ino)
            self._release_if_dead(inode.ino)

    def _release_if_dead(self, ino: int) -> None:
        if ino not in self._orphans or ino in self.lookups:
            return
        self._orphans.remove(ino)
        self._release(ino)
        self.on_release(ino)

    def _release(self, ino: int) -> None:
        """Have the next commit delete an inode. It counts for no quota from now on."""
        self.active.release.add(ino)
        if self.quotas.active:
            with contextlib.suppress(FsError, StoreDamaged):  # gone, or fsck sees to it
                inode = self.inode(ino)
                if inode.quota:
                    self.quotas.move(inode, 0)
                    self.touch(inode)

    def check_size(self, inode: Inode, size: int) -> None:
        """Raise `FsError` if the limits of quotas forbid that a file gets a size."""
        self.quotas.check(inode.quota, size - inode.size)

    # -- dentries

    def dentry_record(self, key: bytes) -> bytes | None:
        """Return the sealed dentry at a key, as of now; None when it is not found, which proves nothing."""
        if key in self.active.dentries:
            return cast("bytes | None", self.active.dentries[key])
        if self.frozen is not None and key in self.frozen.dentries:
            return cast("bytes | None", self.frozen.dentries[key])
        return self.snapshot.get("dentry", key)

    def _dirty_dentry(self, key: bytes) -> tuple[bool, bytes | None]:
        """Return whether an epoch has changed the record at a key, and the new record."""
        for epoch in (self.active, self.frozen):
            if epoch is not None and key in epoch.dentries:
                return True, epoch.dentries[key]
        return False, None

    def names_of(self, directory: Inode) -> KeySet:
        """Return the cookies that a directory has now; they are proved when they are loaded. Raises `RecordDamaged`."""
        names = self._names.get(directory.ino)
        if names is None:
            with self.loading(directory.ino) as loading:
                loading.scan()
            names = self._names.get(directory.ino)
            assert names is not None
        return names

    def is_long_to_prove(self, directory: Inode) -> bool:
        """Return whether `names_of` would hold up all other requests: then use `loading` with a thread."""
        if directory.ino >= PAST:
            return self.pasts.is_long_to_prove(directory)
        return directory.count > PROVED_AT_ONCE and self._names.get(directory.ino) is None

    @contextmanager
    def loading(self, ino: int) -> Iterator[Loading | PastLoading]:
        """Load a directory's names: call `scan` of the result in the body, in any thread."""
        if ino >= PAST:
            with self.pasts.loading(self.store, ino) as past:
                yield past
            return
        low, high = schema.KEY2.pack(ino, 0), schema.KEY2.pack(ino, MAX_COOKIE)
        changes = [
            (schema.KEY2.unpack(key)[1], epoch.dentries[key] is not None)
            for epoch in (self.frozen, self.active)
            if epoch is not None
            for key in epoch.dentries.irange(low, high)
        ]
        loading = Loading(self.store.read() if ino < self._stored_below else None, ino)
        try:
            with self._names.loading(ino, changes):
                yield loading
        finally:
            loading.close()
        if loading.found is not None:
            loading.found.change(changes)
            self._names.put(ino, loading.found)

    def dentries(self, directory: Inode, after: int, limit: int = 256) -> Iterator[tuple[int, bytes, bytes]]:
        """Yield (cookie, key, sealed record) of a directory's entries with cookies above `after`, in order.

        It reads ahead in lists of `limit`, so the directory may change while the generator rests. Raises
        `RecordDamaged` where the store lacks one.
        """
        while cookies := self.names_of(directory).above(after, limit):
            keys = [schema.KEY2.pack(directory.ino, cookie) for cookie in cookies]
            base = dict(self.snapshot.range("dentry", keys[0], keys[-1] + b"\0"))
            for cookie, key in zip(cookies, keys, strict=True):
                is_dirty, record = self._dirty_dentry(key)
                record = record if is_dirty else base.get(key)
                if record is not None:
                    yield cookie, key, record
                elif not is_dirty:  # else removed while this generator rested
                    raise RecordDamaged("dentry", key, "missing, and its directory has it")
            after = cookies[-1]

    def children(self, directory: Inode, after: int, limit: int) -> list[tuple[int, int]]:
        """Return (cookie, inode number) of a directory's entries with cookies above `after`, at most `limit`."""
        if is_past(directory.ino):
            entries = islice(self.pasts.entries(directory, after), limit)
            return [(cookie, entry.ino) for cookie, _, entry in entries]
        records = islice(self.dentries(directory, after, limit), limit)
        return [(cookie, Dentry.unpack(key, record).ino) for cookie, key, record in records]

    def find(self, parent: Inode, name: bytes) -> tuple[bytes, bytes, Dentry] | None:
        """Return (key, sealed record, dentry) of a name, or None when the directory provably lacks it."""
        cookie = schema.cookie_of(name, self.store.superblock.seed)
        names = self._names.get(parent.ino)
        if names is None or cookie in names:
            found = self._at(schema.KEY2.pack(parent.ino, cookie), name)
            if found is not None:
                return found
            names = self.names_of(parent)
        elif not parent.flags & Inode.FLAG_COLLISIONS:
            return None
        for place in names.between(cookie, cookie | 0xFFFF):
            key = schema.KEY2.pack(parent.ino, place)
            if self.dentry_record(key) is None:
                raise RecordDamaged("dentry", key, "missing, and its directory has it")
            found = self._at(key, name)
            if found is not None:
                return found
        return None

    def find_first(self, parent: Inode, name: bytes) -> tuple[bytes, bytes, Dentry] | None:
        """Return the entry if it is at the first place for its name, which proves itself. None proves nothing."""
        if parent.ino >= PAST:
            return self.pasts.find_first(parent, name)
        return self._at(schema.KEY2.pack(parent.ino, schema.cookie_of(name, self.store.superblock.seed)), name)

    def _at(self, key: bytes, name: bytes) -> tuple[bytes, bytes, Dentry] | None:
        record = self.dentry_record(key)
        if record is None:
            return None
        dentry = Dentry.unpack(key, record)
        return (key, record, dentry) if dentry.name == name else None

    def add_dentry(self, parent: Inode, name: bytes, ino: int, kind: int) -> None:
        """Enter a name that `find` did not find."""
        names = self.names_of(parent)
        cookie = schema.cookie_of(name, self.store.superblock.seed)
        key = schema.KEY2.pack(parent.ino, cookie)
        while cookie in names:
            cookie += 1
            if cookie & 0xFFFF == 0:
                raise FsError(errno.ENOSPC)  # 65,536 names of one hash
            key = schema.KEY2.pack(parent.ino, cookie)
            parent.flags |= Inode.FLAG_COLLISIONS
        record = Dentry(ino, kind, name, self.active.commit).pack(key)
        self.active.dentries[key] = record
        self._names.note(parent.ino, cookie, present=True)
        self._count_dentry(parent, 1, sealing.checksum_of(record))

    def remove_dentry(self, parent: Inode, key: bytes, record: bytes) -> None:
        """Remove an entry that `find` returned."""
        self.active.dentries[key] = None
        self._names.note(parent.ino, schema.KEY2.unpack(key)[1], present=False)
        self._count_dentry(parent, -1, -sealing.checksum_of(record))

    def _count_dentry(self, parent: Inode, count: int, checksum: int) -> None:
        parent.count += count
        parent.proof = (parent.proof + checksum) % (1 << 64)
        parent.mtime = parent.ctime = time.time_ns()
        self.touch(parent)

    def proved_records(self, ino: int, table: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, record) of an inode's records at the last commit, as `keysets.proved_records` does."""
        if ino < self._stored_below:
            yield from proved_records(self.snapshot, load_inode(self.snapshot, ino), table)

    # -- chunk map

    def block_numbers(self, inode: Inode, first: int, last: int) -> list[int]:
        """Return the block numbers of committed chunks first..last, 0 for holes. Raises `RecordDamaged`."""
        if inode.ino >= PAST:
            return self.pasts.block_numbers(inode, first, last)
        numbers: list[int] = []
        span = schema.NODE_SPAN
        for node in range(first // span, last // span + 1):
            key = schema.KEY2.pack(inode.ino, node)
            record = self.snapshot.get("map", key)
            if record is None and inode.count and node in self._nodes_of(inode.ino):
                raise RecordDamaged("map", key, "missing, and its file has it")
            blocks = schema.MapNode.unpack(key, record).blocks if record is not None else {}
            low, high = max(first, node * span), min(last, node * span + span - 1)
            numbers += [blocks.get(chunk - node * span, 0) for chunk in range(low, high + 1)]
        return numbers

    def _nodes_of(self, ino: int) -> KeySet:
        nodes = self.nodes.get(ino)
        if nodes is None:
            nodes = load_keys(self.snapshot, load_inode(self.snapshot, ino), "map")
            self.nodes.put(ino, nodes)
        return nodes

    # -- commit

    def freeze(self) -> Epoch:
        """Freeze the active epoch and return it. A frozen epoch whose commit failed takes in the active one instead."""
        epoch = self.active
        epoch.state, epoch.quotas = copy.copy(self.state), self.quotas.take(epoch.commit)
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
        """Drop the frozen epoch, whose commit is durable, and begin a new read txn."""
        new = self.store.read()  # first, since it may fail
        frozen, self.frozen = self.frozen, None
        assert frozen is not None
        old, self.snapshot = self.snapshot, new
        old.close()
        self.pasts.renew(new, self.pasts.moments if applied.moments is None else applied.moments)
        self.state.commit = frozen.commit
        self.state.next_number, self.state.logical = applied.state.next_number, applied.state.logical
        self.state.inodes += applied.inodes
        self._stored_below = frozen.state.next_ino
        for ino, (count, proof, stored, flags) in applied.maps.items():
            for inode in (self._inodes.get(ino), self.active.inodes.get(ino)):
                if inode is not None:
                    inode.count, inode.proof, inode.stored = count, proof, stored
                    inode.flags = inode.flags & Inode.QUOTA_BITS | flags & ~Inode.QUOTA_BITS
        for ino, nodes in applied.loaded.items():
            self.nodes.put(ino, nodes)
        for ino, changes in applied.nodes.items():
            for node, present in changes.items():
                self.nodes.note(ino, node, present)
        for ino in frozen.release - applied.unfinished:
            self._inodes.pop(ino, None)
            self._names.drop(ino)
            self.nodes.drop(ino)
            self.active.inodes.pop(ino, None)
            self.active.xattrs.pop(ino, None)
        self.active.release |= applied.unfinished
        self.on_commit(frozen, applied)

    @property
    def dirty(self) -> bool:
        """Whether the active epoch holds changes, or the frozen one waits for another try."""
        return not self.active.empty or self.frozen is not None

    def close(self) -> None:
        self.snapshot.close()
