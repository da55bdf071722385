"""A filesystem on a store beside a plain model of it, for the tests of snapshots: each step is done on both."""

from __future__ import annotations

import contextlib
import copy
import random
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from nnfs.errors import FsError, OutOfSpace
from nnfs.fs import snapshots
from nnfs.fs.apply import Amendment, Applied, Work, apply
from nnfs.fs.attributes import Attributes
from nnfs.fs.filesystem import Filesystem
from nnfs.fs.namespace import RENAME_EXCHANGE, Namespace
from nnfs.fs.pasts import SNAPSHOTS
from nnfs.fs.xattrs import Xattrs
from nnfs.store import schema
from nnfs.store.blocks import ChunkChanges, load_block
from nnfs.store.env import Store
from nnfs.store.moments import PAST
from nnfs.store.schema import Dentry, Inode, MapNode
from tests.fs.kit import encoded

T = TypeVar("T")
View = dict[str, Any]
CHUNKS = (0, 1, 62, 63, 64, 65, 130, 260, 400)
PLACES = [f"{folder}{name}" for folder in ("", "d/", "d/e/", "g/") for name in ("a", "b", "c")]
FOLDERS = ["d", "d/e", "g", "h"]
CONTENTS = [b"content %d " % number * 9 for number in range(12)]
NAMES = {encoded(plain).hash: plain for plain in CONTENTS}


@dataclass
class File:
    """A file or directory of the model."""

    mode: int
    chunks: dict[int, bytes] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    size: int = 0
    names: dict[str, File] | None = None  # of a directory


