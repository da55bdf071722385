"""fsck and snapshots: what is wrong with kept records is found; repairs of the live tree leave snapshots alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnfs.errors import UsageError
from nnfs.fs import snapshots
from nnfs.store import moments, schema
from nnfs.store.blocks import ChunkChanges
from nnfs.store.env import Store
from nnfs.store.moments import PAST, Past
from nnfs.store.schema import Dentry, Inode, MapNode
from nnfs.store.txn import WriteTxn
from tests.fs.kit import check, damage, edit_inode, encoded, kinds, reload, remove_dentry
from tests.fs.pastkit import CONTENTS, File, World, model


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A tree in a snapshot `one` that has changed in every way since."""
    world = World(tmp_path / "store", 1)
    names = world.tree.names = {}
    for name in (b"a", b"b", b"c"):
        inode = world.names.create(schema.ROOT_INO, name, 0o100644, 0, 0, 0)
        inode.size = 200 * schema.MIN_CHUNK_SIZE
        content = {n: encoded(CONTENTS[n % 12]) for n in (0, 1, 63)} | {130: encoded(CONTENTS[3])}
        world.changes[inode.ino] = ChunkChanges(chunks=dict(content))
        file = File(
            0o100644, {n: CONTENTS[n % 12] for n in (0, 1, 63)} | {130: CONTENTS[3]}, {b"user.a": name}, inode.size
        )
        world.names.xattrs.set(inode, b"user.a", name)
        names[name.decode()] = file
    world.names.create(schema.ROOT_INO, b"d", 0o40700, 0, 0, 0)
    names["d"] = File(0o40700, names={})
    world.snapshot()
    one = world.inode("a")
    world.changes[one.ino] = ChunkChanges(chunks={0: encoded(CONTENTS[8])})
    world.names.xattrs.set(one, b"user.a", b"other")
    world.names.unlink(schema.ROOT_INO, b"b")
    world.names.rename(schema.ROOT_INO, b"c", world.inode("d").ino, b"c", 0)
    world.commit()
    yield world
    world.close()


def assert_snapshot_is_whole(world: World) -> None:
    root = world.fs.pasts.lookup(world.fs.inode(3), b"snap 1")
    assert root is not None
    assert world.seen(root) == model(world.past[b"snap 1"])


def kept(store: Store, table: str) -> list[bytes]:
    """The keys of kept records."""
    with store.read() as snapshot:
        return [key for key, _ in snapshot.range(table, schema.KEY.pack(PAST))]


def test_a_store_with_snapshots_is_clean(world: World) -> None:
    assert check(world.store, data=True).problems == []
    for table in moments.TABLES:
        assert kept(world.store, table), table


def reopened(world: World) -> None:
    """Have the world see what was written behind its back."""
    reload(world.store)
    world.fs.close()
    with world.store.read() as snapshot:
        world.store.moments = moments.load(snapshot)
    world._open()


@pytest.mark.parametrize("table", moments.TABLES)
def test_damaged_kept_records_are_found(world: World, table: str) -> None:
    with world.store.write() as txn:
        damage(txn, table, kept(world.store, table)[0], 20 if table == "inode" else 9)
    report = check(world.store)
    assert "kept" in kinds(report)
    assert "refs" not in kinds(report), "what a damaged map node names may still be needed"
    assert any("'snap 1'" in problem.message for problem in report.problems)


@pytest.mark.parametrize("table", ["inode", "dentry", "map"])
def test_lost_kept_records_are_found(world: World, table: str) -> None:
    with world.store.write() as txn:
        txn.delete(table, kept(world.store, table)[0])
    found = check(world.store, data=True)
    assert "kept" in kinds(found)


def test_lost_names_and_attributes_are_proved_anew(world: World) -> None:
    """A snapshot can be listed again after that: what is left of it is true."""
    with world.store.write() as txn:
        txn.delete("dentry", kept(world.store, "dentry")[0])
        txn.delete("xattr", kept(world.store, "xattr")[0])
    report = check(world.store, repair=True)
    assert kinds(report) == {"kept"}
    assert all(problem.fixed for problem in report.problems)
    assert check(world.store, data=True).problems == []
    reopened(world)
    root = world.fs.pasts.lookup(world.fs.inode(3), b"snap 1")
    assert root is not None
    assert len(world.seen(root)) == len(model(world.past[b"snap 1"])) - 1


