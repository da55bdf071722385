"""Attributes without a mount: what is shown, and what a change takes along with it."""

from __future__ import annotations

import errno
import stat

import pytest

from nnfs.errors import FsError
from nnfs.fs import acl, attributes
from nnfs.fs.apply import RELEASE_NODES
from nnfs.fs.attributes import Attributes, Caller, Change, drop_privileges
from nnfs.fs.xattrs import ACL_ACCESS
from nnfs.store import schema
from nnfs.store.schema import Inode
from tests.fs.test_apply import Files, files

__all__ = ["files"]  # a fixture

FILE, FOLDER = stat.S_IFREG, stat.S_IFDIR
GROUP = 50  # of the file
BITS = acl.pack([acl.Entry(acl.USER_OBJ, 7), acl.Entry(acl.GROUP_OBJ, 5), acl.Entry(acl.OTHER, 5)])


def named(value: object) -> str:
    """Return what a case is called, without the address of a function: xdist's processes must agree."""
    return f"user {value.uid}, group {value.gid}" if isinstance(value, Caller) else str(value)


def no_look_up() -> set[int]:
    raise AssertionError("groups were looked up without need")


ROOT = Caller(0, 0, no_look_up)
USER = Caller(1000, 1000, set)


@pytest.fixture
def inodes(files: Files) -> Attributes:
    return Attributes(files.fs, files.names.xattrs)


@pytest.fixture
def file(files: Files) -> Inode:
    inode = files.create(b"f", 1000)
    inode.mode, inode.gid = FILE | 0o6755, GROUP
    return inode


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (FILE | 0o6755, FILE | 0o755),
        (FILE | 0o6745, FILE | 0o2745),  # without execution for the group, sgid means locking
        (FOLDER | 0o6755, FOLDER | 0o6755),
    ],
    ids=oct,
)
def test_privileges(before: int, after: int) -> None:
    inode = Inode(20, before, 0, 0, 0)
    drop_privileges(inode)
    assert inode.mode == after


@pytest.mark.parametrize(
    ("wanted", "caller", "stays"),
    [
        (Change(uid=7), ROOT, False),
        (Change(gid=7), USER, False),
        (Change(size=1000), USER, False),
        (Change(size=1000), ROOT, True),
        (Change(), USER, False),  # FUSE_HANDLE_KILLPRIV_V2 asks for nothing else
        (Change(), ROOT, True),
        (Change(atime=1), USER, True),
        (Change(mode=0o6755), USER, True),
        (Change(mode=0o6755, size=3), USER, False),
        (Change(ctime=1), USER, True),
    ],
    ids=named,
)
def test_a_change_takes_suid_along(
    inodes: Attributes, file: Inode, wanted: Change, caller: Caller, stays: bool
) -> None:
    inodes.change(file, wanted, caller)
    assert file.mode == FILE | (0o6755 if stays else 0o755)


def test_times_of_a_change(inodes: Attributes, file: Inode) -> None:
    for wanted in (Change(atime=1 << 63), Change(mtime=-(1 << 70)), Change(ctime=1 << 70)):
        with pytest.raises(FsError) as caught:
            wanted.check()
        assert caught.value.errno == errno.EINVAL
    greatest = Change(atime=(1 << 63) - 1, mtime=-(1 << 63), ctime=5)
    greatest.check()
    inodes.change(file, greatest, ROOT)
    assert (file.atime, file.mtime, file.ctime) == ((1 << 63) - 1, -(1 << 63), 5)
    inodes.change(file, Change(mode=0o600), ROOT)
    assert (file.atime, file.mtime) == ((1 << 63) - 1, -(1 << 63))
    assert file.ctime > 5
    inodes.change(file, Change(size=0), ROOT)
    assert file.mtime == file.ctime > 5


@pytest.mark.parametrize(
    ("name", "mode", "caller", "stays"),
    [
        (ACL_ACCESS, 0o2755, USER, False),
        (ACL_ACCESS, 0o2755, Caller(1000, GROUP, no_look_up), True),
        (ACL_ACCESS, 0o2755, Caller(1000, 1000, lambda: {3, GROUP}), True),
        (ACL_ACCESS, 0o2755, ROOT, True),
        (ACL_ACCESS, 0o755, Caller(1000, 1000, no_look_up), False),
        (b"user.x", 0o2755, Caller(1000, 1000, no_look_up), True),
    ],
)
def test_an_acl_may_take_setgid(
    inodes: Attributes, file: Inode, name: bytes, mode: int, caller: Caller, stays: bool
) -> None:
    file.mode = FILE | mode
    inodes.set_xattr(file, name, BITS if name == ACL_ACCESS else b"value", caller)
    assert file.mode == FILE | 0o755 | (stat.S_ISGID if stays else 0)