class World:
    """A store, the filesystem on it, and the model: `tree` now, `saved` at the last commit, `past` by snapshot."""

    def __init__(self, path: Path, seed: int) -> None:
        self.store = Store.create(path, schema.MIN_CHUNK_SIZE)
        self.path, self.random, self.room, self.taken = path, random.Random(seed), 0, 0
        self.tree = File(0o40755, names={})
        self.saved: File = copy.deepcopy(self.tree)
        self.past: dict[bytes, File] = {}
        self.changes: dict[int, ChunkChanges] = {}
        self.held: set[int] = set()  # inodes that are open
        self._open()

    def _open(self) -> None:
        self.fs = Filesystem(self.store)
        self.names = Namespace(self.fs, Xattrs(self.fs))
        self.attributes = Attributes(self.fs, self.names.xattrs)
        self.changes, self.held = {}, set()

    def close(self) -> None:
        self.fs.close()
        self.store.close()

    def commit(self, *amendments: Amendment) -> Applied:
        changes, self.changes = self.changes, {}
        applied, self.room = apply(self.store, self.fs.freeze(), changes, 1, self.room, amendments, budget=3)
        assert not applied.failed
        self.fs.committed(applied)
        self.saved = copy.deepcopy(self.tree)
        return applied

    def amend(self, change: Callable[[Work], T]) -> T:
        results: list[T] = []
        self.commit(lambda work: results.append(change(work)))
        return results[0]

    # -- names

    def at(self, path: str) -> File | None:
        """The file of the model at a path."""
        found = self.tree
        for name in path.split("/") if path else []:
            if found.names is None or name not in found.names:
                return None
            found = found.names[name]
        return found

    def inode(self, path: str) -> Inode:
        found = self.fs.inode(schema.ROOT_INO)
        for name in path.split("/") if path else []:
            inode = self.names.lookup(found.ino, name.encode())
            assert inode is not None, path
            found = inode
        return found

    def split(self, path: str) -> tuple[int, bytes, dict[str, File]] | None:
        """Directory, name and the directory's names in the model; None when there is no such directory."""
        folder, _, name = path.rpartition("/")
        parent = self.at(folder)
        if parent is None or parent.names is None:
            return None
        return self.inode(folder).ino, name.encode(), parent.names

    # -- steps

    def step(self) -> None:
        """Do one step that is drawn."""
        kinds = [
            (6, self.create), (3, self.mkdir), (8, self.write), (3, self.truncate), (4, self.rename), (3, self.unlink),
            (1, self.rmdir), (2, self.link), (3, self.set_xattr), (1, self.remove_xattr), (2, self.chmod),
            (2, self.read), (6, self.save), (4, self.snapshot), (2, self.delete), (4, self.reap), (1, self.reopen),
            (1, self.crash), (1, self.let_go), (2, self.fail),
        ]  # fmt: skip
        self.random.choices([kind for _, kind in kinds], [weight for weight, _ in kinds])[0]()

    def create(self) -> None:
        place = self.split(self.random.choice(PLACES))
        if place is not None and place[1].decode() not in place[2]:
            mode = self.random.choice([0o100644, 0o100600])
            self.names.create(place[0], place[1], mode, 0, 0, 0)
            place[2][place[1].decode()] = File(mode)

    def mkdir(self) -> None:
        place = self.split(self.random.choice(FOLDERS))
        if place is not None and place[1].decode() not in place[2]:
            self.names.create(place[0], place[1], 0o40700, 0, 0, 0)
            place[2][place[1].decode()] = File(0o40700, names={})

    def _any(self) -> tuple[str, File] | None:
        path = self.random.choice([*PLACES, *PLACES, *FOLDERS, "x"])
        found = self.at(path)
        return None if found is None else (path, found)

    def _file(self) -> tuple[Inode, File] | None:
        path = self.random.choice(PLACES)
        found = self.at(path)
        return (self.inode(path), found) if found is not None and found.names is None else None

    def write(self) -> None:
        found = self._file()
        if found is None:
            return
        inode, file = found
        pending = self.changes.setdefault(inode.ino, ChunkChanges())
        for number in self.random.sample(CHUNKS, self.random.choice([1, 1, 2, 5, len(CHUNKS)])):
            plain = self.random.choice([*CONTENTS, None])
            pending.chunks[number] = None if plain is None else encoded(plain)
            file.chunks.pop(number, None)
            if plain is not None:
                file.chunks[number] = plain
            file.size = max(file.size, (number + 1) * self.store.superblock.chunk_size)
        self.attributes.resized(inode, file.size)
        inode.mtime += 1

    def truncate(self) -> None:
        found = self._file()
        if found is None:
            return
        inode, file = found
        cut = self.random.choice([0, 1, 63, 64, 100, 300])
        pending = self.changes.setdefault(inode.ino, ChunkChanges())
        if pending.cut is None or pending.cut > cut:
            pending.cut = cut
        pending.spare = pending.spare or self.fs.new_ino()
        pending.chunks = {number: content for number, content in pending.chunks.items() if number < cut}
        file.chunks = {number: plain for number, plain in file.chunks.items() if number < cut}
        file.size = min(file.size, cut * self.store.superblock.chunk_size)
        self.attributes.resized(inode, file.size)

    def _tangled(self, moved: File, path: str) -> bool:
        """Whether a directory would be moved into itself."""
        return any(self.at(path[:at]) is moved for at, letter in enumerate(path) if letter == "/")

    def rename(self) -> None:
        one, two = (self.random.choice([*PLACES, *FOLDERS]) for _ in range(2))
        old, new, moved = self.split(one), self.split(two), self.at(one)
        if old is None or new is None or moved is None or self._tangled(moved, two):
            return
        victim, flags = self.at(two), self.random.choice([0, 0, RENAME_EXCHANGE])
        try:
            self.names.rename(old[0], old[1], new[0], new[1], flags)
        except FsError:
            return
        if victim is moved:
            return
        del old[2][old[1].decode()]
        new[2][new[1].decode()] = moved
        if flags and victim is not None:
            old[2][old[1].decode()] = victim

    def unlink(self) -> None:
        path = self.random.choice(PLACES)
        place, found = self.split(path), self.at(path)
        if place is None or found is None or found.names is not None:
            return
        inode = self.inode(path)
        if self.random.random() < 0.4 and inode.ino not in self.held:
            self.fs.remember(inode.ino)  # somebody has it open
            self.held.add(inode.ino)
        self.names.unlink(place[0], place[1])
        if inode.nlink == 0 and inode.ino not in self.held:
            self.changes.pop(inode.ino, None)
        del place[2][place[1].decode()]

    def let_go(self) -> None:
        for ino in self.held:
            self.fs.forget(ino, 1)
            if ino in self.fs.active.release:
                self.changes.pop(ino, None)
        self.held = set()

    def rmdir(self) -> None:
        path = self.random.choice(FOLDERS)
        place, found = self.split(path), self.at(path)
        if place is not None and found is not None and found.names == {}:
            self.names.rmdir(place[0], place[1])
            del place[2][place[1].decode()]

    def link(self) -> None:
        one, two = self.random.sample(PLACES, 2)
        found, place = self.at(one), self.split(two)
        if found is None or found.names is not None or place is None or place[1].decode() in place[2]:
            return
        self.names.link(self.inode(one).ino, place[0], place[1])
        place[2][place[1].decode()] = found

    def set_xattr(self) -> None:
        found = self._any()
        if found is not None:
            name, value = self.random.choice([b"user.a", b"user.b"]), self.random.randbytes(3)
            self.names.xattrs.set(self.inode(found[0]), name, value)
            found[1].xattrs[name] = value

    def remove_xattr(self) -> None:
        found = self._any()
        if found is not None and found[1].xattrs:
            name = next(iter(found[1].xattrs))
            self.names.xattrs.remove(self.inode(found[0]), name)
            del found[1].xattrs[name]

    def chmod(self) -> None:
        found = self._any()
        if found is not None:
            mode = self.random.choice([0o600, 0o644, 0o711])
            inode = self.inode(found[0])
            self.names.xattrs.chmod(inode, mode)
            self.fs.touch(inode)
            found[1].mode = stat.S_IFMT(found[1].mode) | mode

    def read(self) -> None:
        found = self._any()
        if found is not None:
            inode = self.inode(found[0])
            inode.atime += 1
            self.fs.touch(inode)

    def save(self) -> None:
        self.commit()

    def snapshot(self) -> None:
        if len(self.past) < 5:
            self.taken += 1
            name = b"snap %d" % self.taken
            self.amend(lambda work: snapshots.take(work, name, self.taken))
            self.past[name] = copy.deepcopy(self.tree)

    def delete(self) -> None:
        if self.past:
            names = self.random.sample(sorted(self.past), self.random.choice([1, 1, min(2, len(self.past))]))
            self.amend(lambda work: snapshots.begin_delete(work, names))
            for name in names:
                del self.past[name]

    def reap(self) -> None:
        self.amend(lambda work: snapshots.reap(work, self.random.choice([16, 40, 4000])))

    def fail(self) -> None:
        """Try to commit, in vain: what was to be committed is kept, and tried again with what follows."""

        def full(_work: Work) -> None:
            raise OutOfSpace("the test says so")

        with contextlib.suppress(OutOfSpace):
            apply(self.store, self.fs.freeze(), self.changes, 1, self.room, [full], budget=3)

    def reopen(self) -> None:
        self.commit()
        self.crash()

    def crash(self) -> None:
        """End without a commit: what was not committed is gone."""
        self.fs.close()
        self.store.close()
        self.store = Store.open(self.path)
        self.tree = copy.deepcopy(self.saved)
        self._open()

    # -- what is seen

    def check(self) -> None:
        """Compare the live tree and all snapshots with the model, and the references of blocks with the maps."""
        if self.fs.active.empty and not self.changes:
            assert self.seen(self.fs.inode(schema.ROOT_INO)) == model(self.tree)
        home = self.fs.inode(SNAPSHOTS)
        assert {name for _, name, _ in self.fs.pasts.entries(home, 0)} == self.past.keys()
        for name, tree in self.past.items():
            root = self.fs.pasts.lookup(home, name)
            assert root is not None
            assert root.aux == SNAPSHOTS
            assert self.seen(root) == model(tree), name
        self.check_references()

    def check_references(self) -> None:
        found: Counter[int] = Counter()
        with self.store.read() as snapshot:
            for key, record in snapshot.range("map", b""):
                found.update(MapNode.unpack(key, record).blocks.values())
            for key, _ in snapshot.range("block", b""):
                number = schema.KEY.unpack(key)[0]
                block = load_block(snapshot, number)
                assert block is not None
                assert block.refs == found.pop(number)
        assert not found

    def seen(self, root: Inode) -> View:
        """All that a tree shows, hard links by the first of their names."""
        view: View = {}
        first: dict[int, str] = {}
        for path, inode in self._below(root, ""):
            first.setdefault(inode.ino, path)
            chunks = {n: self._content(number) for n in CHUNKS if (number := self._block(inode, n))}
            xattrs = {name: self._xattr(inode, name) for name in self._xattrs(inode)}
            size = 0 if inode.is_directory else inode.size
            view[path] = (inode.mode, size, chunks, xattrs, first[inode.ino])
            assert inode.count == (len(list(self._entries(inode))) if inode.is_directory else len(chunks))
            assert self._xattr(inode, b"user.none") is None
        return view

    def _below(self, directory: Inode, path: str) -> Iterator[tuple[str, Inode]]:
        yield path, directory
        assert self._lookup(directory, b"none") is None
        for _, name, _ in sorted(self._entries(directory), key=lambda entry: entry[1]):
            inode = self._lookup(directory, name)
            assert inode is not None
            below = f"{path}/{name.decode()}".lstrip("/")
            if inode.is_directory:
                assert inode.aux == directory.ino
                yield from self._below(inode, below)
            else:
                yield below, inode

    def _entries(self, directory: Inode) -> list[tuple[int, bytes, Inode | Dentry]]:
        if directory.ino >= PAST:
            return list(self.fs.pasts.entries(directory, 0))
        return list(self.names.entries(directory.ino, 2))

    def _lookup(self, directory: Inode, name: bytes) -> Inode | None:
        if directory.ino >= PAST:
            return self.fs.pasts.lookup(directory, name)
        return self.names.lookup(directory.ino, name)

    def _block(self, inode: Inode, chunk: int) -> int:
        return 0 if inode.is_directory else self.fs.block_numbers(inode, chunk, chunk)[0]

    def _content(self, number: int) -> bytes:
        block = load_block(self.fs.snapshot, number)
        assert block is not None
        return NAMES[block.hash]

    def _xattrs(self, inode: Inode) -> list[bytes]:
        return self.fs.pasts.xattrs(inode) if inode.ino >= PAST else self.names.xattrs.names(inode)

    def _xattr(self, inode: Inode, name: bytes) -> bytes | None:
        return self.fs.pasts.xattr(inode, name) if inode.ino >= PAST else self.names.xattrs.get(inode, name)


def model(tree: File) -> View:
    """All that the model shows, as `World.seen` gives it."""
    view: View = {}
    first: dict[int, str] = {}

    def add(path: str, file: File) -> None:
        first.setdefault(id(file), path)
        view[path] = (file.mode, file.size, dict(sorted(file.chunks.items())), file.xattrs, first[id(file)])
        for name, below in sorted((file.names or {}).items()):
            add(f"{path}/{name}".lstrip("/"), below)

    add("", tree)
    return view
