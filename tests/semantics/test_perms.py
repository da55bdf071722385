"""Permissions: modes, umask, sticky and setgid directories, privileges that a change takes away."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Mount, Plain
from tests.semantics.kit import ALICE, BOB, CREW, as_user, can, capability, fails, mode, owned, pwrite

CAPS = "security.capability"


# -- modes and access checks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "owner", "group", "other"),
    [
        (0o600, "rw", "", ""),
        (0o640, "rw", "r", ""),
        (0o066, "", "rw", "rw"),
        (0o604, "rw", "", "r"),
        (0o246, "w", "r", "rw"),
    ],
)
def test_the_first_class_that_fits_decides(mnt: Path, bits: int, owner: str, group: str, other: str) -> None:
    f = owned(mnt / "f", ALICE, CREW, bits)
    assert can(ALICE, f) == owner
    assert can(BOB, f, groups=(CREW,)) == group
    assert can(BOB, f) == other


def test_directories_need_search_write_and_read(mnt: Path) -> None:
    d = mnt / "d"
    d.mkdir()
    (d / "f").touch(0o666)
    os.chmod(d, 0o711)
    as_user(ALICE, lambda: os.stat(d / "f"))

    def no_list() -> None:
        with fails(errno.EACCES):
            os.listdir(d)
        with fails(errno.EACCES):
            os.unlink(d / "f")
        with fails(errno.EACCES):
            os.mkdir(d / "x")

    as_user(ALICE, no_list)
    os.chmod(d, 0o744)

    def no_search() -> None:
        assert os.listdir(d) == ["f"]
        with fails(errno.EACCES):
            os.stat(d / "f")

    as_user(ALICE, no_search)


def test_only_the_owner_changes_metadata(mnt: Path) -> None:
    f = owned(mnt / "f", ALICE, ALICE, 0o666)

    def stranger() -> None:
        attempts: tuple[Callable[[], None], ...] = (
            lambda: os.chmod(f, 0o777),
            lambda: os.chown(f, BOB, -1),
            lambda: os.utime(f, (1, 1)),
        )
        for attempt in attempts:
            with fails(errno.EPERM):
                attempt()
        os.utime(f)  # to now: allowed to whoever may write

    as_user(BOB, stranger)

    def owner() -> None:
        os.chmod(f, 0o600)
        os.utime(f, (1, 1))
        with fails(errno.EPERM):
            os.chown(f, BOB, -1)
        with fails(errno.EPERM):
            os.chown(f, -1, BOB)
        os.chown(f, -1, CREW)

    as_user(ALICE, owner, groups=(CREW,))
    assert (os.stat(f).st_uid, os.stat(f).st_gid, mode(f)) == (ALICE, CREW, 0o600)
    assert os.stat(f).st_mtime == 1

    def unwritable() -> None:
        with fails(errno.EACCES):
            os.utime(f)

    as_user(BOB, unwritable)


def test_owner_and_group_of_new_nodes(mnt: Path) -> None:
    def run() -> None:
        (mnt / "f").touch()
        (mnt / "d").mkdir()
        os.symlink("t", mnt / "l")

    as_user(ALICE, run, gid=CREW)
    for name in "fdl":
        st = os.lstat(mnt / name)
        assert (st.st_uid, st.st_gid) == (ALICE, CREW)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o027, 0o077, 0o777])
def test_umask(mnt: Path, mask: int) -> None:
    os.umask(mask)
    os.close(os.open(mnt / "f", os.O_CREAT | os.O_WRONLY, 0o6777))
    os.mkdir(mnt / "d", 0o1777)
    os.mknod(mnt / "n", 0o010666)
    os.symlink("t", mnt / "l")
    assert mode(mnt / "f") == 0o6777 & ~mask
    assert mode(mnt / "d") == 0o1777 & ~mask
    assert mode(mnt / "n") == 0o666 & ~mask
    assert mode(mnt / "l") == 0o777


def test_chmod_keeps_all_twelve_bits(mnt: Path, mounted: Mount | Plain) -> None:
    (mnt / "f").touch()
    (mnt / "d").mkdir()
    for bits in (0o7777, 0o4000, 0o2000, 0o1000, 0o0000, 0o4711, 0o2755, 0o1777):
        os.chmod(mnt / "f", bits)
        os.chmod(mnt / "d", bits)
        mounted.drop_caches()
        assert mode(mnt / "f") == mode(mnt / "d") == bits


def test_sticky_directory(mnt: Path) -> None:
    d = mnt / "tmp"
    d.mkdir()
    os.chmod(d, 0o1777)
    owned(d / "alice", ALICE, ALICE, 0o666)
    owned(d / "bob", BOB, BOB, 0o666)

    def stranger() -> None:
        attempts: tuple[Callable[[], None], ...] = (
            lambda: os.unlink(d / "alice"),
            lambda: os.rename(d / "alice", d / "x"),
            lambda: os.rename(d / "bob", d / "alice"),
        )
        for attempt in attempts:
            with fails(errno.EPERM):
                attempt()
        os.rename(d / "bob", d / "bob2")
        os.unlink(d / "bob2")

    as_user(BOB, stranger)
    assert os.listdir(d) == ["alice"]
    os.chown(d, BOB, BOB)
    as_user(BOB, lambda: os.unlink(d / "alice"))  # the directory's owner may


def test_renaming_a_directory_needs_write_on_it(mnt: Path) -> None:
    """Its .. changes, so moving it elsewhere wants write permission on the directory itself."""
    for name in ("a", "b"):
        (mnt / name).mkdir()
        os.chmod(mnt / name, 0o777)
    (mnt / "a" / "d").mkdir(0o755)

    def run() -> None:
        with fails(errno.EACCES):
            os.rename(mnt / "a" / "d", mnt / "b" / "d")
        os.rename(mnt / "a" / "d", mnt / "a" / "e")

    as_user(ALICE, run)


# -- setgid directories -----------------------------------------------------------------------------------------------


def test_setgid_directory_gives_its_group_and_bit(mnt: Path, mounted: Mount | Plain) -> None:
    d = mnt / "d"
    d.mkdir()
    os.chown(d, 0, CREW)
    os.chmod(d, 0o2777)

    def run() -> None:
        (d / "f").touch()
        (d / "sub").mkdir()
        (d / "sub" / "deep").mkdir()
        os.symlink("t", d / "l")
        os.mkfifo(d / "p")

    as_user(ALICE, run)
    mounted.drop_caches()
    for name in ("f", "sub", "sub/deep", "l", "p"):
        st = os.lstat(d / name)
        assert (st.st_uid, st.st_gid) == (ALICE, CREW), name
        assert bool(st.st_mode & 0o2000) == (name.startswith("sub")), name


def test_setgid_is_not_smuggled_into_a_foreign_group(mnt: Path) -> None:
    """A stranger to the directory's group gets no setgid executable of it (CVE-2018-13405)."""
    d = mnt / "d"
    d.mkdir()
    os.chown(d, 0, CREW)
    os.chmod(d, 0o2777)
    os.umask(0)

    def make() -> None:
        os.close(os.open(d / f"f{os.getuid()}", os.O_CREAT | os.O_WRONLY, 0o2777))

    as_user(ALICE, make)
    as_user(BOB, make, groups=(CREW,))
    assert mode(d / f"f{ALICE}") == 0o777
    assert mode(d / f"f{BOB}") == 0o2777
    f = owned(mnt / "g", ALICE, CREW, 0o755)
    as_user(ALICE, lambda: os.chmod(f, 0o2755))
    assert mode(f) == 0o755
    as_user(ALICE, lambda: os.chmod(f, 0o2755), groups=(CREW,))
    assert mode(f) == 0o2755


