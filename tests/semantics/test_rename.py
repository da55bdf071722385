"""rename(2) and renameat2(2)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.harness import Mount, Plain
from tests.semantics.kit import CHUNK, EXCHANGE, NOREPLACE, WHITEOUT, fails, make, pattern, renameat2

KINDS = ["file", "dir", "symlink", "fifo"]


@pytest.mark.parametrize("kind", KINDS)
def test_moves_any_kind_anywhere(mnt: Path, mounted: Mount | Plain, kind: str) -> None:
    (mnt / "a" / "b").mkdir(parents=True)
    ino = make(mnt / "n", kind)
    for to in (mnt / "m", mnt / "a" / "m", mnt / "a" / "b" / "m", mnt / "z"):
        (was,) = [p for p in mnt.rglob("*") if p.lstat().st_ino == ino]
        os.rename(was, to)
        assert to.lstat().st_ino == ino
        with fails(errno.ENOENT):
            os.lstat(was)
    mounted.remount()
    assert (mnt / "z").lstat().st_ino == ino


@pytest.mark.parametrize("new", KINDS)
@pytest.mark.parametrize("old", KINDS)
def test_onto_an_existing_name(mnt: Path, mounted: Mount | Plain, old: str, new: str) -> None:
    ino, gone = make(mnt / "old", old), make(mnt / "new", new)
    if old == "dir" != new:
        with fails(errno.ENOTDIR):
            os.rename(mnt / "old", mnt / "new")
    elif new == "dir" != old:
        with fails(errno.EISDIR):
            os.rename(mnt / "old", mnt / "new")
    else:
        os.rename(mnt / "old", mnt / "new")
        mounted.drop_caches()
        assert os.listdir(mnt) == ["new"]
        assert (mnt / "new").lstat().st_ino == ino
        return
    assert (mnt / "old").lstat().st_ino == ino
    assert (mnt / "new").lstat().st_ino == gone


def test_onto_a_directory_that_is_not_empty(mnt: Path) -> None:
    (mnt / "a").mkdir()
    (mnt / "b" / "c").mkdir(parents=True)
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rename(mnt / "a", mnt / "b")
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rename(mnt / "b" / "c", mnt / "b")
    os.rename(mnt / "b", mnt / "a")
    assert os.listdir(mnt) == ["a"]
    assert os.listdir(mnt / "a") == ["c"]


def test_onto_itself_and_onto_another_link_of_itself(mnt: Path) -> None:
    f = mnt / "f"
    f.write_bytes(b"x")
    os.link(f, mnt / "g")
    (mnt / "d").mkdir()
    os.rename(f, f)
    os.rename(mnt / "d", mnt / "d")
    os.rename(f, mnt / "g")  # the same inode: nothing happens, both names stay
    assert sorted(os.listdir(mnt)) == ["d", "f", "g"]
    assert f.stat().st_nlink == 2


def test_into_itself(mnt: Path) -> None:
    (mnt / "a" / "b" / "c").mkdir(parents=True)
    for to in (mnt / "a" / "x", mnt / "a" / "b" / "x", mnt / "a" / "b" / "c"):
        with fails(errno.EINVAL):
            os.rename(mnt / "a", to)
    with fails(errno.EINVAL):
        renameat2(mnt / "a", mnt / "a" / "b", EXCHANGE)
    assert (mnt / "a" / "b" / "c").is_dir()


def test_missing_parts(mnt: Path) -> None:
    (mnt / "f").touch()
    with fails(errno.ENOENT):
        os.rename(mnt / "none", mnt / "x")
    with fails(errno.ENOENT):
        os.rename(mnt / "f", mnt / "none" / "x")
    with fails(errno.ENOTDIR):
        os.rename(mnt / "f", mnt / "f" / "x")
    with fails(errno.ENOTDIR):
        os.rename(mnt / "f" / "x", mnt / "y")
    with fails(errno.EINVAL, errno.EBUSY):
        os.rename(f"{mnt}/.", mnt / "y")
    with fails(errno.EXDEV):
        os.rename(mnt / "f", "/proc/self/x")


def test_directory_link_counts_follow(mnt: Path, mounted: Mount | Plain) -> None:
    for name in ("a", "b", "a/d"):
        (mnt / name).mkdir()
    counts = [os.stat(mnt / name).st_nlink for name in ("a", "b", "a/d")]
    assert counts == [3, 2, 2]
    os.rename(mnt / "a" / "d", mnt / "b" / "d")
    assert [os.stat(mnt / name).st_nlink for name in ("a", "b", "b/d")] == [2, 3, 2]
    assert os.stat(mnt / "b" / "d" / "..").st_ino == os.stat(mnt / "b").st_ino
    (mnt / "a" / "e").mkdir()
    os.rename(mnt / "a" / "e", mnt / "b" / "d")  # replaces an empty directory
    mounted.remount()
    assert [os.stat(mnt / name).st_nlink for name in ("a", "b", "b/d")] == [2, 3, 2]
    assert os.stat(mnt / "b" / "d" / "..").st_ino == os.stat(mnt / "b").st_ino


def test_over_an_open_file(mnt: Path, mounted: Mount | Plain) -> None:
    (mnt / "old").write_bytes(pattern(2 * CHUNK))
    (mnt / "new").write_bytes(b"new")
    with (mnt / "old").open("r+b", buffering=0) as f:
        os.rename(mnt / "new", mnt / "old")
        mounted.drop_caches()
        assert os.fstat(f.fileno()).st_nlink == 0
        assert f.read() == pattern(2 * CHUNK)
        f.write(b"still writable")
        os.fsync(f.fileno())
        assert os.pread(f.fileno(), 100, 2 * CHUNK) == b"still writable"
        assert (mnt / "old").read_bytes() == b"new"
    assert (mnt / "old").stat().st_nlink == 1


def test_an_open_file_moves_with_its_handle(mnt: Path, mounted: Mount | Plain) -> None:
    (mnt / "d").mkdir()
    with (mnt / "f").open("wb", buffering=0) as f:
        f.write(b"before")
        os.rename(mnt / "f", mnt / "d" / "g")
        f.write(b" after")
    mounted.remount()
    assert (mnt / "d" / "g").read_bytes() == b"before after"


def test_dirty_file_saved_by_rename(mnt: Path, mounted: Mount | Plain) -> None:
    """Every editor saves a file so."""
    for i in range(30):
        (mnt / ".tmp").write_bytes(pattern(CHUNK + i, seed=i + 1))
        os.rename(mnt / ".tmp", mnt / "file")
        assert (mnt / "file").read_bytes() == pattern(CHUNK + i, seed=i + 1)
    mounted.remount()
    assert os.listdir(mnt) == ["file"]
    assert (mnt / "file").read_bytes() == pattern(CHUNK + 29, seed=30)


def test_noreplace(mnt: Path) -> None:
    ino = make(mnt / "a", "file")
    make(mnt / "b", "file")
    with fails(errno.EEXIST):
        renameat2(mnt / "a", mnt / "b", NOREPLACE)
    with fails(errno.EEXIST):
        renameat2(mnt / "a", mnt / "a", NOREPLACE)
    assert (mnt / "b").read_bytes() == b"content of b"
    renameat2(mnt / "a", mnt / "c", NOREPLACE)
    assert (mnt / "c").stat().st_ino == ino
    with fails(errno.ENOENT):
        renameat2(mnt / "a", mnt / "d", NOREPLACE)


@pytest.mark.parametrize("one", KINDS)
@pytest.mark.parametrize("two", KINDS)
def test_exchange(mnt: Path, mounted: Mount | Plain, one: str, two: str) -> None:
    for name in ("x", "y"):
        (mnt / name).mkdir()
    a, b = make(mnt / "x" / "one", one), make(mnt / "y" / "two", two)
    renameat2(mnt / "x" / "one", mnt / "y" / "two", EXCHANGE)
    for _ in range(2):
        assert (mnt / "x" / "one").lstat().st_ino == b
        assert (mnt / "y" / "two").lstat().st_ino == a
        assert os.stat(mnt / "x").st_nlink == 2 + (two == "dir")
        assert os.stat(mnt / "y").st_nlink == 2 + (one == "dir")
        # A remount costs half a second: for the pairs that move link counts.
        (mounted.remount if "dir" in (one, two) else mounted.drop_caches)()
    if one == "dir":
        assert os.stat(mnt / "y" / "two" / "..").st_ino == os.stat(mnt / "y").st_ino


def test_exchange_of_full_directories_and_of_a_missing_name(mnt: Path) -> None:
    (mnt / "a" / "in a").mkdir(parents=True)
    (mnt / "b" / "in b").mkdir(parents=True)
    renameat2(mnt / "a", mnt / "b", EXCHANGE)
    assert os.listdir(mnt / "a") == ["in b"]
    assert os.listdir(mnt / "b") == ["in a"]
    with fails(errno.ENOENT):
        renameat2(mnt / "a", mnt / "none", EXCHANGE)
    renameat2(mnt / "a", mnt / "a", EXCHANGE)
    with fails(errno.EINVAL):
        renameat2(mnt / "a", mnt / "a" / "in b", EXCHANGE)
    with fails(errno.EINVAL):
        renameat2(mnt / "a", mnt / "c", EXCHANGE | NOREPLACE)


@pytest.mark.nnfs_only("others make whiteouts")
def test_flags_nobody_knows_are_refused(mnt: Path) -> None:
    (mnt / "a").touch()
    for flags in (WHITEOUT, 8, 1 << 31):
        with fails(errno.EINVAL):
            renameat2(mnt / "a", mnt / "b", flags)
    assert os.listdir(mnt) == ["a"]


def test_a_chain_of_renames_in_a_deep_tree(mnt: Path, mounted: Mount | Plain) -> None:
    deep = mnt
    for i in range(30):
        deep /= f"d{i}"
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"deep")
    os.rename(mnt / "d0" / "d1", mnt / "e1")
    os.rename(mnt / "d0", mnt / "e1" / "d0")
    mounted.drop_caches()
    os.rename(mnt / "e1" / "d2" / "d3", mnt / "e1" / "d0" / "e3")
    with fails(errno.EINVAL):
        os.rename(mnt / "e1", mnt / "e1" / "d0" / "e3" / "d4" / "x")
    found = list(mnt.rglob("f"))
    assert len(found) == 1
    assert found[0].read_bytes() == b"deep"
