"""A store with snapshots, made when they were new and kept for ever: every later version shows what they hold.

`python -m tests.test_golden_snapshots FILE` made it: three snapshots of a tree that has changed in every way, the
second of which is half deleted.
"""

from __future__ import annotations

import lzma
import os
import sys
import tempfile
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import pytest

from nnfs.constants import DATA_FILE
from nnfs.fs import fsck, snapshots
from nnfs.fs.pasts import SNAPSHOTS
from nnfs.store import schema
from nnfs.store.blocks import ChunkChanges
from nnfs.store.env import Store
from tests.format.decoder.snapshots import SnapshotStore
from tests.fs.kit import encoded
from tests.fs.pastkit import CONTENTS, View, World

GOLDEN = Path(__file__).parent / "golden" / "snapshots-1.mdb.xz"


def tree(world: World, root: int) -> list[str]:
    """Return lines of text that say what a tree shows."""
    view: View = world.seen(world.fs.inode(root))
    lines = []
    for path, (mode, size, chunks, xattrs, first) in sorted(view.items()):
        digest = blake2b(b"".join(b"%d:%b" % item for item in sorted(chunks.items())), digest_size=6).hexdigest()
        lines.append(f"{mode:o} {size} {len(chunks)} {digest} {sorted(xattrs.items())} {path!r} {first!r}")
    return lines


LIVE = [
    "40755 0 0 ddd9c40767f9 [] '' ''",
    "100644 8192000 4 34e0b88b45f2 [(b'user.a', b'a'), (b'user.b', b'after the last')] 'a' 'a'",
    "100644 8192000 4 cddb965123fe [(b'user.a', b'b'), (b'user.b', b'after the second')] 'b' 'b'",
    "40700 0 0 ddd9c40767f9 [] 'folder' 'folder'",
    "100644 8192000 4 34e0b88b45f2 [(b'user.a', b'a'), (b'user.b', b'after the last')] 'folder/hard' 'a'",
]
FIRST = [
    "40755 0 0 ddd9c40767f9 [] '' ''",
    "100644 8192000 5 22386380b291 [(b'user.a', b'a')] 'a' 'a'",
    "100644 8192000 5 bebf63d2845a [(b'user.a', b'b')] 'b' 'b'",
    "100644 8192000 5 14d01c02c179 [(b'user.a', b'c')] 'c' 'c'",
    "100644 8192000 5 cba7dde10145 [(b'user.a', b'd')] 'd' 'd'",
    "40750 0 0 ddd9c40767f9 [] 'folder' 'folder'",
    "100644 8192000 5 22386380b291 [(b'user.a', b'a')] 'folder/hard' 'a'",
]
LAST = [
    "40755 0 0 ddd9c40767f9 [] '' ''",
    "100644 8192000 4 34e0b88b45f2 [(b'user.a', b'a'), (b'user.b', b'after the first')] 'a' 'a'",
    "100644 8192000 4 cddb965123fe [(b'user.a', b'b'), (b'user.b', b'after the second')] 'b' 'b'",
    "40750 0 0 ddd9c40767f9 [] 'folder' 'folder'",
    "100644 8192000 4 34e0b88b45f2 [(b'user.a', b'a'), (b'user.b', b'after the first')] 'folder/hard' 'a'",
    "100644 8192000 5 cba7dde10145 [(b'user.a', b'd')] 'folder/moved' 'folder/moved'",
]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """The golden store, opened."""
    (tmp_path / DATA_FILE).write_bytes(lzma.decompress(GOLDEN.read_bytes()))
    opened = reopened(tmp_path)
    yield opened
    opened.close()


def reopened(path: Path) -> World:
    world = World.__new__(World)
    world.store, world.path, world.room = Store.open(path), path, 0
    world.tree = world.saved = None  # type: ignore[assignment]
    world._open()
    return world


