"""Quotas: limits within each other, names that cross them, inodes without names."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from nnfs.errors import FsError
from nnfs.fs.filesystem import Filesystem
from nnfs.fs.namespace import RENAME_EXCHANGE
from nnfs.mount import quotawalk
from nnfs.store import quotas, schema
from tests.fs.quotakit import QuotaWorld

ROOT = schema.ROOT_INO


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[QuotaWorld]:
    """Directories d, d/e and g, of which d has a limit of 100 bytes and 6 inodes, and d/e one of 60 bytes."""
    monkeypatch.setattr(quotawalk, "PAUSE_S", 0)
    world = QuotaWorld(tmp_path / "store", 1)
    for path in ("d", "d/e", "g"):
        folder, _, name = path.rpartition("/")
        world.names.create(world.inode(folder).ino, name.encode(), 0o40755, 0, 0, 0)
    world.tree.names = None  # steps are not drawn here
    service = world.service()
    service.set_limits(world.inode("d"), 100, 6)
    service.set_limits(world.inode("d/e"), 60)
    world.settle()
    yield world
    world.close()


def make(world: QuotaWorld, path: str, size: int = 0) -> schema.Inode:
    folder, _, name = path.rpartition("/")
    inode = world.names.create(world.inode(folder).ino, name.encode(), 0o100644, 0, 0, 0)
    grow(world, inode, size)
    return inode


def grow(world: QuotaWorld, inode: schema.Inode, size: int) -> None:
    """Change a size as a write or a truncation does."""
    world.fs.check_size(inode, size)
    world.attributes.resized(inode, size)


def rename(world: QuotaWorld, old: str, new: str, flags: int = 0) -> None:
    (old_folder, _, old_name), (new_folder, _, new_name) = old.rpartition("/"), new.rpartition("/")
    parents = world.inode(old_folder).ino, world.inode(new_folder).ino
    world.names.rename(parents[0], old_name.encode(), parents[1], new_name.encode(), flags)


def refused(code: int, call: Callable[[], object]) -> None:
    with pytest.raises(FsError) as caught:
        call()
    assert caught.value.errno == code


def counted(world: QuotaWorld, path: str) -> tuple[int, int]:
    level = world.fs.quotas.chain(world.inode(path).quota)[0]
    return level.size, level.inodes


def test_limits_hold_within_each_other(world: QuotaWorld) -> None:
    inner = make(world, "d/e/a", 50)
    refused(errno.EDQUOT, lambda: grow(world, inner, 61))
    outer = make(world, "d/b", 50)
    assert counted(world, "d") == (100, 4)
    assert counted(world, "d/e") == (50, 2)
    refused(errno.EDQUOT, lambda: grow(world, inner, 51))  # the outer one is full
    grow(world, outer, 10)
    grow(world, inner, 60)
    assert inner.size == 60
    world.commit()
    world.check_quotas()
    world.assert_clean()


def test_inodes_have_a_limit(world: QuotaWorld) -> None:
    for name in ("a", "b", "c", "f"):
        make(world, f"d/{name}")
    refused(errno.EDQUOT, lambda: make(world, "d/e/g"))
    refused(errno.EDQUOT, lambda: world.names.create(world.inode("d").ino, b"l", 0o120777, 0, 0, 0, target=b"x"))
    assert world.names.lookup(world.inode("d").ino, b"l") is None
    world.names.unlink(world.inode("d").ino, b"a")
    make(world, "d/e/g")


def test_symbolic_links_count_with_their_target(world: QuotaWorld) -> None:
    world.names.create(world.inode("d/e").ino, b"l", 0o120777, 0, 0, 0, target=b"x" * 50)
    assert counted(world, "d/e") == (50, 2)
    parent = world.inode("d/e").ino
    refused(errno.EDQUOT, lambda: world.names.create(parent, b"m", 0o120777, 0, 0, 0, target=b"x" * 50))


def test_a_file_moves_between_quotas(world: QuotaWorld) -> None:
    make(world, "g/a", 70)
    refused(errno.EDQUOT, lambda: rename(world, "g/a", "d/e/a"))
    rename(world, "g/a", "d/a")
    assert counted(world, "d") == (70, 3)
    refused(errno.EDQUOT, lambda: rename(world, "d/a", "d/e/a"))
    grow(world, world.inode("d/a"), 60)
    rename(world, "d/a", "d/e/a")
    assert (counted(world, "d"), counted(world, "d/e")) == ((60, 3), (60, 2))
    rename(world, "d/e/a", "a")
    assert (counted(world, "d"), counted(world, "d/e")) == ((0, 2), (0, 1))
    world.commit()
    world.check_quotas()
    world.assert_clean()


def test_a_full_directory_may_still_be_moved_within(world: QuotaWorld) -> None:
    make(world, "d/a", 100)
    grow(world, world.inode("d/a"), 60)
    world.service().set_limits(world.inode("d"), 10)
    rename(world, "d/a", "d/e/b")
    refused(errno.EDQUOT, lambda: make(world, "d/c", 1))


def test_a_directory_with_content_does_not_cross(world: QuotaWorld) -> None:
    world.names.create(world.inode("g").ino, b"x", 0o40755, 0, 0, 0)
    rename(world, "g/x", "d/x")  # an empty one does
    rename(world, "d/x", "g/x")
    make(world, "g/x/file")
    refused(errno.EXDEV, lambda: rename(world, "g/x", "d/x"))
    refused(errno.EXDEV, lambda: rename(world, "g/x", "d/e", RENAME_EXCHANGE))
    rename(world, "g/x", "x")


def test_a_directory_with_a_quota_moves_with_it(world: QuotaWorld) -> None:
    make(world, "d/e/a", 50)
    rename(world, "d/e", "g/e")
    assert (counted(world, "d"), counted(world, "g/e")) == ((0, 1), (50, 2))
    make(world, "d/b", 60)
    refused(errno.EDQUOT, lambda: rename(world, "g/e", "d/e"))
    grow(world, world.inode("d/b"), 50)
    rename(world, "g/e", "d/e")
    assert counted(world, "d") == (100, 4)
    world.commit()
    world.check_quotas()
    world.assert_clean()


def test_links_do_not_cross(world: QuotaWorld) -> None:
    inode = make(world, "d/a", 10)
    world.names.link(inode.ino, world.inode("d").ino, b"b")
    assert counted(world, "d") == (10, 3)  # counted once
    refused(errno.EXDEV, lambda: world.names.link(inode.ino, world.inode("d/e").ino, b"b"))
    refused(errno.EXDEV, lambda: world.names.link(inode.ino, ROOT, b"b"))
    refused(errno.EXDEV, lambda: rename(world, "d/b", "b"))
    world.names.unlink(world.inode("d").ino, b"a")
    assert counted(world, "d") == (10, 3)
    rename(world, "d/b", "b")
    assert counted(world, "d") == (0, 2)


def test_an_open_file_without_a_name_counts_until_it_is_closed(world: QuotaWorld) -> None:
    inode = make(world, "d/a", 90)
    world.fs.remember(inode.ino)
    world.names.unlink(world.inode("d").ino, b"a")
    world.commit()
    assert counted(world, "d") == (90, 3)
    refused(errno.EDQUOT, lambda: make(world, "d/b", 20))
    refused(errno.EDQUOT, lambda: grow(world, inode, 110))
    world.fs.forget(inode.ino, 1)
    assert counted(world, "d") == (0, 3)  # b is there, and empty
    world.commit()
    world.check_quotas()
    world.assert_clean()


def test_after_a_crash_open_files_do_not_count(world: QuotaWorld) -> None:
    inode = make(world, "d/a", 90)
    world.fs.remember(inode.ino)
    world.names.unlink(world.inode("d").ino, b"a")
    world.commit()
    world.fs.close()
    world.fs = Filesystem(world.store)
    assert world.fs.quotas.chain(1)[0].size == 0
    world.commit()
    world.check_quotas()
    world.assert_clean()


def test_removing_the_directory_removes_its_quota(world: QuotaWorld) -> None:
    make(world, "d/e/a", 50)
    world.names.unlink(world.inode("d/e").ino, b"a")
    world.names.rmdir(world.inode("d").ino, b"e")
    assert [quota.root for quota in world.fs.quotas.all()] == [world.inode("d").ino]
    world.names.rmdir(ROOT, b"d")
    assert not world.fs.quotas.active
    world.commit()
    assert world.store.superblock.ro_compat == 0
    world.assert_clean()


def test_of_the_whole_store_it_is_enospc(world: QuotaWorld) -> None:
    world.service().set_limits(world.inode(""), 500, None)
    world.settle()
    inode = make(world, "g/a", 400)
    refused(errno.ENOSPC, lambda: grow(world, inode, 501))
    assert counted(world, "") == (400, 5)
    refused(errno.EDQUOT, lambda: grow(world, make(world, "d/e/b"), 70))
    world.service().set_limits(world.inode("d"), 10_000)
    refused(errno.ENOSPC, lambda: grow(world, make(world, "d/b"), 101))


def test_while_there_are_quotas_older_versions_only_read(world: QuotaWorld) -> None:
    world.commit()
    assert world.store.superblock.ro_compat & quotas.RO_QUOTAS
    assert not world.store.read_only
    for path in ("d/e", "d"):
        world.service().set_limits(world.inode(path), 0, 0)
    world.settle()
    world.commit()
    assert world.store.superblock.ro_compat == 0
    world.assert_clean()


def test_a_check_finds_and_corrects_what_is_wrong(world: QuotaWorld) -> None:
    inode = make(world, "d/a", 50)
    world.fs.quotas.get(1).size += 7  # type: ignore[union-attr]
    inode.quota = 2
    world.inode("g").quota = 1
    for ino in (inode.ino, world.inode("g").ino):
        world.fs.touch(world.fs.inode(ino))
    world.commit()
    check = world.service().handlers["quota_check"]
    found = trio.run(check, {})
    assert found["misplaced"] == 2
    assert {one["number"] for one in found["wrong"]} == {1, 2}
    assert not found["repaired"]
    assert trio.run(check, {"repair": True})["repaired"]
    assert trio.run(check, {}) == {"wrong": [], "misplaced": 0, "unknown": 0, "repaired": False}
    assert counted(world, "d") == (50, 3)
    world.commit()
    world.check_quotas()
    world.assert_clean()
