"""Commits of chunk changes, truncations and releases, without a mount; fsck is the judge of each state."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import pytest

from nnfs.errors import OutOfSpace
from nnfs.fs import apply as apply_module
from nnfs.fs import fsck
from nnfs.fs.apply import Amendment, Applied, Work, apply
from nnfs.fs.filesystem import Filesystem
from nnfs.fs.namespace import Namespace
from nnfs.fs.xattrs import Xattrs
from nnfs.store import schema
from nnfs.store.blocks import ChunkChanges, Encoded
from nnfs.store.env import Store
from nnfs.store.schema import Inode
from nnfs.store.txn import WriteTxn

T = TypeVar("T")


class Files:
    """A filesystem on a store, committed by hand."""

    def __init__(self, path: Path) -> None:
        self.store = Store.create(path, schema.MIN_CHUNK_SIZE)
        self.fs = Filesystem(self.store)
        self.names = Namespace(self.fs, Xattrs(self.fs))
        self.room = 0

    def create(self, name: bytes, size: int = 1 << 40) -> Inode:
        inode = self.names.create(schema.ROOT_INO, name, 0o100644, 0, 0, 0)
        inode.size = size
        return inode

    def commit(
        self, changes: dict[int, ChunkChanges] | None = None, *amendments: Amendment, damaged: Container[int] = ()
    ) -> Applied:
        applied, self.room = apply(self.store, self.fs.freeze(), changes or {}, 1, self.room, amendments, damaged)
        self.fs.committed(applied)
        return applied

    def amend(self, change: Callable[[Work], T]) -> T:
        """Have an amendment run in a commit of its own, and return its result."""
        results: list[T] = []
        self.commit(None, lambda work: results.append(change(work)))
        return results[0]

    def check(self) -> None:
        report = fsck.check(self.store, data=True, repair=False, progress=lambda *_: None)
        assert not report.problems, report.problems


def chunk(number: int) -> Encoded:
    plain = b"chunk %d " % number * 10
    return Encoded(blake2b(plain).digest(), 0, len(plain), plain)


def chunks(*numbers: int) -> dict[int, Encoded | None]:
    return {number: chunk(number) for number in numbers}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    monkeypatch.setattr(apply_module, "RELEASE_NODES", 3)
    made = Files(tmp_path / "store")
    yield made
    made.fs.close()
    made.store.close()


def test_map_and_holes(files: Files) -> None:
    inode = files.create(b"f")
    files.commit({inode.ino: ChunkChanges(chunks=chunks(0, 1, 63, 64, 1 << 20))})
    files.check()
    assert inode.count == 5
    assert files.fs.block_numbers(inode, 62, 65)[0] == 0
    assert all(files.fs.block_numbers(inode, 63, 64))
    files.commit({inode.ino: ChunkChanges(chunks={1: None, 63: chunk(7)})})
    files.check()
    assert inode.count == 4


def test_equal_chunks_are_stored_once(files: Files) -> None:
    one, two = files.create(b"one"), files.create(b"two")
    files.commit({one.ino: ChunkChanges(chunks=chunks(5)), two.ino: ChunkChanges(chunks={9: chunk(5), 10: chunk(5)})})
    assert files.store.entries("block") == 1
    files.check()
    files.commit({two.ino: ChunkChanges(cut=0)})
    files.check()
    assert files.store.entries("block") == 1
    files.commit({one.ino: ChunkChanges(chunks={5: None})})
    assert files.store.entries("block") == files.store.entries("payload") == files.store.entries("hash") == 0
    files.check()


@pytest.mark.parametrize("cut", [0, 1, 63, 64, 65, 500])
@pytest.mark.parametrize("large", [True, False])
def test_truncation(files: Files, cut: int, large: bool) -> None:
    """More nodes than one commit may release go to an orphan; the rest of the file is not touched."""
    inode = files.create(b"f")
    numbers = list(range(0, 64 * 8, 5)) if large else [0, 1, 70, 511]
    files.commit({inode.ino: ChunkChanges(chunks=chunks(*numbers))})
    files.commit({inode.ino: ChunkChanges(cut=cut, spare=files.fs.new_ino())})
    files.check()
    kept = [number for number in numbers if number < cut]
    assert inode.count == len(kept)
    assert [number for number in range(512) if files.fs.block_numbers(inode, number, number)[0]] == kept
    assert files.fs.named == 2  # the root and the file; not what was cut off
    while not files.fs.active.empty:
        files.commit()
        files.check()
        assert files.fs.named == 2
    assert files.store.entries("block") == len(kept)
    assert files.store.entries("orphan") == 0


def test_a_large_file_is_released_in_pieces(files: Files) -> None:
    inode = files.create(b"f")
    files.fs.remember(inode.ino)
    files.commit({inode.ino: ChunkChanges(chunks=chunks(*range(0, 64 * 8, 5)))})
    files.names.unlink(schema.ROOT_INO, b"f")
    assert not files.commit().unfinished  # looked up still: an orphan
    files.check()
    files.fs.forget(inode.ino, 1)
    commits = 0
    while not files.fs.active.empty:
        files.commit()
        files.check()
        commits += 1
    assert commits == 3
    assert files.store.entries("inode") == 1
    assert files.store.entries("payload") == 0
    assert files.store.state.inodes == 1


def test_orphans_are_released_by_the_next_one_to_open(files: Files, tmp_path: Path) -> None:
    inode = files.create(b"f")
    files.fs.remember(inode.ino)
    files.commit({inode.ino: ChunkChanges(chunks=chunks(1, 2))})
    files.names.unlink(schema.ROOT_INO, b"f")
    files.commit()
    files.fs.close()
    files.fs = Filesystem(files.store)
    files.commit()
    files.check()
    assert files.store.entries("inode") == 1


def test_attributes_removed_in_the_epoch_of_the_release(files: Files) -> None:
    """Found by kill -9 rounds: the record stayed behind."""
    inode = files.create(b"f")
    files.names.xattrs.set(inode, b"user.x", b"1")
    files.commit()
    files.names.xattrs.remove(inode, b"user.x")
    files.names.unlink(schema.ROOT_INO, b"f")
    files.commit()
    files.check()
    assert files.store.entries("xattr") == 0


def test_a_failed_commit_changes_nothing_and_is_made_up_for(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    inode = files.create(b"f")

    def full(self: WriteTxn, *args: object) -> None:
        raise OutOfSpace("full")

    with monkeypatch.context() as context:
        context.setattr(WriteTxn, "put_state", full)
        with pytest.raises(OutOfSpace):
            files.commit({inode.ino: ChunkChanges(chunks=chunks(1))})
    files.check()
    assert files.store.entries("inode") == 1
    files.create(b"g")
    files.names.rename(schema.ROOT_INO, b"f", schema.ROOT_INO, b"h", 0)
    files.commit({inode.ino: ChunkChanges(chunks=chunks(1))})
    files.check()
    assert {name for _, name, _ in files.names.entries(schema.ROOT_INO, 0)} == {b".", b"..", b"g", b"h"}


def test_names_of_one_hash(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """All names collide: each is found, listed once, and removed alone; an absent one is proved absent."""
    real = schema.cookie_of
    monkeypatch.setattr(schema, "cookie_of", lambda name, seed: 77 << 16)
    names = [b"n%d" % number for number in range(20)]
    for number, name in enumerate(names):
        files.create(name)
        if number == 10:
            files.commit()
    for name in names[::3]:
        files.names.unlink(schema.ROOT_INO, name)
    left = [name for number, name in enumerate(names) if number % 3]
    listed = [name for _, name, _ in files.names.entries(schema.ROOT_INO, 2)]
    assert sorted(listed) == sorted(left)
    assert all(files.names.lookup(schema.ROOT_INO, name) for name in left)
    assert not any(files.names.lookup(schema.ROOT_INO, name) for name in names[::3])
    files.commit()
    assert not files.names.lookup(schema.ROOT_INO, b"other")
    monkeypatch.setattr(schema, "cookie_of", real)


def damage(store: Store, table: str, key: bytes, at: int = 3) -> None:
    with store.write() as txn:
        record = bytearray(txn.get(table, key) or b"")
        record[at] ^= 1
        txn.put(table, key, bytes(record))


def test_damaged_statistics_fail_no_write(files: Files) -> None:
    inode = files.create(b"f")
    files.commit({inode.ino: ChunkChanges(chunks=chunks(1, 2))})
    damage(files.store, "total", schema.TOTAL_KEY.pack(0, 0))
    applied = files.commit({inode.ino: ChunkChanges(chunks={1: None, 2: chunk(9), 3: chunk(3)})})
    assert not applied.failed
    assert [bool(number) for number in files.fs.block_numbers(inode, 1, 3)] == [False, True, True]


def test_writing_the_same_again_heals_a_rotten_block(files: Files) -> None:
    one, two = files.create(b"one"), files.create(b"two")
    files.commit({one.ino: ChunkChanges(chunks=chunks(5))})
    [number] = files.fs.block_numbers(one, 5, 5)
    damage(files.store, "payload", schema.FRAGMENT_KEY.pack(number, 0))
    files.commit({two.ino: ChunkChanges(chunks=chunks(5))})
    assert files.fs.block_numbers(two, 5, 5) == [number]
    files.check()


def test_a_damaged_orphan_stops_no_commit(files: Files) -> None:
    inode = files.create(b"f")
    files.fs.remember(inode.ino)
    files.commit({inode.ino: ChunkChanges(chunks=chunks(1))})
    files.names.unlink(schema.ROOT_INO, b"f")
    files.commit()
    damage(files.store, "inode", schema.KEY.pack(inode.ino))
    files.fs.close()
    files.fs = Filesystem(files.store)
    files.names = Namespace(files.fs, Xattrs(files.fs))
    files.create(b"g")
    files.commit()
    assert files.store.entries("orphan") == 0
    assert files.names.lookup(schema.ROOT_INO, b"g")
