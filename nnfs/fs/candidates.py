"""Finding the candidates of recompression: a walk down the tree in slices, each with a read txn of its own."""

from __future__ import annotations

import contextlib
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from nnfs.constants import Policy
from nnfs.errors import RecordDamaged, StoreDamaged
from nnfs.fs.policy import Rules, refine
from nnfs.store import schema
from nnfs.store.blocks import load_block
from nnfs.store.env import Store
from nnfs.store.moments import PAST, at
from nnfs.store.schema import Block, Dentry, Inode, MapNode
from nnfs.store.txn import Snapshot

SLICE_S = 0.02  # seconds of one slice: the walk shares the interpreter with the event loop
SLICE_BYTES = 8 << 20  # plain bytes of a slice's candidates: while they wait for their turn, they may change


@dataclass(frozen=True, slots=True)
class Candidate:
    """One chunk whose block may get other stored bytes."""

    ino: int
    chunk: int
    number: int
    block: Block


@dataclass(slots=True)
class Piece:
    """Some chunks of one file. With `last` they are the file's last ones, and `stored` has the bytes of all.

    `proof` and `ctime` are those that the file had when its first chunks were found: later changes have not
    been looked at.
    `rung` is the one up to which the file has been looked at then; 0: its turn has not come, and old marks are void.
    """

    ino: int
    rules: Rules
    candidates: list[Candidate] = field(default_factory=list)
    last: bool = False
    proof: int = 0
    ctime: int = 0
    stored: int = 0
    rung: int = 0


class Look(NamedTuple):
    """The treatment of a file: looked at, or only stripped of its marks; and the rung up to which it is looked at."""

    now: bool
    rung: int = 0


def never(_ino: int) -> int:
    """Return 0: no reading is known."""
    return 0


@dataclass(frozen=True, slots=True)
class Ages:
    """The ages in ns, since the last write and the last reading, from which on a file is cold.

    `last_read(ino)` is the time at which the mount knows a file to have been in use, beside its atime (0: unknown); for
    a file that is open it is now. With `read` 0 reading does not matter.
    """

    write: int
    read: int
    last_read: Callable[[int], int] = never

    def cold(self, inode: Inode, now: int) -> bool:
        """Return whether a file is cold. ctime is the last write, and nobody can set it. A new file has an atime, too.

        A ctime in the future was written under a wrong clock, and an atime can be set: times in the future do not
        count.
        """
        if 0 <= now - inode.ctime < self.write:
            return False
        if not self.read:
            return True
        born = inode.btime if inode.btime <= now else 0
        read = max(inode.atime if born < inode.atime <= now else 0, self.last_read(inode.ino))
        return now - read >= self.read


@dataclass(slots=True)
class _Reading:
    """A file whose map nodes are being read, those of several slices when there are many."""

    ino: int
    rules: Rules
    rung: int
    proof: int
    ctime: int
    node: int = 0  # the next one
    stored: int = 0  # bytes so far


Wanted = Callable[[Inode, Rules, int], Look | None]  # inode, rules, now; None: leave it alone
Fits = Callable[[Block, Rules], bool]