def test_it_shows_what_it_showed_then(world: World) -> None:
    assert [moment.name for moment in world.fs.pasts.moments] == [b"first", b"second", b"last \xff"]
    assert [moment.name for moment in world.fs.pasts.shown] == [b"first", b"last \xff"]
    assert tree(world, schema.ROOT_INO) == LIVE
    home = world.fs.inode(SNAPSHOTS)
    for name, lines in ((b"first", FIRST), (b"last \xff", LAST)):
        root = world.fs.pasts.lookup(home, name)
        assert root is not None
        assert tree(world, root.ino) == lines


def test_it_is_sound_and_can_be_used(world: World) -> None:
    report = fsck.check(world.store, data=True, repair=False, progress=lambda *_: None)
    assert not report.problems
    while world.amend(snapshots.reap):
        pass
    world.amend(lambda work: snapshots.begin_delete(work, [b"first", b"last \xff"]))
    while world.amend(snapshots.reap):
        pass
    assert tree(world, schema.ROOT_INO) == LIVE
    assert world.store.superblock.ro_compat == 0
    report = fsck.check(world.store, data=True, repair=False, progress=lambda *_: None)
    assert not report.problems


def test_the_second_decoder_reads_it(tmp_path: Path) -> None:
    (tmp_path / DATA_FILE).write_bytes(lzma.decompress(GOLDEN.read_bytes()))
    reader = SnapshotStore(os.fspath(tmp_path), b"first")
    try:
        entries = list(reader.tree())
    finally:
        reader.close()
    assert len(entries) == len(FIRST)


def take(world: World, name: bytes) -> None:
    world.amend(lambda work: snapshots.take(work, name, 10**18))


def change(world: World, path: str, value: bytes) -> None:
    """Change content and attributes of a file, and commit."""
    inode = world.inode(path)
    world.changes[inode.ino] = ChunkChanges(chunks={1: encoded(CONTENTS[11]), 64: None})
    world.names.xattrs.set(inode, b"user.b", value)
    world.commit()


def make(file: Path) -> None:
    """Make the golden store, and print what it shows."""
    with tempfile.TemporaryDirectory() as name:
        world = World(Path(name) / "store", 5)
        for number, letter in enumerate((b"a", b"b", b"c", b"d")):
            inode = world.names.create(schema.ROOT_INO, letter, 0o100644, 0, 1000, 100)
            inode.size = 500 * schema.MIN_CHUNK_SIZE
            content = {chunk: encoded(CONTENTS[(number + chunk) % 12]) for chunk in (0, 1, 63, 64, 400)}
            world.changes[inode.ino] = ChunkChanges(chunks=dict(content))
            world.names.xattrs.set(inode, b"user.a", letter)
        folder = world.names.create(schema.ROOT_INO, b"folder", 0o40750, 0, 0, 0).ino
        world.names.link(world.inode("a").ino, folder, b"hard")
        take(world, b"first")
        change(world, "a", b"after the first")
        world.names.rename(schema.ROOT_INO, b"d", folder, b"moved", 0)
        take(world, b"second")
        change(world, "b", b"after the second")
        world.names.unlink(schema.ROOT_INO, b"c")
        take(world, b"last \xff")
        change(world, "a", b"after the last")
        world.names.unlink(folder, b"moved")
        world.names.xattrs.chmod(world.fs.inode(folder), 0o700)
        world.commit()
        world.amend(lambda work: snapshots.begin_delete(work, [b"second"]))
        world.amend(lambda work: snapshots.reap(work, 16))
        home = world.fs.inode(SNAPSHOTS)
        roots = [world.fs.inode(schema.ROOT_INO)] + [world.fs.pasts.lookup(home, n) for n in (b"first", b"last \xff")]
        for root in roots:
            assert root is not None
            print(*(f"    {line!r}," for line in tree(world, root.ino)), "", sep="\n")
        world.close()
        file.write_bytes(lzma.compress((Path(name) / "store" / DATA_FILE).read_bytes(), preset=9))


if __name__ == "__main__":
    make(Path(sys.argv[1]))
