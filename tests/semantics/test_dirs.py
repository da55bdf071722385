"""Directories: listing with cookies, deletion while listing, thousands of entries, link counts."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from tests.harness import FULL, Mount, Plain
from tests.semantics.kit import Dir, fails, in_child

COUNT = 50_000 if FULL else 5_000


def fill(path: Path, count: int) -> set[bytes]:
    """Empty files with names of mixed length."""
    names = {b"%d-%s" % (i, b"n" * (i % 60)) for i in range(count)}
    base = os.open(path, os.O_RDONLY)
    for name in names:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=base))
    os.close(base)
    return names


def test_link_counts(mnt: Path, mounted: Mount | Plain) -> None:
    assert os.stat(mnt).st_nlink == 2
    for i in range(5):
        (mnt / f"d{i}").mkdir()
        (mnt / f"f{i}").touch()
        os.symlink(".", mnt / f"l{i}")
        assert os.stat(mnt).st_nlink == 3 + i
    assert os.stat(mnt / "d0").st_nlink == 2
    mounted.remount()
    assert os.stat(mnt).st_nlink == 7
    os.rmdir(mnt / "d0")
    os.unlink(mnt / "f0")
    assert os.stat(mnt).st_nlink == 6


def test_dots(mnt: Path) -> None:
    (mnt / "d" / "e").mkdir(parents=True)
    assert os.stat(mnt / "d" / ".").st_ino == os.stat(mnt / "d").st_ino
    assert os.stat(mnt / "d" / "e" / "..").st_ino == os.stat(mnt / "d").st_ino
    with Dir(mnt / "d") as d:
        names = list(iter(d.read, None))
    assert sorted(names) == [b".", b"..", b"e"]
    for bad, codes in ((".", (errno.EINVAL,)), ("..", (errno.ENOTEMPTY, errno.EBUSY, errno.EINVAL))):
        with fails(*codes):
            os.rmdir(f"{mnt}/d/e/{bad}")
    with fails(errno.EEXIST):
        os.mkdir(f"{mnt}/d/.")


def test_rmdir(mnt: Path) -> None:
    (mnt / "d" / "e").mkdir(parents=True)
    (mnt / "f").touch()
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rmdir(mnt / "d")
    with fails(errno.ENOTDIR):
        os.rmdir(mnt / "f")
    with fails(errno.EISDIR, errno.EPERM):
        os.unlink(mnt / "d")
    with fails(errno.ENOENT):
        os.rmdir(mnt / "none")
    os.rmdir(mnt / "d" / "e")
    os.rmdir(mnt / "d")
    assert os.listdir(mnt) == ["f"]


def test_deep_tree(mnt: Path, mounted: Mount | Plain) -> None:
    path = mnt
    for i in range(100):
        path /= f"level{i}"
        path.mkdir()
    (path / "f").write_bytes(b"deep")
    mounted.remount()
    assert (path / "f").read_bytes() == b"deep"
    shutil.rmtree(mnt / "level0")
    assert os.listdir(mnt) == []


def test_thousands_of_entries(mnt: Path, mounted: Mount | Plain) -> None:
    """Created, listed from memory and from the store, deleted while listed, as rm -r does."""
    d = mnt / "d"
    d.mkdir()
    want = fill(d, COUNT)
    assert set(os.listdir(os.fsencode(d))) == want
    mounted.remount()
    listed = os.listdir(os.fsencode(d))
    assert len(listed) == len(want)
    assert set(listed) == want
    gone = []
    with Dir(d) as listing:
        for name in iter(listing.read, None):
            if name not in (b".", b".."):
                os.unlink(os.fsencode(d) + b"/" + name)
                gone.append(name)
    assert len(gone) == len(set(gone))
    assert set(gone) == want
    os.rmdir(d)


def test_deleting_while_listing_skips_and_repeats_nothing(mnt: Path, mounted: Mount | Plain) -> None:
    """Everything that is neither created nor deleted meanwhile is listed once."""
    want = fill(mnt, 3000)
    mounted.drop_caches()
    seen: list[bytes] = []
    deleted: set[bytes] = set()
    spare = iter(sorted(want))
    with Dir(mnt) as listing:
        for i, name in enumerate(iter(listing.read, None)):
            seen.append(name)
            if i % 3 == 0 and (victim := next(spare)) not in seen:
                os.unlink(os.fsencode(mnt) + b"/" + victim)
                deleted.add(victim)
            if i % 5 == 0:
                os.close(os.open(os.fsencode(mnt) + b"/new%d" % i, os.O_CREAT | os.O_WRONLY))
    assert len(seen) == len(set(seen))
    assert set(seen) >= want - deleted
    assert deleted
    assert set(os.listdir(os.fsencode(mnt))) >= want - deleted


def test_names_created_while_listing_end(mnt: Path) -> None:
    """A listing ends even when each entry it gives makes another appear: bounded by what one pass may see."""
    fill(mnt, 300)
    with Dir(mnt) as listing:
        for i, _name in enumerate(iter(listing.read, None)):
            if i < 2000:
                os.close(os.open(mnt / f"more{i}", os.O_CREAT | os.O_WRONLY))
            assert i < 10_000


def test_cookies(mnt: Path, mounted: Mount | Plain) -> None:
    """telldir and seekdir: from each cookie the listing goes on as it did, also after other names have gone."""
    want = fill(mnt, 700)
    with Dir(mnt) as listing:
        order: list[bytes] = []
        cookies = [listing.tell()]
        for name in iter(listing.read, None):
            order.append(name)
            cookies.append(listing.tell())
        assert len(set(cookies)) == len(cookies)
        for i in (0, 1, 2, 3, 77, 350, 699, len(order) - 1, len(order)):
            listing.seek(cookies[i])
            assert listing.rest() == [n for n in order[i:] if n not in (b".", b"..")]
        for name in order[100:300]:
            if name not in (b".", b".."):
                os.unlink(os.fsencode(mnt) + b"/" + name)
        mounted.drop_caches()
        for i in (50, 100, 200, 299, 300, 301, 600):
            listing.seek(cookies[i])
            left = order[i:100] + order[max(i, 300) :]
            assert listing.rest() == [n for n in left if n not in (b".", b"..")]
        listing.rewind()
        assert set(listing.rest()) == want - set(order[100:300])


@pytest.mark.nnfs_only("others may renumber")
def test_order_of_a_listing_survives_a_remount(mnt: Path, mounted: Mount | Plain) -> None:
    fill(mnt, 500)
    before = os.listdir(mnt)
    mounted.remount()
    assert os.listdir(mnt) == before


def test_rewind_sees_what_is_new(mnt: Path) -> None:
    with Dir(mnt) as listing:
        assert listing.rest() == []
        (mnt / "a").touch()
        listing.rewind()
        assert listing.rest() == [b"a"]
        os.rename(mnt / "a", mnt / "b")
        listing.rewind()
        assert listing.rest() == [b"b"]


def test_listing_of_a_removed_directory(mnt: Path) -> None:
    (mnt / "d").mkdir()
    with Dir(mnt / "d") as listing:
        os.rmdir(mnt / "d")
        try:
            assert listing.rest() == []
        except OSError as e:
            assert e.errno == errno.ENOENT


def test_deleted_working_directory(mnt: Path, mounted: Mount | Plain) -> None:
    (mnt / "d").mkdir()

    def run() -> None:
        os.chdir(mnt / "d")
        os.rmdir(mnt / "d")
        with fails(errno.ENOENT):
            os.getcwd()
        with fails(errno.ENOENT):
            os.open("f", os.O_CREAT | os.O_WRONLY)
        with fails(errno.ENOENT):
            os.mkdir("x")
        with fails(errno.ENOENT):
            os.rename(mnt / "keep", "x")
        assert os.stat(".").st_nlink == 0
        assert os.listdir(".") == []
        mounted.drop_caches()
        assert os.stat(".").st_nlink == 0
        os.chdir("..")
        assert "keep" in os.listdir(".")

    (mnt / "keep").touch()
    in_child(run)


def test_an_open_directory_that_is_removed(mnt: Path, mounted: Mount | Plain) -> None:
    (mnt / "d").mkdir()
    fd = os.open(mnt / "d", os.O_RDONLY)
    os.rmdir(mnt / "d")
    (mnt / "d").mkdir()  # another one of the same name
    (mnt / "d" / "x").touch()
    mounted.drop_caches()
    assert os.fstat(fd).st_nlink == 0
    assert os.fstat(fd).st_ino != os.stat(mnt / "d").st_ino
    os.fsync(fd)
    os.fchmod(fd, 0o711)
    assert os.fstat(fd).st_mode & 0o777 == 0o711
    with fails(errno.ENOENT):
        os.open("x", os.O_RDONLY, dir_fd=fd)
    os.close(fd)


def test_same_name_again_and_again(mnt: Path) -> None:
    """Negative entries and cached attributes must not outlive what they describe."""
    for i in range(300):
        with fails(errno.ENOENT):
            os.stat(mnt / "n")
        if i % 3 == 0:
            (mnt / "n").mkdir()
            assert (mnt / "n").is_dir()
            os.rmdir(mnt / "n")
        elif i % 3 == 1:
            (mnt / "n").write_bytes(b"%d" % i)
            assert (mnt / "n").read_bytes() == b"%d" % i
            os.unlink(mnt / "n")
        else:
            os.symlink(str(i), mnt / "n")
            assert os.readlink(mnt / "n") == str(i)
            os.unlink(mnt / "n")
