"""The trees of snapshots as requests see them, below the directory `.nnfs/snapshots` that no listing shows.

Inodes of a snapshot have the number of the snapshot in their upper 16 bits. Nothing there changes, so what has been
proved once is kept.
"""

from __future__ import annotations

import errno
import stat
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from nnfs.errors import FsError, RecordDamaged
from nnfs.store import schema
from nnfs.store.env import Store
from nnfs.store.moments import INO_MASK, PAST, Moment, Past
from nnfs.store.schema import Dentry, Inode, MapNode, Superblock
from nnfs.store.txn import Snapshot

HOME, SNAPSHOTS = 2, 3  # inode numbers of `.nnfs` and `.nnfs/snapshots`
HOME_NAME, SNAPSHOTS_NAME = b".nnfs", b"snapshots"
INODES = 20_000  # kept in memory
NAMES = 200_000  # the same; those of one directory at least
PROVED_AT_ONCE = 20_000  # names of a directory that are proved on the loop

Names = dict[bytes, tuple[int, Dentry]]  # cookie and dentry by name, in the order of cookies


def is_past(ino: int) -> bool:
    """Return whether an inode number is that of a snapshot or of the directories above it: nothing there changes."""
    return ino >= PAST or ino in (HOME, SNAPSHOTS)


def is_fleeting(ino: int) -> bool:
    """Return whether the kernel must ask each time: the directories above snapshots, and the root of each of them."""
    return ino in (HOME, SNAPSHOTS) or (ino >= PAST and ino & INO_MASK == schema.ROOT_INO)


class PastLoading:
    """The names of a directory of a snapshot that are being loaded into memory."""

    def __init__(self, past: Past, ino: int) -> None:
        self._past, self._ino = past, ino
        self.found: Names | None = None

    def scan(self) -> Names:
        """Read and prove the names. Raises `RecordDamaged`."""
        directory = self._past.inode(self._ino)
        if directory is None:
            raise RecordDamaged("inode", schema.KEY.pack(self._ino), "missing")
        names: Names = {}
        for key, record in self._past.proved("dentry", directory):
            dentry = Dentry.unpack(key, record)
            names[dentry.name] = schema.KEY2.unpack(key)[1], dentry
        self.found = names
        return names


