"""Nodes of all kinds, their names, their links."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Mount, Plain, libc
from tests.semantics.kit import ALICE, AT_FDCWD, BOB, as_user, checked, fails, mode, pattern

KINDS = {"file": stat.S_IFREG, "fifo": stat.S_IFIFO, "char": stat.S_IFCHR, "block": stat.S_IFBLK, "sock": stat.S_IFSOCK}


def test_mknod_keeps_type_mode_and_number(mnt: Path, mounted: Mount | Plain) -> None:
    devices = {kind: os.makedev(259, 70000) if kind in ("char", "block") else 0 for kind in KINDS}
    for kind, device in devices.items():
        os.mknod(mnt / kind, KINDS[kind] | 0o640, device)
    mounted.remount()
    for kind, device in devices.items():
        st = os.lstat(mnt / kind)
        assert stat.S_IFMT(st.st_mode) == KINDS[kind]
        assert stat.S_IMODE(st.st_mode) == 0o640
        assert st.st_rdev == device
        assert (st.st_nlink, st.st_size, st.st_blocks) == (1, 0, 0)
        with fails(errno.EEXIST):
            os.mknod(mnt / kind, KINDS[kind] | 0o600, device)
        os.unlink(mnt / kind)
    assert os.listdir(mnt) == []


def test_fifo_carries_bytes(mnt: Path) -> None:
    os.mkfifo(mnt / "f", 0o600)
    reader = os.open(mnt / "f", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(mnt / "f", os.O_WRONLY)
    os.write(writer, b"through the pipe")
    assert os.read(reader, 100) == b"through the pipe"
    os.close(writer)
    os.close(reader)
    with fails(errno.ENXIO):
        os.open(mnt / "f", os.O_WRONLY | os.O_NONBLOCK)


def test_socket_binds_and_connects(mnt: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(mnt / "s"))
        server.listen()
        client.connect(str(mnt / "s"))
        client.sendall(b"hello")
        peer, _ = server.accept()
        with peer:
            assert peer.recv(5) == b"hello"
        assert stat.S_ISSOCK(os.lstat(mnt / "s").st_mode)
        with fails(errno.EADDRINUSE), socket.socket(socket.AF_UNIX) as second:
            second.bind(str(mnt / "s"))
    os.unlink(mnt / "s")


@pytest.mark.nnfs_only("a plain directory may allow devices")
def test_devices_do_not_open_by_default(mnt: Path) -> None:
    os.mknod(mnt / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with fails(errno.EACCES):
        os.open(mnt / "null", os.O_RDONLY)


def test_only_root_makes_devices(mnt: Path) -> None:
    def run() -> None:
        with fails(errno.EPERM):
            os.mknod(mnt / "c", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mkfifo(mnt / "f")

    as_user(ALICE, run)
    assert os.lstat(mnt / "f").st_uid == ALICE


def test_symlink_target_of_any_length(mnt: Path, mounted: Mount | Plain) -> None:
    targets = {size: (b"\xff/target" * 600)[:size] for size in (1, 59, 60, 1000, 4094)}
    for size, target in targets.items():
        os.symlink(target, os.fsencode(mnt / f"l{size}"))
        assert os.readlink(os.fsencode(mnt / f"l{size}")) == target
    mounted.remount()
    for size, target in targets.items():
        assert os.readlink(os.fsencode(mnt / f"l{size}")) == target
        st = os.lstat(mnt / f"l{size}")
        assert (stat.S_IFMT(st.st_mode), st.st_size) == (stat.S_IFLNK, size)


@pytest.mark.beyond("ext4")
def test_symlink_target_of_4095_bytes(mnt: Path, mounted: Mount | Plain) -> None:
    target = b"x" * 4095
    os.symlink(target, os.fsencode(mnt / "l"))
    mounted.remount()
    assert os.readlink(os.fsencode(mnt / "l")) == target
    assert os.lstat(mnt / "l").st_size == 4095
    with fails(errno.ENAMETOOLONG):
        os.symlink(b"x" * 4096, os.fsencode(mnt / "m"))


def test_symlinks_are_followed_and_loops_end(mnt: Path) -> None:
    (mnt / "d").mkdir()
    (mnt / "d" / "f").write_bytes(b"content")
    os.symlink("d", mnt / "rel")
    os.symlink(mnt / "d" / "f", mnt / "abs")
    os.symlink("nowhere", mnt / "dangling")
    os.symlink("loop", mnt / "loop")
    assert (mnt / "rel" / "f").read_bytes() == (mnt / "abs").read_bytes() == b"content"
    with fails(errno.ENOENT):
        os.stat(mnt / "dangling")
    with fails(errno.ELOOP):
        os.stat(mnt / "loop")
    with fails(errno.ELOOP):
        os.open(mnt / "abs", os.O_RDONLY | os.O_NOFOLLOW)
    with fails(errno.EINVAL):
        os.readlink(mnt / "d")
    with fails(errno.EEXIST):
        os.open(mnt / "dangling", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(os.open(mnt / "dangling", os.O_CREAT | os.O_WRONLY))
    assert (mnt / "nowhere").exists()
    with fails(errno.EEXIST):
        os.symlink("other", mnt / "rel")


def test_symlink_owner_changes_without_its_target(mnt: Path) -> None:
    (mnt / "f").touch()
    os.symlink("f", mnt / "l")
    os.lchown(mnt / "l", ALICE, BOB)
    assert (os.lstat(mnt / "l").st_uid, os.lstat(mnt / "l").st_gid) == (ALICE, BOB)
    assert os.stat(mnt / "l").st_uid == 0
    assert mode(mnt / "l") == 0o777


def test_hard_links_are_one_file(mnt: Path, mounted: Mount | Plain) -> None:
    (mnt / "a").write_bytes(b"one")
    (mnt / "d").mkdir()
    before = os.stat(mnt / "a")
    os.link(mnt / "a", mnt / "d" / "b")
    after = os.stat(mnt / "a")
    assert after.st_nlink == 2
    assert after.st_ctime_ns >= before.st_ctime_ns
    assert after.st_mtime_ns == before.st_mtime_ns
    assert os.path.samefile(mnt / "a", mnt / "d" / "b")
    (mnt / "d" / "b").write_bytes(b"changed by the other name")
    assert (mnt / "a").read_bytes() == b"changed by the other name"
    os.chmod(mnt / "a", 0o600)
    mounted.remount()
    assert mode(mnt / "d" / "b") == 0o600
    assert os.path.samefile(mnt / "a", mnt / "d" / "b")
    os.unlink(mnt / "a")
    assert os.stat(mnt / "d" / "b").st_nlink == 1
    assert (mnt / "d" / "b").read_bytes() == b"changed by the other name"


def test_link_of_every_kind_but_directories(mnt: Path) -> None:
    os.mkfifo(mnt / "fifo")
    os.symlink("nowhere", mnt / "sym")
    (mnt / "dir").mkdir()
    for name in ("fifo", "sym"):
        os.link(mnt / name, mnt / f"{name}2", follow_symlinks=False)
        assert os.lstat(mnt / name).st_ino == os.lstat(mnt / f"{name}2").st_ino
        assert os.lstat(mnt / name).st_nlink == 2
    with fails(errno.EPERM):
        os.link(mnt / "dir", mnt / "dir2")
    with fails(errno.EEXIST):
        os.link(mnt / "fifo", mnt / "sym", follow_symlinks=False)
    with fails(errno.ENOENT):
        os.link(mnt / "none", mnt / "none2")
    with fails(errno.ENOTDIR):
        os.link(mnt / "fifo", mnt / "fifo2" / "x")


def test_many_hard_links(mnt: Path, mounted: Mount | Plain) -> None:
    (mnt / "f").write_bytes(b"x")
    for i in range(1000):
        os.link(mnt / "f", mnt / f"l{i}")
    mounted.drop_caches()
    assert os.stat(mnt / "f").st_nlink == 1001
    for i in range(0, 1000, 2):
        os.unlink(mnt / f"l{i}")
    mounted.remount()
    assert os.stat(mnt / "l999").st_nlink == 501


NAMES = [
    b"\xff\xfe\x80 not utf-8",
    b"new\nline",
    b"\\",
    b"-rf",
    b"*",
    b"...",
    b" ",
    b"\x01\x7f",
    "ü漢😀".encode(),
    b"e\xcc\x81",
    b"\xc3\xa9",
    b"n" * 255,
    b"\xf0" * 255,
    b"A",
    b"a",
]


def test_names_are_bytes(mnt: Path, mounted: Mount | Plain) -> None:
    base = os.fsencode(mnt)
    for i, name in enumerate(NAMES):
        Path(os.fsdecode(base + b"/" + name)).write_bytes(b"%d" % i)
    assert sorted(os.listdir(base)) == sorted(NAMES)
    mounted.remount()
    assert sorted(os.listdir(base)) == sorted(NAMES)
    for i, name in enumerate(NAMES):
        assert Path(os.fsdecode(base + b"/" + name)).read_bytes() == b"%d" % i
        os.rename(base + b"/" + name, base + b"/" + b"x" + name[:254])
        os.unlink(base + b"/" + b"x" + name[:254])
    assert os.listdir(base) == []


def test_names_of_256_bytes_are_too_long(mnt: Path) -> None:
    long = mnt / ("n" * 256)
    (mnt / "f").touch()
    (mnt / "d").mkdir()
    attempts: list[Callable[[], object]] = [
        lambda: os.open(long, os.O_CREAT | os.O_WRONLY),
        lambda: os.mkdir(long),
        lambda: os.symlink("t", long),
        lambda: os.link(mnt / "f", long),
        lambda: os.rename(mnt / "f", long),
        lambda: os.mkfifo(long),
        lambda: os.stat(long),
        lambda: os.unlink(long),
        lambda: os.rmdir(long),
        lambda: os.rename(long, mnt / "g"),
    ]
    for attempt in attempts:
        with fails(errno.ENAMETOOLONG):
            attempt()
    assert sorted(os.listdir(mnt)) == ["d", "f"]


def test_inode_numbers_are_stable_and_distinct(mnt: Path, mounted: Mount | Plain) -> None:
    for i in range(200):
        (mnt / f"f{i}").touch()
    numbers = {p.name: p.lstat().st_ino for p in mnt.iterdir()}
    assert len(set(numbers.values())) == 200
    listed = {e.name: e.inode() for e in os.scandir(mnt)}
    assert listed == numbers
    mounted.remount()
    assert {p.name: p.lstat().st_ino for p in mnt.iterdir()} == numbers


def test_scandir_knows_types(mnt: Path) -> None:
    (mnt / "d").mkdir()
    (mnt / "f").touch()
    os.symlink("d", mnt / "l")
    os.mkfifo(mnt / "p")
    kinds = {
        e.name: (e.is_dir(follow_symlinks=False), e.is_file(follow_symlinks=False), e.is_symlink())
        for e in os.scandir(mnt)
    }
    assert kinds == {
        "d": (True, False, False),
        "f": (False, True, False),
        "l": (False, False, True),
        "p": (False, False, False),
    }


def test_open_flags(mnt: Path) -> None:
    f = mnt / "f"
    with fails(errno.ENOENT):
        os.open(f, os.O_RDWR)
    fd = os.open(f, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    os.write(fd, pattern(100))
    os.close(fd)
    with fails(errno.EEXIST):
        os.open(f, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    fd = os.open(f, os.O_CREAT | os.O_RDONLY, 0o777)
    with fails(errno.EBADF):
        os.write(fd, b"x")
    assert os.read(fd, 1000) == pattern(100)
    os.close(fd)
    assert mode(f) == 0o600
    fd = os.open(f, os.O_WRONLY | os.O_TRUNC)
    with fails(errno.EBADF):
        os.read(fd, 1)
    os.close(fd)
    assert f.stat().st_size == 0
    with fails(errno.ENOTDIR):
        os.open(f, os.O_RDONLY | os.O_DIRECTORY)
    with fails(errno.EISDIR):
        os.open(mnt, os.O_WRONLY)
    with fails(errno.EISDIR):
        os.open(mnt, os.O_CREAT | os.O_RDONLY)


def test_a_new_file_can_be_written_whatever_its_mode(mnt: Path) -> None:
    def run() -> None:
        fd = os.open(mnt / "f", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o000)
        os.write(fd, b"written")
        assert os.pread(fd, 10, 0) == b"written"
        os.close(fd)
        with fails(errno.EACCES):
            os.open(mnt / "f", os.O_RDONLY)

    as_user(ALICE, run)
    assert (mnt / "f").read_bytes() == b"written"


def test_o_path_and_fchdir(mnt: Path) -> None:
    (mnt / "d").mkdir()
    (mnt / "d" / "f").write_bytes(b"x")
    fd = os.open(mnt / "d", os.O_PATH)
    try:
        assert os.stat("f", dir_fd=fd).st_size == 1
        os.rename(mnt / "d", mnt / "e")
        assert os.stat("f", dir_fd=fd).st_size == 1
        with fails(errno.EBADF):
            os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


def test_whole_path_longer_than_path_max(mnt: Path) -> None:
    """20 levels of 255 bytes: reachable one step at a time."""
    here = os.open(mnt, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("n" * 255, dir_fd=here)
        deeper = os.open("n" * 255, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    assert os.listdir(here) == ["leaf"]
    os.close(here)


def test_a_file_is_found_by_its_handle(mnt: Path, mounted: Mount | Plain) -> None:
    """name_to_handle_at(2), as an NFS server uses it: the handle works after every cache has gone, or is ESTALE."""
    (mnt / "d").mkdir()
    (mnt / "d" / "f").write_bytes(b"found")

    def handle(path: Path) -> ctypes.Array[ctypes.c_char]:
        buffer = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
        checked(libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), buffer, ctypes.byref(ctypes.c_int()), 0))
        return buffer

    file, directory = handle(mnt / "d" / "f"), handle(mnt / "d")
    mounted.drop_caches()
    base = os.open(mnt, os.O_RDONLY)
    fd = checked(libc.open_by_handle_at(base, file, os.O_RDONLY))
    assert os.read(fd, 100) == b"found"
    os.close(fd)
    fd = checked(libc.open_by_handle_at(base, directory, os.O_RDONLY | os.O_DIRECTORY))
    assert os.listdir(fd) == ["f"]
    os.close(fd)
    os.unlink(mnt / "d" / "f")
    mounted.drop_caches()
    with fails(errno.ESTALE):
        checked(libc.open_by_handle_at(base, file, os.O_RDONLY))
    os.close(base)


def test_fallocate_is_kept_or_refused(mnt: Path) -> None:
    """pyfuse3 has no such handler: EOPNOTSUPP is the honest answer, and posix_fallocate must not pretend."""
    fd = os.open(mnt / "f", os.O_CREAT | os.O_RDWR)
    try:
        try:
            os.posix_fallocate(fd, 0, 50000)
        except OSError as e:
            assert e.errno in (errno.EOPNOTSUPP, errno.ENOSYS)
        else:
            assert os.fstat(fd).st_size == 50000
            assert os.pread(fd, 60000, 0) == bytes(50000)
    finally:
        os.close(fd)


def test_copy_file_range_and_sendfile(mnt: Path) -> None:
    data = pattern(100_000)
    (mnt / "a").write_bytes(data)
    with (mnt / "a").open("rb") as src, (mnt / "b").open("wb") as dst:
        left = len(data)
        while left:
            done = os.copy_file_range(src.fileno(), dst.fileno(), left)
            assert done > 0
            left -= done
    with (mnt / "a").open("rb") as src, (mnt / "c").open("wb") as dst:
        while os.sendfile(dst.fileno(), src.fileno(), None, 1 << 20):
            pass
    assert (mnt / "b").read_bytes() == (mnt / "c").read_bytes() == data