class Walk:
    """A walk over everything at or below an inode. `next` runs in a thread, one call after the other."""

    def __init__(
        self, store: Store, root: int, rules: Rules, wanted: Wanted, fits: Fits, *, kept: bool = False
    ) -> None:  # fmt: skip
        self._store, self._wanted, self._fits = store, wanted, fits
        self._stack: list[tuple[int, Rules, bytes | None]] = []  # directories, and the last key read in each
        self._root: tuple[int, Rules] | None = (root, rules)
        self._files: list[_Reading] = []
        self._unmarked: list[Piece] = []
        self._kept = (schema.KEY.pack(PAST), rules) if kept else None  # the next key of the snapshots' map nodes
        self._seen: set[int] = set()  # files of several names

    def next(self) -> list[Piece] | None:
        """Return the next pieces (there may be none yet), None at the end. Damaged records are passed over."""
        until = time.monotonic() + SLICE_S
        pieces: list[Piece] = []
        size = 0
        with self._store.read() as snapshot:
            while time.monotonic() < until and len(pieces) < 64 and size < SLICE_BYTES:
                if self._files:
                    found = list(self._read_file(snapshot))
                    pieces += found
                    size += sum(candidate.block.plain for piece in found for candidate in piece.candidates)
                elif self._root is not None:
                    (ino, rules), self._root = self._root, None
                    self._visit(snapshot, ino, rules, inherited=True)
                elif self._stack:
                    self._read_directory(snapshot, until)
                elif self._kept is not None:
                    found = list(self._read_kept(snapshot, *self._kept, until))
                    pieces += found
                    size += sum(candidate.block.plain for piece in found for candidate in piece.candidates)
                else:
                    break
                pieces, self._unmarked = pieces + self._unmarked, []
            is_over = not (self._files or self._stack or self._root or self._kept)
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
                        # Depth first: neighbouring files are coded together. This directory goes on below the new one.
                        self._stack.insert(before, (ino, rules, last))
                        return
        except StoreDamaged:
            return

    def _read_kept(self, snapshot: Snapshot, low: bytes, rules: Rules, until: float) -> Iterator[Piece]:
        """Yield candidates of map nodes kept for snapshots, but for blocks that the live file has there, too."""
        try:
            for key, record in snapshot.range("map", low):
                piece = Piece(schema.KEY2.unpack(key)[0], rules)
                with contextlib.suppress(RecordDamaged):
                    self._add_kept(snapshot, key, record, piece)
                self._kept = key + b"\0", rules
                if piece.candidates:
                    yield piece
                if piece.candidates or time.monotonic() > until:
                    return
        except StoreDamaged:
            pass
        self._kept = None

    def _add_kept(self, snapshot: Snapshot, key: bytes, record: bytes, piece: Piece) -> None:
        live = snapshot.get("map", at(0, key))
        now = {} if live is None else MapNode.unpack(at(0, key), live).blocks
        first = schema.KEY2.unpack(key)[1] * schema.NODE_SPAN
        for slot, number in sorted(MapNode.unpack(key, record).blocks.items()):
            block = load_block(snapshot, number) if now.get(slot) != number else None
            if block is not None and self._fits(block, piece.rules):
                piece.candidates.append(Candidate(piece.ino, first + slot, number, block))

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
            if look is not None and look.now:
                self._files.insert(0, _Reading(ino, rules, look.rung, inode.proof, inode.ctime))
            elif look is not None:
                self._unmarked.append(Piece(ino, rules, [], True, inode.proof, inode.ctime, inode.stored, look.rung))

    def _read_file(self, snapshot: Snapshot) -> Iterator[Piece]:
        """Yield one map node's candidates, and the file's end."""
        file = self._files.pop()
        ino = file.ino
        piece = Piece(ino, file.rules, proof=file.proof, ctime=file.ctime, rung=file.rung)
        try:
            nodes = snapshot.range("map", schema.KEY2.pack(ino, file.node), schema.KEY.pack(ino + 1))
            key, node_record = next(nodes, (b"", b""))
            if not key:
                piece.last, piece.stored = True, file.stored
                yield piece
                return
            number = schema.KEY2.unpack(key)[1]
            for slot, block_number in sorted(MapNode.unpack(key, node_record).blocks.items()):
                block = load_block(snapshot, block_number)
                if block is None:
                    continue
                file.stored += block.stored
                if self._fits(block, file.rules):
                    chunk = number * schema.NODE_SPAN + slot
                    piece.candidates.append(Candidate(ino, chunk, block_number, block))
        except StoreDamaged:
            return
        file.node = number + 1
        self._files.append(file)
        if piece.candidates:
            yield piece
