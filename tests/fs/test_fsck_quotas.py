"""fsck and quotas: records, sums and places that are wrong are found and repaired."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nnfs.fs.fsck import Report, check
from nnfs.mount import quotawalk
from nnfs.store import quotas, schema
from nnfs.store.env import Store
from nnfs.store.quotas import Quota
from nnfs.store.schema import Inode
from nnfs.store.txn import WriteTxn
from tests.fs.quotakit import QuotaWorld


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[QuotaWorld]:
    """Directories d (quota 1, with a file of 50 bytes), d/e (quota 2), d/e/f, and g without one."""
    monkeypatch.setattr(quotawalk, "PAUSE_S", 0)
    world = QuotaWorld(tmp_path / "store", 1)
    for path in ("d", "d/e", "d/e/f", "g"):
        folder, _, name = path.rpartition("/")
        world.names.create(world.inode(folder).ino, name.encode(), 0o40755, 0, 0, 0)
    inode = world.names.create(world.inode("d").ino, b"a", 0o100644, 0, 0, 0)
    world.attributes.resized(inode, 50)
    world.service().set_limits(world.inode("d"), 100, 6)
    world.service().set_limits(world.inode("d/e"), 60)
    world.settle()
    world.commit()
    world.assert_clean()
    yield world
    world.close()


def broken(world: QuotaWorld, change: Callable[[WriteTxn], None]) -> Report:
    """Break the store, check that fsck sees it, and let it repair. Return the report of the repair."""
    with world.store.write() as txn:
        change(txn)
    world.store._load()  # as if it had just been opened
    assert [problem.kind for problem in looked(world.store).problems]
    report = check(world.store, data=False, repair=True, progress=lambda *_: None)
    assert report.exit_code == 1, report.as_dict()
    assert not looked(world.store).problems
    world.fs.close()
    world._open()
    world.settle()
    world.commit()
    world.check_quotas()
    world.assert_clean()
    return report


def looked(store: Store) -> Report:
    return check(store, data=False, repair=False, progress=lambda *_: None)


def changed(txn: WriteTxn, number: int, **fields: int) -> None:
    quota = quotas.load(txn)[0][number]
    for name, value in fields.items():
        setattr(quota, name, value)
    quotas.put(txn, quota)


def renumbered(txn: WriteTxn, ino: int, number: int) -> None:
    key = schema.inode_key(ino)
    record = txn.get("inode", key)
    assert record is not None
    inode = Inode.unpack(ino, record)
    inode.quota = number
    txn.put("inode", key, inode.pack())


def test_sums(world: QuotaWorld) -> None:
    broken(world, lambda txn: changed(txn, 1, size=51, inodes=9))
    assert (world.limit("d").size, world.limit("d").inodes) == (50, 2)
    assert world.limit("d").max_bytes == 100


def test_one_copy(world: QuotaWorld) -> None:
    broken(world, lambda txn: txn.put("main", quotas.key_of(2), b"rubbish" * 9))
    assert world.limit("d/e").max_bytes == 60


def test_both_copies(world: QuotaWorld) -> None:
    def change(txn: WriteTxn) -> None:
        for table in ("meta", "main"):
            txn.put(table, quotas.key_of(2), b"rubbish" * 9)

    report = broken(world, change)
    assert any("limits of quota 2" in note for note in report.notes)
    assert (world.limit("d/e").max_bytes, world.limit("d/e").inodes, world.limit("d/e").above) == (0, 2, 1)


def test_no_record(world: QuotaWorld) -> None:
    broken(world, lambda txn: quotas.drop(txn, 1))
    assert (world.limit("d").inodes, world.limit("d").size, world.limit("d/e").above) == (2, 50, 1)


def test_a_file_that_names_no_quota(world: QuotaWorld) -> None:
    ino = world.inode("d/a").ino
    broken(world, lambda txn: renumbered(txn, ino, 9))
    assert world.fs.inode(ino).quota != 9
    assert 9 not in {quota.number for quota in world.fs.quotas.all()}


def test_a_directory_that_is_not_there(world: QuotaWorld) -> None:
    broken(world, lambda txn: quotas.put(txn, Quota(7, 4711, 0, 0, 10, 10)))
    assert {quota.number for quota in world.fs.quotas.all()} == {1, 2}


def test_within_another(world: QuotaWorld) -> None:
    broken(world, lambda txn: changed(txn, 2, above=0))
    assert world.limit("d/e").above == 1


def test_a_directory_in_the_wrong_one(world: QuotaWorld) -> None:
    ino = world.inode("d/e/f").ino
    broken(world, lambda txn: renumbered(txn, ino, 1))
    assert world.fs.inode(ino).quota == 2
    ino = world.inode("g").ino
    broken(world, lambda txn: renumbered(txn, ino, 1))
    assert world.fs.inode(ino).quota == 0


def test_the_word_of_the_superblock(world: QuotaWorld) -> None:
    def change(txn: WriteTxn) -> None:
        superblock = world.store.superblock
        superblock.ro_compat &= ~quotas.RO_QUOTAS
        txn.put_superblock(superblock)

    broken(world, change)
    assert world.store.superblock.ro_compat & quotas.RO_QUOTAS


def test_a_key_that_is_none(world: QuotaWorld) -> None:
    broken(world, lambda txn: txn.put("meta", quotas.QUOTA_KEY + b"x", b"y"))