# -- suid, sgid and capabilities go when the content or the owner changes ---------------------------------------------


def by_write(path: Path) -> None:
    """One byte."""
    pwrite(path, b"X", 3)


def by_append(path: Path) -> None:
    """One byte at the end."""
    with path.open("ab") as f:
        f.write(b"Y")


def by_ftruncate(path: Path) -> None:
    """Through a handle."""
    with path.open("r+b") as f:
        f.truncate(5)


def by_open_trunc(path: Path) -> None:
    """O_TRUNC."""
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def by_direct(path: Path) -> None:
    """O_DIRECT."""
    buffer = mmap.mmap(-1, 4096)
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
    os.pwritev(fd, [buffer], 0)
    os.close(fd)


CHANGES: list[Callable[[Path], None]] = [
    by_write,
    by_append,
    by_ftruncate,
    by_open_trunc,
    by_direct,
    lambda p: os.truncate(p, 4),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("before", "after"), [(0o6755, 0o755), (0o6711, 0o711), (0o4755, 0o755)])
def test_a_users_change_clears_suid_and_sgid(
    mnt: Path, mounted: Mount | Plain, change: Callable[[Path], None], before: int, after: int
) -> None:
    f = owned(mnt / "f", ALICE, ALICE, before)
    as_user(ALICE, lambda: change(f))
    assert mode(f) == after
    mounted.drop_caches()
    assert mode(f) == after


@pytest.mark.parametrize("change", CHANGES)
def test_roots_change_keeps_suid_but_not_capabilities(mnt: Path, change: Callable[[Path], None]) -> None:
    f = owned(mnt / "f", ALICE, ALICE, 0o6755)
    os.setxattr(f, CAPS, capability())
    change(f)
    assert mode(f) == 0o6755
    with fails(errno.ENODATA):
        os.getxattr(f, CAPS)


def test_sgid_without_group_execute_stays(mnt: Path) -> None:
    """The old mark of mandatory locking: by the file's own group it is kept."""
    f = owned(mnt / "f", ALICE, ALICE, 0o2644)
    as_user(ALICE, lambda: by_write(f))
    assert mode(f) == 0o2644


@pytest.mark.parametrize("owner", [(ALICE, -1), (-1, CREW), (BOB, BOB)])
def test_roots_chown_clears_suid_sgid_and_capabilities(
    mnt: Path, mounted: Mount | Plain, owner: tuple[int, int]
) -> None:
    f = owned(mnt / "f", ALICE, ALICE, 0o6755)
    os.setxattr(f, CAPS, capability())
    os.chown(f, *owner)
    mounted.drop_caches()
    assert mode(f) == 0o755
    with fails(errno.ENODATA):
        os.getxattr(f, CAPS)


def test_chown_clears_suid_of_what_is_no_directory(mnt: Path, mounted: Mount | Plain) -> None:
    """Found by the random walk beside tmpfs: a fifo kept its bits."""
    for kind in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFREG):
        n = mnt / f"n{kind}"
        os.mknod(n, kind | 0o600, 0)
        os.chmod(n, 0o6770)
        os.chown(n, ALICE, CREW)
        assert mode(n) == 0o770
        mounted.drop_caches()
        assert mode(n) == 0o770


def test_a_users_chgrp_clears_suid(mnt: Path) -> None:
    f = owned(mnt / "f", ALICE, ALICE, 0o6755)
    as_user(ALICE, lambda: os.chown(f, -1, CREW), groups=(CREW,))
    assert mode(f) == 0o755
    assert os.stat(f).st_gid == CREW


def test_chown_of_a_directory_keeps_its_bits(mnt: Path) -> None:
    (mnt / "d").mkdir()
    os.chmod(mnt / "d", 0o6755)
    os.chown(mnt / "d", ALICE, ALICE)
    assert mode(mnt / "d") == 0o6755
