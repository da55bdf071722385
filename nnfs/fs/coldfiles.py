"""The cold blocks of files and trees, found in slices, each with a read txn of its own: for `nnfs warm`."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nnfs.codec.base import FIRST_COLD
from nnfs.errors import RecordDamaged, StoreDamaged, UsageError
from nnfs.fs.trees import Tree, inode_in, tree_of
from nnfs.store import schema
from nnfs.store.blocks import load_block
from nnfs.store.env import Store
from nnfs.store.schema import Block, Dentry, MapNode
from nnfs.store.txn import Snapshot

SLICE_S = 0.02  # seconds: the walk shares the interpreter with the event loop
SLICE_BYTES, PIECES = 8 << 20, 64  # plain bytes, and pieces, of a slice
WAITING = 64  # files that are found before one is read


@dataclass(slots=True)
class Piece:
    """Cold blocks of one file: `path` below the root with that place in the list; "" is the root itself."""

    root: int
    path: bytes
    blocks: list[tuple[int, Block]] = field(default_factory=list)


@dataclass(slots=True)
class _Open:
    """A directory or a file that is being read: what was read last, its levels below the root."""

    root: int
    ino: int
    path: bytes
    level: int = 0
    last: bytes = b""


class ColdFiles:
    """Finds the cold blocks at and below inodes, also those of snapshots. `next` runs in a thread.

    Directories more than `depth` levels below a root are not entered. Damaged records are counted and passed over.
    """

    def __init__(self, store: Store, roots: Sequence[int], depth: int | None = None) -> None:
        self._store, self._depth = store, depth
        self._roots = [(place, ino) for place, ino in enumerate(roots)][::-1]
        self._folders: list[_Open] = []
        self._files: list[_Open] = []
        self._seen: set[int] = set()  # files of several names
        self.damaged = 0

    def next(self) -> list[Piece] | None:
        """Return the next pieces (there may be none yet), None at the end."""
        until, size = time.monotonic() + SLICE_S, 0
        pieces: list[Piece] = []
        with self._store.read() as snapshot:
            while time.monotonic() < until and len(pieces) < PIECES and size < SLICE_BYTES:
                try:
                    if not self._step(snapshot, until, pieces):
                        break
                except StoreDamaged:
                    self.damaged += 1
                size = sum(block.plain for piece in pieces for _, block in piece.blocks)
        return pieces if pieces or self._files or self._folders or self._roots else None

    def _step(self, snapshot: Snapshot, until: float, pieces: list[Piece]) -> bool:
        """Read on in a file, else in a directory, else begin with a root. Return False when there is nothing left."""
        if self._files:
            pieces += self._read_file(snapshot, self._files.pop(0))
        elif self._folders:
            self._read_folder(snapshot, self._folders.pop(), until)
        elif self._roots:
            place, ino = self._roots.pop()
            self._visit(snapshot, _Open(place, ino, b""))
        else:
            return False
        return True

    def _visit(self, snapshot: Snapshot, found: _Open) -> None:
        tree, number = _tree(snapshot, found.ino)
        inode = inode_in(tree, number)
        if inode is None:
            return  # it was removed meanwhile
        if inode.is_directory:
            if self._depth is None or found.level <= self._depth:
                self._folders.append(found)
        elif stat.S_ISREG(inode.mode) and inode.count and found.ino not in self._seen:
            if inode.nlink > 1:
                self._seen.add(found.ino)
            self._files.append(found)

    def _read_folder(self, snapshot: Snapshot, folder: _Open, until: float) -> None:
        """Visit what a directory holds, until one of it is a directory or there are many files."""
        tree, number = _tree(snapshot, folder.ino)
        above = folder.ino - number
        for key, record in _after(tree, "dentry", number, folder.last):
            folder.last = key
            try:
                dentry = Dentry.unpack(key, record)
                before = len(self._folders)
                path = os.path.join(folder.path, dentry.name)
                self._visit(snapshot, _Open(folder.root, above | dentry.ino, path, folder.level + 1))
            except StoreDamaged:
                self.damaged += 1
                continue
            if len(self._folders) > before or len(self._files) >= WAITING or time.monotonic() > until:
                self._folders.insert(before, folder)  # it goes on when what was found is done
                return

    def _read_file(self, snapshot: Snapshot, file: _Open) -> Iterator[Piece]:
        """Yield one map node's cold blocks, if there are any."""
        tree, number = _tree(snapshot, file.ino)
        node = next(_after(tree, "map", number, file.last), None)
        if node is None:
            return
        file.last = node[0]
        self._files.insert(0, file)
        piece = Piece(file.root, file.path)
        for block_number in MapNode.unpack(*node).blocks.values():
            try:
                block = load_block(snapshot, block_number)
            except RecordDamaged:
                self.damaged += 1
                continue
            if block is not None and block.codec >= FIRST_COLD:
                piece.blocks.append((block_number, block))
        if piece.blocks:
            yield piece


def _tree(snapshot: Snapshot, ino: int) -> tuple[Tree, int]:
    """Return the tree of an inode and its number there. Raises `StoreDamaged` when its snapshot is gone."""
    try:
        return tree_of(snapshot, ino)
    except UsageError as error:
        raise StoreDamaged(str(error)) from error


def _after(tree: Tree, table: str, ino: int, last: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, record) of what an inode has in a table behind a key."""
    if isinstance(tree, Snapshot):
        low = last + b"\0" if last else schema.KEY.pack(ino)
        return tree.range(table, low, schema.KEY.pack(ino + 1))
    return (one for one in tree.range(table, ino) if one[0] > last)