def test_trusted_attributes_are_shown_to_root(inodes: Attributes, file: Inode) -> None:
    for name in (b"user.a", b"trusted.b"):
        inodes.set_xattr(file, name, b"1", ROOT)
    assert inodes.xattr_names(file, ROOT) == [b"trusted.b", b"user.a"]
    assert inodes.xattr_names(file, USER) == [b"user.a"]


@pytest.mark.parametrize(
    ("stored", "count", "dirty", "shown"),
    [(0, 0, 0, 0), (0, 3, 0, 1), (1, 1, 0, 1), (512, 1, 0, 1), (512, 1, 1, 2), (0, 0, 4096, 8)],
)
def test_st_blocks(stored: int, count: int, dirty: int, shown: int) -> None:
    inode = Inode(20, FILE, 0, 0, 0)
    inode.stored, inode.count, inode.size = stored, count, 1 << 40
    assert (attributes.blocks(inode, dirty), attributes.size(inode)) == (shown, 1 << 40)
    folder = Inode(21, FOLDER, 0, 0, 0)
    folder.count = 3
    assert attributes.size(folder) == 96


def test_truncation(inodes: Attributes, file: Inode, files: Files) -> None:
    next_ino = files.fs.state.next_ino
    assert inodes.spare(file, 0) == 0
    file.count = RELEASE_NODES * schema.NODE_SPAN + 1
    assert inodes.spare(file, 1000) == 0
    assert inodes.spare(file, 999) == next_ino
    inodes.resized(file, 999)
    assert file.size == 999
    for kind, code in ((FOLDER, errno.EISDIR), (stat.S_IFIFO, errno.EINVAL), (stat.S_IFLNK, errno.EINVAL)):
        with pytest.raises(FsError) as caught:
            inodes.spare(Inode(20, kind, 0, 0, 0), 0)
        assert caught.value.errno == code


@pytest.mark.parametrize(("caller", "mode"), [(ROOT, 0o6755), (USER, 0o755)], ids=["root", "user"])
def test_an_open_that_truncates(inodes: Attributes, file: Inode, caller: Caller, mode: int) -> None:
    file.mtime = file.ctime = 0
    inodes.emptied(file, caller)
    assert file.mode == FILE | mode
    assert file.mtime == file.ctime > 0


def test_a_write_extends_and_never_cuts(inodes: Attributes, file: Inode) -> None:
    inodes.written(file, 900)
    assert file.size == 1000
    inodes.written(file, 1001)
    assert file.size == 1001


@pytest.mark.parametrize(
    ("ago", "moves"), [(0, False), (4 * 10**6, False), (10**9 - 1, False), (10**9, True), (-1, True), (10**12, True)]
)
def test_a_write_soon_after_the_kernels_times_leaves_them(
    inodes: Attributes, file: Inode, ago: int, moves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its write(2) may have been in the same tick: then the kernel shows those times, and sends no others."""
    now = 10**18
    monkeypatch.setattr("nnfs.fs.attributes.time.time_ns", lambda: now)
    file.mtime, file.ctime = now - ago, now - ago + 1
    inodes.written(file, 10)
    assert (file.mtime, file.ctime) == ((now, now) if moves else (now - ago, now - ago + 1))


@pytest.mark.parametrize("free", [-5, 0, 4095, 4096, 10 * 4096 + 1])
def test_figures_of_statfs(
    inodes: Attributes, files: Files, file: Inode, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(files.store), "physical_bytes", lambda _: 7 * 4096 + 5)
    units = max(0, free) // 4096
    assert inodes.figures(free, 0, file.ino) == (7 + units, units, units, 2 + units, units)
    assert inodes.figures(free, 4096, file.ino) == (6 + units, units, units, 2 + units, units)
    assert inodes.figures(free, 1 << 30, file.ino) == (units, units, units, 2 + units, units)


def test_a_long_target_is_refused(files: Files) -> None:
    def make(target: bytes) -> Inode:
        name = b"link%d" % len(target)
        return files.names.create(schema.ROOT_INO, name, stat.S_IFLNK | 0o777, 0, 0, 0, target=target)

    assert make(b"x" * schema.SYMLINK_MAX).size == schema.SYMLINK_MAX
    with pytest.raises(FsError) as caught:
        make(b"x" * (schema.SYMLINK_MAX + 1))
    assert caught.value.errno == errno.ENAMETOOLONG
