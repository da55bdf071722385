"""Finding what recompression is to look at: a walk down the tree in slices, each with a read txn of its own."""

from __future__ import annotations

import enum
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from nnfs.errors import RecordDamaged, StoreDamaged
from nnfs.fs.policy import Policy, Rules, refine
from nnfs.store import schema
from nnfs.store.blocks import load_block
from nnfs.store.env import Snapshot, Store
from nnfs.store.schema import Block, Dentry, Inode, MapNode

SLICE_S = 0.02  # seconds of one slice: the walk shares the interpreter with the event loop


@dataclass(frozen=True, slots=True)
class Candidate:
    """One chunk whose block may get other stored bytes."""

    ino: int
    chunk: int
    number: int
    block: Block


@dataclass(slots=True)
class Piece:
    """Some chunks of one file; `last`: the file's last ones, with its proof, ctime and stored bytes as they were then.

    `mark`: whether the file is settled with it. False: it is not its turn yet, and an old mark does not count any more.
    """

    ino: int
    rules: Rules
    candidates: list[Candidate] = field(default_factory=list)
    last: bool = False
    proof: int = 0
    ctime: int = 0
    stored: int = 0
    mark: bool = True


class Look(enum.Enum):
    """What is to be done with a file."""

    NO = enum.auto()
    YES = enum.auto()
    LATER = enum.auto()  # not now, but its mark does not count any more


@dataclass(frozen=True, slots=True)
class Ages:
    """How long a file must not have been written and read, in ns, to be cold."""

    write: int
    read: int

    def cold(self, inode: Inode, now: int) -> bool:
        """Tell whether a file is cold. ctime is the last write: nobody can set it. A file is born with an atime.

        An atime can be set, also one that is still to come: that tells nothing about reading.
        """
        read = inode.atime if inode.btime < inode.atime <= now else 0
        return now - inode.ctime >= self.write and now - read >= self.read


Wanted = Callable[[Inode, Rules, int], Look]  # inode, rules, now
Fits = Callable[[Block, Rules], bool]


class Walk:
    """A walk over everything at or below an inode. `next` is for a thread, one call after the other."""

    def __init__(self, store: Store, root: int, rules: Rules, wanted: Wanted, fits: Fits) -> None:
        self._store, self._wanted, self._fits = store, wanted, fits
        self._stack: list[tuple[int, Rules, bytes | None]] = []  # directories, and the last key read in each
        self._root: tuple[int, Rules] | None = (root, rules)
        self._files: list[tuple[int, Rules, int, int]] = []  # to be read: inode, rules, first map node, stored so far
        self._unmarked: list[Piece] = []
        self._seen: set[int] = set()  # files of several names

    def next(self) -> list[Piece] | None:
        """Return the next pieces, perhaps none yet; None at the end. Damaged records are passed over."""
        until = time.monotonic() + SLICE_S
        pieces: list[Piece] = []
        with self._store.read() as snapshot:
            while time.monotonic() < until and len(pieces) < 64:
                if self._files:
                    pieces += self._read_file(snapshot)
                elif self._root is not None:
                    (ino, rules), self._root = self._root, None
                    self._visit(snapshot, ino, rules, inherited=True)
                elif self._stack:
                    self._read_directory(snapshot, until)
                else:
                    break
                pieces, self._unmarked = pieces + self._unmarked, []
            is_over = not (self._files or self._stack or self._root)
        return None if is_over and not pieces else pieces

    def _read_directory(self, snapshot: Snapshot, until: float) -> None:
        ino, rules, last = self._stack.pop()
        low = schema.KEY.pack(ino) if last is None else last + b"\0"
        try:
            for key, record in snapshot.range("dentry", low, schema.KEY.pack(ino + 1)):
                last = key
                try:
                    dentry = Dentry.unpack(key, record)
                except RecordDamaged:
                    continue
                if dentry.kind in (stat.S_IFREG >> 12, stat.S_IFDIR >> 12):
                    before = len(self._stack)
                    self._visit(snapshot, dentry.ino, rules)
                    if len(self._stack) > before or len(self._files) >= 64 or time.monotonic() > until:
                        # Depth first: what lies together is coded together. This directory goes on below the new one.
                        self._stack.insert(before, (ino, rules, last))
                        return
        except StoreDamaged:
            return

    def _visit(self, snapshot: Snapshot, ino: int, rules: Rules, *, inherited: bool = False) -> None:
        try:
            record = snapshot.get("inode", schema.KEY.pack(ino))
            inode = Inode.unpack(ino, record) if record is not None else None
        except StoreDamaged:
            return
        if inode is None:
            return
        if not inherited:  # the root's own attributes are in its rules
            rules = refine(snapshot, inode, rules)
        if inode.is_directory:
            self._stack.append((ino, rules, None))
        elif stat.S_ISREG(inode.mode) and inode.count and rules.policy is not Policy.NEVER:
            if inode.nlink > 1:
                if ino in self._seen:
                    return
                self._seen.add(ino)
            look = self._wanted(inode, rules, time.time_ns())
            if look is Look.YES:
                self._files.insert(0, (ino, rules, 0, 0))
            elif look is Look.LATER:
                self._unmarked.append(
                    Piece(ino, rules, [], True, inode.proof, inode.ctime, inode.stored, mark=False)
                )

    def _read_file(self, snapshot: Snapshot) -> Iterator[Piece]:
        """Yield one map node's candidates, and the file's end."""
        ino, rules, first, stored = self._files.pop()
        piece = Piece(ino, rules)
        try:
            record = snapshot.get("inode", schema.KEY.pack(ino))
            if record is None:
                return
            inode = Inode.unpack(ino, record)
            piece.proof, piece.ctime = inode.proof, inode.ctime
            nodes = snapshot.range("map", schema.KEY2.pack(ino, first), schema.KEY.pack(ino + 1))
            key, node_record = next(nodes, (b"", b""))
            if not key:
                piece.last, piece.stored = True, stored
                yield piece
                return
            number = schema.KEY2.unpack(key)[1]
            for slot, block_number in sorted(MapNode.unpack(key, node_record).blocks.items()):
                block = load_block(snapshot, block_number)
                if block is None:
                    continue
                stored += block.stored
                if self._fits(block, rules):
                    chunk = number * schema.NODE_SPAN + slot
                    piece.candidates.append(Candidate(ino, chunk, block_number, block))
        except StoreDamaged:
            return
        self._files.append((ino, rules, number + 1, stored))
        if piece.candidates:
            yield piece