def test_records_of_no_snapshot_are_removed(world: World) -> None:
    with world.store.write() as txn:
        for table in ("meta", "main"):
            txn.delete(table, moments.key_of(1))
    report = check(world.store, repair=True)
    assert "kept" in kinds(report)
    assert check(world.store, data=True).problems == []
    for table in moments.TABLES:
        assert not kept(world.store, table)
    assert world.store.superblock.ro_compat == 0


@pytest.mark.parametrize("table", ["meta", "main"])
def test_a_copy_is_written_anew(world: World, table: str) -> None:
    with world.store.write() as txn:
        damage(txn, table, moments.key_of(1))
    report = check(world.store, repair=True)
    assert kinds(report) == {"copies"}
    assert check(world.store, data=True).problems == []


def test_a_lost_record_of_a_snapshot_makes_a_store_read_only(world: World) -> None:
    """Else overwritten records would be lost. No kept record is taken for rubbish."""
    with world.store.write() as txn:
        for table in ("meta", "main"):
            damage(txn, table, moments.key_of(1))
    assert "snapshot" in kinds(check(world.store))
    path = world.path
    world.fs.close()
    world.store.close()
    world.store = Store.open(path)
    assert world.store.read_only
    with pytest.raises(UsageError, match="snapshot 1"):
        check(world.store, repair=True)
    assert kept(world.store, "map")
    world._open()


def test_the_superblock_tells_of_snapshots(world: World) -> None:
    world.store.superblock.ro_compat = 0
    with world.store.write() as txn:
        txn.put_superblock(world.store.superblock)
    assert kinds(check(world.store, repair=True)) == {"snapshot"}
    assert world.store.superblock.ro_compat == moments.RO_SNAPSHOTS
    assert check(world.store).problems == []


def break_link_count(world: World, txn: WriteTxn) -> None:
    edit_inode(txn, world.inode("d").ino, nlink=7)


def break_chunks_beyond_the_end(world: World, txn: WriteTxn) -> None:
    edit_inode(txn, world.inode("d/c").ino, size=schema.MIN_CHUNK_SIZE)


def break_name(world: World, txn: WriteTxn) -> None:
    key = schema.KEY2.pack(schema.ROOT_INO, schema.cookie_of(b"a", world.store.superblock.seed))
    remove_dentry(txn, key)


@pytest.mark.parametrize("broken", [break_link_count, break_chunks_beyond_the_end, break_name])
def test_repairs_of_the_live_tree_leave_a_snapshot_as_it_is(world: World, broken: object) -> None:
    """Records that the snapshot shares are kept before they are repaired; those that were wrong stay wrong in it."""
    assert callable(broken)
    with world.store.write() as txn:
        broken(world, txn)
    report = check(world.store, repair=True)
    assert report.problems
    again = check(world.store, data=True)
    assert {problem.kind for problem in again.problems} <= {"kept"}
    assert not [problem for problem in again.problems if problem.fix is not None]
    with world.store.read() as snapshot:
        past = Past(snapshot, moments.load(snapshot), 1)
        root = past.inode(schema.ROOT_INO)
        assert root is not None
        names = {Dentry.unpack(key, record).name for key, record in past.proved("dentry", root)}
        assert names >= {b"b", b"c", b"d"}
        for ino in range(schema.FIRST_FREE_INO, schema.FIRST_FREE_INO + 3):
            file = past.inode(ino)
            assert isinstance(file, Inode)
            chunks = [MapNode.unpack(key, record).blocks for key, record in past.proved("map", file)]
            assert sum(map(len, chunks)) == 4


def test_a_snapshot_that_is_being_deleted_is_clean(world: World) -> None:
    world.amend(lambda work: snapshots.begin_delete(work, [b"snap 1"]))
    report = check(world.store, data=True)
    assert report.problems == []
    assert any("being deleted" in note for note in report.notes)
    while world.amend(lambda work: snapshots.reap(work, 16)):
        assert check(world.store, data=True).problems == []
    assert os.path.exists(world.path)
