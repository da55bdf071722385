"""Incremental backups: a chain restores what was there; gaps, wrong order and damage are told; a full target."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnfs.constants import DATA_FILE
from nnfs.errors import ArchiveDamaged, OutOfSpace, StoreDamaged, UsageError
from nnfs.fs.backup import backup, restore
from nnfs.fs.fsck import check
from nnfs.store import increments
from nnfs.store.env import Store
from tests import disks
from tests.fs.quotakit import QuotaWorld

ROUNDS = 12 if os.environ.get("NNFS_FULL") else 3


@pytest.fixture
def world(tmp_path: Path) -> Iterator[QuotaWorld]:
    world = QuotaWorld(tmp_path / "store", 5)
    yield world
    world.close()


def turn(world: QuotaWorld, steps: int = 40) -> None:
    """Change the store, snapshots and quotas too, and commit."""
    for _ in range(steps):
        world.step()
    world.commit()


def chain(world: QuotaWorld, folder: Path, length: int) -> list[Path]:
    """A whole backup and increments, each with changes before it."""
    turn(world)
    files = [folder / "whole"]
    backup(world.store, files[0])
    for number in range(length):
        turn(world)
        files.append(folder / f"part{number}")
        backup(world.store, files[-1], files[-2])
    return files


def content(store: Store) -> dict[str, list[tuple[bytes, bytes]]]:
    """All records of a store, of which none is left out."""
    with store.read() as snapshot:
        return {
            table: list(snapshot.range(table, b"")) for table in (*increments.TABLES[1:], "hash", "payload")
        }  # fmt: skip


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_chain_restores_what_was_there(tmp_path: Path, seed: int) -> None:
    world = QuotaWorld(tmp_path / "store", seed)
    files = chain(world, tmp_path, 4)
    answer = restore(files[0], files[1:], tmp_path / "again")
    assert answer["commit"] == world.store.state.commit
    with_all = Store.open(tmp_path / "again", readonly=True)
    assert content(with_all) == content(world.store)
    assert not check(with_all, data=True, repair=False, progress=lambda *_: None).problems
    with_all.close()
    world.close()


def test_an_increment_may_follow_a_whole_backup_or_another(world: QuotaWorld, tmp_path: Path) -> None:
    files = chain(world, tmp_path, 2)
    both = tmp_path / "both"
    backup(world.store, both, files[0])
    restore(files[0], [both], tmp_path / "again")
    store = Store.open(tmp_path / "again", readonly=True)
    assert content(store) == content(world.store)
    store.close()


def test_nothing_changed(world: QuotaWorld, tmp_path: Path) -> None:
    files = chain(world, tmp_path, 1)
    backup(world.store, tmp_path / "empty", files[-1])
    restore(files[0], [files[1], tmp_path / "empty"], tmp_path / "again")
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("order", "says"),
    [((0, 2), "missing"), ((0, 2, 1), "missing"), ((0, 1, 1), "too late, or twice"), ((1, 2), "is an increment")],
)
def test_parts_that_do_not_follow_each_other(
    world: QuotaWorld, tmp_path: Path, order: tuple[int, ...], says: str
) -> None:
    files = chain(world, tmp_path, 2)
    chosen = [files[number] for number in order]
    with pytest.raises(UsageError, match=says):
        restore(chosen[0], chosen[1:], tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("how", ["byte", "cut", "longer"])
def test_a_damaged_part(world: QuotaWorld, tmp_path: Path, how: str) -> None:
    files = chain(world, tmp_path, 2)
    data = bytearray(files[1].read_bytes())
    if how == "byte":
        data[len(data) // 2] ^= 1
    files[1].write_bytes(data[:-1] if how == "cut" else data + b"x" * (how == "longer"))
    with pytest.raises(ArchiveDamaged, match="part0"):
        restore(files[0], files[1:], tmp_path / "again")
    with pytest.raises(ArchiveDamaged, match="part0"):
        backup(world.store, tmp_path / "next", files[1])
    assert not (tmp_path / "again").exists()
    assert not (tmp_path / "next").exists()


def test_a_whole_backup_that_was_changed(world: QuotaWorld, tmp_path: Path) -> None:
    """The result is compared with what was backed up."""
    files = chain(world, tmp_path, 1)
    (tmp_path / "folder").mkdir()
    os.rename(files[0], tmp_path / "folder" / DATA_FILE)
    store = Store.open(tmp_path / "folder")
    with store.write() as txn:
        txn.put("queue", b"foreign", b"record")
    store.close()
    with pytest.raises(StoreDamaged, match="part0"):
        restore(tmp_path / "folder" / DATA_FILE, files[1:], tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_of_another_store(world: QuotaWorld, tmp_path: Path) -> None:
    files = chain(world, tmp_path, 1)
    other = QuotaWorld(tmp_path / "other", 6)
    (tmp_path / "more").mkdir()
    others = chain(other, tmp_path / "more", 1)
    with pytest.raises(UsageError, match="another store"):
        restore(files[0], [others[1]], tmp_path / "again")
    with pytest.raises(UsageError, match="another store"):
        backup(other.store, tmp_path / "next", files[1])
    other.close()


def test_since_something_else(world: QuotaWorld, tmp_path: Path) -> None:
    chain(world, tmp_path, 0)
    (tmp_path / "text").write_bytes(b"no backup" * 1000)
    with pytest.raises(UsageError, match="text is no backup"):
        backup(world.store, tmp_path / "next", tmp_path / "text")
    with pytest.raises(ArchiveDamaged, match="text is no backup"):
        restore(tmp_path / "text", [], tmp_path / "again")
    assert not (tmp_path / "again").exists()
    assert not (tmp_path / "next").exists()
    assert not (tmp_path / "next.partial").exists()


def test_a_newer_backup(world: QuotaWorld, tmp_path: Path) -> None:
    files = chain(world, tmp_path, 1)
    restore(files[0], [], tmp_path / "old")
    old = Store.open(tmp_path / "old", readonly=True)
    with pytest.raises(UsageError, match="newer"):
        backup(old, tmp_path / "next", files[1])
    old.close()


def test_a_target_with_content_stays(world: QuotaWorld, tmp_path: Path) -> None:
    files = chain(world, tmp_path, 1)
    (tmp_path / "again").mkdir()
    (tmp_path / "again/file").touch()
    with pytest.raises(UsageError, match="not empty"):
        restore(files[0], files[1:], tmp_path / "again")
    assert os.listdir(tmp_path / "again") == ["file"]


def test_a_full_target(world: QuotaWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = chain(world, tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(increments, "write", full)
        with pytest.raises(OutOfSpace, match=r"next\.partial"):
            backup(world.store, tmp_path / "next", files[1])
    assert not (tmp_path / "next.partial").exists()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(OutOfSpace, match="again"):
            restore(files[0], files[1:], tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_disk_that_keeps_other_bytes(world: QuotaWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole backup is read again before it gets its name."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        with contextlib.suppress(OSError):  # a directory
            byte = os.pread(descriptor, 1, 5000)
            os.pwrite(descriptor, bytes([byte[0] ^ 1]), 5000)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ArchiveDamaged, match="is not what was written"):
        backup(world.store, tmp_path / "copy")
    assert not [name for name in os.listdir(tmp_path) if "copy" in name]


def test_a_disk_that_is_full_before_the_end(world: QuotaWorld) -> None:
    """LMDB writes into a pipe. The error says that the disk is full, not that the pipe is broken."""
    if os.geteuid() != 0 or disks.why_not("tmpfs", 1):
        pytest.skip(disks.why_not("tmpfs", 1) or "needs root")
    with disks.disk("tmpfs", 1) as small:
        (small / "filler").write_bytes(bytes(1020 << 10))
        with pytest.raises(OutOfSpace, match=r"copy\.partial"):
            backup(world.store, small / "copy")
        assert os.listdir(small) == ["filler"]