class Pasts:
    """Reads snapshots through the txn of the last commit. `moments` are the snapshots of that txn."""

    def __init__(self, snapshot: Snapshot, moments: tuple[Moment, ...], superblock: Superblock) -> None:
        self._seed, self._created = superblock.seed, superblock.created
        self.used: set[int] = set()  # numbers of snapshots that somebody may know inodes of
        self._inodes: OrderedDict[int, Inode] = OrderedDict()
        self._names: OrderedDict[int, Names] = OrderedDict()
        self._named = 0
        self._nodes: OrderedDict[int, frozenset[int]] = OrderedDict()  # proved numbers of map nodes
        self._snapshot, self.moments = snapshot, moments
        self.renew(snapshot, moments)

    def renew(self, snapshot: Snapshot, moments: tuple[Moment, ...]) -> None:
        """Go on with the txn of another commit."""
        self._pasts: dict[int, Past] = {}
        gone = {moment.number for moment in self.moments} - {moment.number for moment in moments}
        self._snapshot, self.moments = snapshot, moments
        if gone:
            self._forget(gone)
        self.used |= {moment.number for moment in moments}

    def _forget(self, numbers: set[int]) -> None:
        """Forget what is known of snapshots that are gone."""
        for known in (self._inodes, self._names, self._nodes):
            for ino in [ino for ino in known if ino >> schema.INO_BITS in numbers]:
                del known[ino]
        self._named = sum(map(len, self._names.values()))

    @property
    def shown(self) -> list[Moment]:
        """The snapshots that can be read, oldest first."""
        return [moment for moment in self.moments if not moment.deleting]

    def past(self, ino: int, snapshot: Snapshot | None = None) -> Past:
        """Return the tree that an inode number belongs to. Raises `FsError(ESTALE)` when it is deleted."""
        number = ino >> schema.INO_BITS
        past = self._pasts.get(number) if snapshot is None else None
        if past is None:
            if not any(moment.number == number for moment in self.shown):
                raise FsError(errno.ESTALE)
            past = Past(snapshot or self._snapshot, self.moments, number)
            if snapshot is None:
                self._pasts[number] = past
        return past

    # -- inodes

    def inode(self, ino: int) -> Inode:
        """Return an inode. Raises `FsError(ESTALE)`, `RecordDamaged`."""
        if ino in (HOME, SNAPSHOTS):
            return self._directory(ino)
        past = self.past(ino)  # first: what is kept of a deleted snapshot does not count
        inode = self._inodes.get(ino)
        if inode is None:
            inode = past.inode(ino & INO_MASK)
            if inode is None:
                raise FsError(errno.ESTALE)
            inode.ino = ino
            if stat.S_ISDIR(inode.mode):
                inode.aux = SNAPSHOTS if ino & INO_MASK == schema.ROOT_INO else ino & ~INO_MASK | inode.aux
            self._inodes[ino] = inode
            if len(self._inodes) > INODES:
                self._inodes.popitem(last=False)
        return inode

    def _directory(self, ino: int) -> Inode:
        shown = self.shown
        made = Inode(ino, stat.S_IFDIR | 0o555, 0, 0, self._created)
        made.aux = schema.ROOT_INO if ino == HOME else HOME
        made.count = 1 if ino == HOME else len(shown)
        made.nlink = 2 + made.count
        if ino == SNAPSHOTS and shown:
            made.mtime = made.ctime = shown[-1].created
        return made

    # -- names

    def lookup(self, directory: Inode, name: bytes) -> Inode | None:
        """Return the inode of a name, None when the directory lacks it."""
        if directory.ino == HOME:
            return self.inode(SNAPSHOTS) if name == SNAPSHOTS_NAME else None
        if directory.ino == SNAPSHOTS:
            found = next((moment for moment in self.shown if moment.name == name), None)
            return None if found is None else self.inode(found.number << schema.INO_BITS | schema.ROOT_INO)
        dentry = self._find(directory, name)
        return None if dentry is None else self._target(directory.ino, dentry)

    def _find(self, directory: Inode, name: bytes) -> Dentry | None:
        names = self._names.get(directory.ino)
        if names is None:
            first = self.find_first(directory, name)
            if first is not None:
                return first[2]
            names = self.names(directory)
        found = names.get(name)
        return None if found is None else found[1]

    def find_first(self, directory: Inode, name: bytes) -> tuple[bytes, bytes, Dentry] | None:
        """Return the entry at the first place for its name, which proves itself. None proves nothing."""
        ino = directory.ino & INO_MASK
        key = schema.KEY2.pack(ino, schema.cookie_of(name, self._seed))
        record = self.past(directory.ino).get("dentry", key)
        if record is None:
            return None
        dentry = Dentry.unpack(key, record)
        return (key, record, dentry) if dentry.name == name else None

    def is_long_to_prove(self, directory: Inode) -> bool:
        """Return whether `names` would hold up all other requests: then use `loading` with a thread."""
        return directory.count > PROVED_AT_ONCE and directory.ino not in self._names

    @contextmanager
    def loading(self, store: Store, ino: int) -> Iterator[PastLoading]:
        """Load a directory's names: call `scan` of the result in the body, in any thread."""
        with store.read() as snapshot:
            loading = PastLoading(self.past(ino, snapshot), ino & INO_MASK)
            yield loading
        if loading.found is not None:
            self._keep(ino, loading.found)

    def names(self, directory: Inode) -> Names:
        """Return all names of a directory, proved. Raises `RecordDamaged`."""
        names = self._names.get(directory.ino)
        if names is None:
            loading = PastLoading(self.past(directory.ino), directory.ino & INO_MASK)
            names = loading.scan()
            self._keep(directory.ino, names)
        else:
            self._names.move_to_end(directory.ino)
        return names

    def _keep(self, ino: int, names: Names) -> None:
        """Keep the names of a directory in memory."""
        self._named += len(names) - len(self._names.pop(ino, {}))
        self._names[ino] = names
        while self._named > NAMES and len(self._names) > 1:
            self._named -= len(self._names.popitem(last=False)[1])

    def _target(self, directory: int, dentry: Dentry) -> Inode:
        ino = directory & ~INO_MASK | dentry.ino
        try:
            return self.inode(ino)
        except FsError as error:
            key = schema.KEY.pack(ino)
            raise RecordDamaged("inode", key, f"missing, but named {dentry.name!r}") from error

    def entries(self, directory: Inode, after: int) -> Iterator[tuple[int, bytes, Inode | Dentry]]:
        """Yield (cookie, name, inode) of the entries with cookies above `after`; of a damaged inode its dentry."""
        if directory.ino == HOME:
            if after < 3:
                yield 3, SNAPSHOTS_NAME, self.inode(SNAPSHOTS)
            return
        if directory.ino == SNAPSHOTS:
            for moment in sorted(self.shown, key=lambda moment: moment.number):
                if moment.number + 2 > after:
                    root = self.inode(moment.number << schema.INO_BITS | schema.ROOT_INO)
                    yield moment.number + 2, moment.name, root
            return
        found = list(self.names(directory).values())
        for cookie, dentry in found[bisect_right(found, after, key=lambda entry: entry[0]) :]:
            target: Inode | Dentry
            try:
                target = self._target(directory.ino, dentry)
            except RecordDamaged:
                target = dentry
            yield cookie, dentry.name, target

    # -- attributes and chunks

    def xattr(self, inode: Inode, name: bytes) -> bytes | None:
        """Return the value of an extended attribute, None when the inode provably lacks it."""
        if not inode.xattrs:
            return None
        key = schema.KEY.pack(inode.ino & INO_MASK) + name
        record = self.past(inode.ino).get("xattr", key)
        if record is None:
            self.xattrs(inode)
            return None
        return schema.unpack_xattr(key, record)

    def xattrs(self, inode: Inode) -> list[bytes]:
        """Return the names of an inode's extended attributes. Raises `RecordDamaged`."""
        if not inode.xattrs:
            return []
        return [key[8:] for key, _ in self._proved("xattr", inode)]

    def _proved(self, table: str, inode: Inode) -> Iterator[tuple[bytes, bytes]]:
        past = self.past(inode.ino)
        found = past.inode(inode.ino & INO_MASK)
        if found is None:
            raise RecordDamaged("inode", schema.KEY.pack(inode.ino), "missing")
        yield from past.proved(table, found)

    def block_numbers(self, inode: Inode, first: int, last: int) -> list[int]:
        """Return the block numbers of chunks first..last, 0 for holes. Raises `RecordDamaged`."""
        past, span, numbers = self.past(inode.ino), schema.NODE_SPAN, []
        for node in range(first // span, last // span + 1):
            key = schema.KEY2.pack(inode.ino & INO_MASK, node)
            record = past.get("map", key)
            if record is None and inode.count and node in self._nodes_of(inode):
                raise RecordDamaged("map", key, f"missing, and its file has it in snapshot {past.moment.number}")
            blocks = MapNode.unpack(key, record).blocks if record is not None else {}
            low, high = max(first, node * span), min(last, node * span + span - 1)
            numbers += [blocks.get(chunk - node * span, 0) for chunk in range(low, high + 1)]
        return numbers

    def _nodes_of(self, inode: Inode) -> frozenset[int]:
        nodes = self._nodes.get(inode.ino)
        if nodes is None:
            nodes = frozenset(schema.KEY2.unpack(key)[1] for key, _ in self._proved("map", inode))
            self._nodes[inode.ino] = nodes
            if len(self._nodes) > 64:
                self._nodes.popitem(last=False)
        return nodes
