"""Who may do what: modes, umask, sticky and setgid directories, privileges that a change takes away, ACLs."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Mount, Plain
from tests.semantics.kit import ALICE, BOB, CREW, acl, as_user, capability, fails, mode, pwrite

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
CAPS = "security.capability"


def owned(path: Path, uid: int, gid: int, bits: int) -> Path:
    """A file with this owner and mode."""
    path.write_bytes(b"content of some length")
    os.chown(path, uid, gid)
    os.chmod(path, bits)
    return path


# -- modes and access checks --------------------------------------------------------------------------------------------


def can(uid: int, path: Path, groups: tuple[int, ...] = ()) -> str:
    """What *uid* really can do with a file: some of "rw"."""

    def run() -> str:
        found = ""
        for letter, flag, bit in (("r", os.O_RDONLY, os.R_OK), ("w", os.O_WRONLY, os.W_OK)):
            try:
                os.close(os.open(path, flag))
            except PermissionError:
                assert not os.access(path, bit)
            else:
                assert os.access(path, bit)
                found += letter
        return found

    return as_user(uid, run, groups=groups)


@pytest.mark.parametrize(
    ("bits", "owner", "group", "other"),
    [(0o600, "rw", "", ""), (0o640, "rw", "r", ""), (0o066, "", "rw", "rw"), (0o604, "rw", "", "r"), (0o246, "w", "r", "rw")],
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
        for attempt in (lambda: os.chmod(f, 0o777), lambda: os.chown(f, BOB, -1), lambda: os.utime(f, (1, 1))):
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
        for attempt in (
            lambda: os.unlink(d / "alice"), lambda: os.rename(d / "alice", d / "x"), lambda: os.rename(d / "bob", d / "alice")
        ):  # fmt: skip
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


# -- setgid directories -------------------------------------------------------------------------------------------------


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


# -- suid, sgid and capabilities go when the content or the owner changes -------------------------------------------------


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
    by_write, by_append, by_ftruncate, by_open_trunc, by_direct, lambda p: os.truncate(p, 4)
]  # fmt: skip


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
def test_roots_chown_clears_suid_sgid_and_capabilities(mnt: Path, mounted: Mount | Plain, owner: tuple[int, int]) -> None:
    f = owned(mnt / "f", ALICE, ALICE, 0o6755)
    os.setxattr(f, CAPS, capability())
    os.chown(f, *owner)
    mounted.drop_caches()
    assert mode(f) == 0o755
    with fails(errno.ENODATA):
        os.getxattr(f, CAPS)


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


# -- ACLs ---------------------------------------------------------------------------------------------------------------


def test_acl_is_enforced(mnt: Path, mounted: Mount | Plain) -> None:
    f = owned(mnt / "f", 0, 0, 0o600)
    os.setxattr(f, ACCESS, acl(6, 0, 0, mask=6, users={ALICE: 4}, groups={CREW: 6}))
    mounted.remount()
    assert can(ALICE, f) == "r"
    assert can(BOB, f) == ""
    assert can(BOB, f, groups=(CREW,)) == "rw"
    os.chmod(f, 0o640)  # changes the mask, not the group entry
    assert can(BOB, f, groups=(CREW,)) == "r"
    assert os.getxattr(f, ACCESS) == acl(6, 0, 0, mask=4, users={ALICE: 4}, groups={CREW: 6})
    os.removexattr(f, ACCESS)
    assert can(ALICE, f) == ""


def test_acl_mask_is_the_group_bits(mnt: Path, mounted: Mount | Plain) -> None:
    f = owned(mnt / "f", 0, 0, 0o644)
    os.setxattr(f, ACCESS, acl(7, 5, 1, mask=3, users={ALICE: 7}))
    assert mode(f) == 0o731
    mounted.drop_caches()
    assert mode(f) == 0o731
    assert ACCESS in os.listxattr(f)


def test_minimal_acl_is_only_the_mode(mnt: Path, mounted: Mount | Plain) -> None:
    f = owned(mnt / "f", 0, 0, 0o644)
    os.setxattr(f, ACCESS, acl(7, 5, 1))
    mounted.drop_caches()
    assert mode(f) == 0o751
    assert ACCESS not in os.listxattr(f)
    with fails(errno.ENODATA):
        os.getxattr(f, ACCESS)


def test_default_acl_is_inherited(mnt: Path, mounted: Mount | Plain) -> None:
    """With a default ACL the umask does not count: the requested mode limits the entries instead."""
    d = mnt / "d"
    d.mkdir()
    default = acl(7, 5, 0, mask=7, users={ALICE: 7})
    os.setxattr(d, DEFAULT, default)
    assert mode(d) == 0o755
    os.umask(0o077)
    os.close(os.open(d / "f", os.O_CREAT | os.O_WRONLY, 0o666))
    os.mkdir(d / "sub", 0o777)
    os.mknod(d / "p", 0o010664)
    os.symlink("t", d / "l")
    mounted.remount()
    assert os.getxattr(d / "f", ACCESS) == acl(6, 5, 0, mask=6, users={ALICE: 7})
    assert mode(d / "f") == 0o660
    assert os.getxattr(d / "sub", ACCESS) == acl(7, 5, 0, mask=7, users={ALICE: 7})
    assert os.getxattr(d / "sub", DEFAULT) == default
    assert mode(d / "sub") == 0o770
    assert os.getxattr(d / "p", ACCESS) == acl(6, 5, 0, mask=6, users={ALICE: 7})
    assert mode(d / "p") == 0o660
    assert os.listxattr(d / "l", follow_symlinks=False) == []
    os.mkdir(d / "sub" / "deep", 0o700)
    assert os.getxattr(d / "sub" / "deep", DEFAULT) == default
    assert mode(d / "sub" / "deep") == 0o700
    assert can(ALICE, d / "f") == "rw"


def test_default_acl_without_mask_limits_the_mode(mnt: Path) -> None:
    d = mnt / "d"
    d.mkdir()
    os.setxattr(d, DEFAULT, acl(7, 5, 1))
    os.umask(0o077)
    os.close(os.open(d / "f", os.O_CREAT | os.O_WRONLY, 0o666))
    os.mkdir(d / "s", 0o777)
    assert mode(d / "f") == 0o640
    assert mode(d / "s") == 0o751
    assert os.listxattr(d / "f") == []
    assert os.listxattr(d / "s") == [DEFAULT]
    os.removexattr(d, DEFAULT)
    os.close(os.open(d / "g", os.O_CREAT | os.O_WRONLY, 0o666))
    assert mode(d / "g") == 0o600


def test_default_acl_and_setgid_together(mnt: Path) -> None:
    d = mnt / "d"
    d.mkdir()
    os.chown(d, 0, CREW)
    os.chmod(d, 0o2777)
    os.setxattr(d, DEFAULT, acl(7, 7, 0))
    as_user(ALICE, lambda: os.mkdir(d / "s"))
    assert mode(d / "s") == 0o2770
    assert os.stat(d / "s").st_gid == CREW


def test_acl_refusals(mnt: Path) -> None:
    f = owned(mnt / "f", 0, 0, 0o666)
    with fails(errno.EACCES):
        os.setxattr(f, DEFAULT, acl(7, 7, 7))  # only directories have one
    for bad in (b"", b"\x01\x00\x00\x00", b"\x02\x00\x00\x00\x01", acl(7, 7, 7, users={ALICE: 7}), acl(7, 7, 7)[:-8]):
        with fails(errno.EINVAL, errno.EOPNOTSUPP, errno.ERANGE, errno.EIO):
            os.setxattr(f, ACCESS, bad)
            if bad == b"":  # some kernels take an empty value as a removal
                raise OSError(errno.EINVAL, "")

    def stranger() -> None:
        with fails(errno.EPERM):
            os.setxattr(f, ACCESS, acl(7, 7, 7))
        with fails(errno.EPERM):
            os.removexattr(f, ACCESS)

    as_user(BOB, stranger)
    assert mode(f) == 0o666


def test_big_acl(mnt: Path, mounted: Mount | Plain) -> None:
    f = owned(mnt / "f", 0, 0, 0o600)
    value = acl(6, 4, 0, mask=6, users={30000 + i: 6 for i in range(200)})
    os.setxattr(f, ACCESS, value)
    mounted.drop_caches()
    assert os.getxattr(f, ACCESS) == value
    assert can(30199, f) == "rw"
    assert can(30200, f) == ""


def test_setting_an_acl_from_outside_the_group_clears_sgid(mnt: Path) -> None:
    """posix_acl_update_mode: else a stranger to the group could make a setgid program."""
    f = owned(mnt / "f", ALICE, CREW, 0o755)
    os.chmod(f, 0o2755)
    as_user(ALICE, lambda: os.setxattr(f, ACCESS, acl(7, 5, 5, mask=5, users={BOB: 4})))
    assert mode(f) == 0o755
