"""Extended attributes of all namespaces."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

import pytest

from tests.harness import Mount, Plain, libc
from tests.semantics.kit import ALICE, as_user, capability, fails, pattern

MAX_VALUE, MAX_NAME = 65536, 255


def all_of(path: Path) -> dict[str, bytes]:
    """Every xattr that a backup program would see."""
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}


def test_set_get_list_remove(mnt: Path, mounted: Mount | Plain) -> None:
    f = mnt / "f"
    f.touch()
    assert os.listxattr(f) == []
    values = {"user.a": b"1", "user.empty": b"", "user.bin": bytes(range(256)), "user.\xfc": b"name", "trusted.t": b"t"}
    for name, value in values.items():
        os.setxattr(f, name, value)
    assert all_of(f) == values
    mounted.remount()
    assert all_of(f) == values
    os.setxattr(f, "user.a", b"longer than before")
    os.removexattr(f, "user.bin")
    mounted.drop_caches()
    assert os.getxattr(f, "user.a") == b"longer than before"
    with fails(errno.ENODATA):
        os.getxattr(f, "user.bin")
    with fails(errno.ENODATA):
        os.removexattr(f, "user.bin")
    assert len(os.listxattr(f)) == 4


def test_every_kind_of_node(mnt: Path, mounted: Mount | Plain) -> None:
    (mnt / "file").touch()
    (mnt / "dir").mkdir()
    os.symlink("t", mnt / "symlink")
    os.mkfifo(mnt / "fifo")
    os.mknod(mnt / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    for n in mnt.iterdir():
        os.setxattr(n, "trusted.note", b"x", follow_symlinks=False)
        if n.name in ("file", "dir"):
            os.setxattr(n, "user.note", b"y")
        else:
            with fails(errno.EPERM):
                os.setxattr(n, "user.note", b"y", follow_symlinks=False)
    mounted.remount()
    for n in mnt.iterdir():
        assert os.getxattr(n, "trusted.note", follow_symlinks=False) == b"x"
        assert ("user.note" in all_of(n)) == (n.name in ("file", "dir"))


def test_create_and_replace(mnt: Path) -> None:
    f = mnt / "f"
    f.touch()
    with fails(errno.ENODATA):
        os.setxattr(f, "user.a", b"x", os.XATTR_REPLACE)
    os.setxattr(f, "user.a", b"1", os.XATTR_CREATE)
    with fails(errno.EEXIST):
        os.setxattr(f, "user.a", b"2", os.XATTR_CREATE)
    assert os.getxattr(f, "user.a") == b"1"
    os.setxattr(f, "user.a", b"3", os.XATTR_REPLACE)
    assert os.getxattr(f, "user.a") == b"3"
    with fails(errno.EINVAL):
        os.setxattr(f, "user.a", b"4", 8)


def test_small_buffers(mnt: Path) -> None:
    """ERANGE, and the size when asked with none: through libc, as Python grows its buffer by itself."""
    f = mnt / "f"
    f.touch()
    os.setxattr(f, "user.a", b"12345")
    buffer = ctypes.create_string_buffer(100)
    path = os.fsencode(f)
    assert libc.getxattr(path, b"user.a", None, 0) == 5
    assert libc.getxattr(path, b"user.a", buffer, 4) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert libc.getxattr(path, b"user.a", buffer, 5) == 5
    size = libc.listxattr(path, None, 0)
    assert size >= 7
    assert libc.listxattr(path, buffer, size - 1) == -1
    assert ctypes.get_errno() == errno.ERANGE
    assert libc.listxattr(path, buffer, size) == size


@pytest.mark.beyond("ext4")
def test_big_values(mnt: Path, mounted: Mount | Plain) -> None:
    sizes = (2000, 4000, 16384, 65535, MAX_VALUE)
    for size in sizes:
        (mnt / str(size)).touch()
        os.setxattr(mnt / str(size), "trusted.big", pattern(size))
    mounted.remount()
    for size in sizes:
        assert os.getxattr(mnt / str(size), "trusted.big") == pattern(size)


def test_limits(mnt: Path) -> None:
    f = mnt / "f"
    f.touch()
    with fails(errno.E2BIG):
        os.setxattr(f, "user.a", b"x" * (MAX_VALUE + 1))
    name = "user." + "n" * (MAX_NAME - 5)
    os.setxattr(f, name, b"x")
    assert os.getxattr(f, name) == b"x"
    with fails(errno.ERANGE):
        os.setxattr(f, name + "n", b"x")
    with fails(errno.EOPNOTSUPP, errno.EINVAL):
        os.setxattr(f, "nonamespace", b"x")
    with fails(errno.EINVAL, errno.EOPNOTSUPP):
        os.setxattr(f, "user.", b"x")
    assert os.listxattr(f) == [name]


@pytest.mark.beyond("ext4", "tmpfs")
def test_many_names(mnt: Path, mounted: Mount | Plain) -> None:
    f = mnt / "f"
    f.touch()
    want = {f"user.name{i:04}": b"value %d" % i for i in range(1500)}
    for name, value in want.items():
        os.setxattr(f, name, value)
    mounted.drop_caches()
    assert all_of(f) == want
    for name in list(want)[::2]:
        os.removexattr(f, name)
        del want[name]
    mounted.remount()
    assert all_of(f) == want


def test_user_namespace_follows_the_mode(mnt: Path) -> None:
    f = mnt / "f"
    f.touch()
    os.chmod(f, 0o644)
    os.setxattr(f, "user.a", b"x")
    os.setxattr(f, "trusted.t", b"x")

    def stranger() -> None:
        assert os.getxattr(f, "user.a") == b"x"
        with fails(errno.EACCES):
            os.setxattr(f, "user.a", b"y")
        with fails(errno.EACCES):
            os.removexattr(f, "user.a")
        with fails(errno.EPERM):
            os.setxattr(f, "trusted.t", b"y")
        with fails(errno.ENODATA):
            os.getxattr(f, "trusted.t")

    as_user(ALICE, stranger)
    os.chmod(f, 0o600)

    def shut_out() -> None:
        with fails(errno.EACCES):
            os.getxattr(f, "user.a")

    as_user(ALICE, shut_out)


def test_trusted_names_are_listed_for_root_only(mnt: Path) -> None:
    """Otherwise cp and rsync of a normal user fail on names that they are shown and may not read."""
    f = mnt / "f"
    f.touch()
    os.chmod(f, 0o644)
    os.setxattr(f, "trusted.t", b"x")
    os.setxattr(f, "user.u", b"x")
    assert sorted(os.listxattr(f)) == ["trusted.t", "user.u"]
    assert as_user(ALICE, lambda: os.listxattr(f)) == ["user.u"]


def test_user_xattrs_on_a_sticky_directory_are_its_owners(mnt: Path) -> None:
    d = mnt / "d"
    d.mkdir()
    os.chmod(d, 0o1777)

    def stranger() -> None:
        with fails(errno.EPERM):
            os.setxattr(d, "user.a", b"y")

    as_user(ALICE, stranger)
    os.setxattr(d, "user.a", b"y")


def test_security_namespace(mnt: Path, mounted: Mount | Plain) -> None:
    f = mnt / "f"
    f.touch()
    os.setxattr(f, "security.capability", capability())
    os.setxattr(f, "security.nnfs-test", b"label")
    mounted.remount()
    assert os.getxattr(f, "security.capability") == capability()
    assert os.getxattr(f, "security.nnfs-test") == b"label"
    assert sorted(os.listxattr(f)) == ["security.capability", "security.nnfs-test"]
    with fails(errno.EINVAL):
        os.setxattr(f, "security.capability", b"nonsense")


def test_xattrs_belong_to_the_inode(mnt: Path, mounted: Mount | Plain) -> None:
    f = mnt / "f"
    f.touch()
    os.link(f, mnt / "g")
    os.setxattr(f, "user.a", b"x")
    assert os.getxattr(mnt / "g", "user.a") == b"x"
    os.rename(f, mnt / "h")
    mounted.drop_caches()
    assert os.getxattr(mnt / "h", "user.a") == b"x"
    (mnt / "new").touch()
    os.rename(mnt / "new", mnt / "h")
    assert os.listxattr(mnt / "h") == []
    assert os.getxattr(mnt / "g", "user.a") == b"x"
    os.unlink(mnt / "g")
    (mnt / "g").touch()
    assert os.listxattr(mnt / "g") == []


def test_xattr_changes_ctime_only(mnt: Path) -> None:
    f = mnt / "f"
    f.touch()
    os.utime(f, ns=(1, 2))
    before = os.stat(f)
    os.setxattr(f, "user.a", b"x")
    after = os.stat(f)
    assert (after.st_atime_ns, after.st_mtime_ns) == (1, 2)
    assert after.st_ctime_ns >= before.st_ctime_ns


def test_through_a_handle_of_an_unlinked_file(mnt: Path) -> None:
    with (mnt / "f").open("wb") as f:
        os.unlink(mnt / "f")
        os.setxattr(f.fileno(), "user.a", b"x")
        assert os.getxattr(f.fileno(), "user.a") == b"x"
        assert os.listxattr(f.fileno()) == ["user.a"]
        os.removexattr(f.fileno(), "user.a")
