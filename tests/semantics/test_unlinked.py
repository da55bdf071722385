"""Files without a name live until their last handle closes, whatever else happens; then their space comes back."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from pathlib import Path

import pytest

from tests.harness import Mount, Plain, libc, wait_for
from tests.semantics.kit import AT_FDCWD, CHUNK, checked, fails, mode, pattern


def test_everything_works_on_an_unlinked_file(mnt: Path, mounted: Mount | Plain) -> None:
    f = mnt / "f"
    f.write_bytes(pattern(3 * CHUNK))
    ino = f.stat().st_ino
    fd = os.open(f, os.O_RDWR)
    os.unlink(f)
    assert not f.exists()
    mounted.drop_caches()
    st = os.fstat(fd)
    assert (st.st_ino, st.st_nlink, st.st_size) == (ino, 0, 3 * CHUNK)
    assert os.pread(fd, 3 * CHUNK, 0) == pattern(3 * CHUNK)
    os.pwrite(fd, b"still here", CHUNK - 5)
    os.fsync(fd)
    mounted.drop_caches()
    assert os.pread(fd, 10, CHUNK - 5) == b"still here"
    os.ftruncate(fd, CHUNK)
    os.ftruncate(fd, 2 * CHUNK)
    assert os.pread(fd, CHUNK, CHUNK) == bytes(CHUNK)
    os.fchmod(fd, 0o640)
    os.fchown(fd, 7, 8)
    os.utime(fd, ns=(5, 6))
    mounted.drop_caches()
    st = os.fstat(fd)
    assert (mode(fd), st.st_uid, st.st_gid, st.st_mtime_ns, st.st_nlink) == (0o640, 7, 8, 6, 0)
    with mmap.mmap(fd, 0) as m:
        m[7:10] = b"map"
        m.flush()
    mounted.drop_caches()
    assert os.pread(fd, 3, 7) == b"map"
    os.fdatasync(fd)
    os.close(fd)


def test_two_handles_and_a_new_file_of_the_same_name(mnt: Path, mounted: Mount | Plain) -> None:
    f = mnt / "f"
    f.write_bytes(b"old")
    one, two = os.open(f, os.O_RDONLY), os.open(f, os.O_RDWR | os.O_APPEND)
    os.unlink(f)
    f.write_bytes(b"new")
    os.write(two, b"er")
    os.close(two)
    mounted.drop_caches()
    assert os.pread(one, 100, 0) == b"older"
    assert f.read_bytes() == b"new"
    os.close(one)


def test_reopened_through_proc(mnt: Path) -> None:
    fd = os.open(mnt / "f", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"reach me")
    os.unlink(mnt / "f")
    with open(f"/proc/self/fd/{fd}", "rb") as again:
        os.close(fd)
        assert again.read() == b"reach me"


def test_o_path_keeps_the_inode(mnt: Path, mounted: Mount | Plain) -> None:
    """No handle is open in the daemon's eyes, only a look-up: the inode must still answer."""
    (mnt / "f").write_bytes(b"content")
    fd = os.open(mnt / "f", os.O_PATH)
    os.unlink(mnt / "f")
    mounted.drop_caches()
    st = os.fstat(fd)
    assert (st.st_nlink, st.st_size) == (0, 7)
    with open(f"/proc/self/fd/{fd}", "rb") as again:
        assert again.read() == b"content"
    os.close(fd)


def test_unlinked_special_nodes_and_links(mnt: Path, mounted: Mount | Plain) -> None:
    os.mkfifo(mnt / "p")
    os.symlink("target", mnt / "l")
    fifo = os.open(mnt / "p", os.O_RDWR)
    link = os.open(mnt / "l", os.O_PATH | os.O_NOFOLLOW)
    os.unlink(mnt / "p")
    os.unlink(mnt / "l")
    mounted.drop_caches()
    os.write(fifo, b"x")
    assert os.read(fifo, 1) == b"x"
    assert os.fstat(fifo).st_nlink == 0
    assert os.readlink("", dir_fd=link) == "target"
    os.close(fifo)
    os.close(link)


def test_a_file_without_links_gets_none(mnt: Path) -> None:
    """linkat(2) through /proc of a file whose last name is gone is ENOENT on Linux."""
    fd = os.open(mnt / "f", os.O_CREAT | os.O_RDWR)
    os.unlink(mnt / "f")
    with fails(errno.ENOENT):
        checked(libc.linkat(AT_FDCWD, b"/proc/self/fd/%d" % fd, AT_FDCWD, os.fsencode(mnt / "g"), 0x400))
    os.close(fd)


def test_o_tmpfile_works_or_is_refused_clearly(mnt: Path) -> None:
    """pyfuse3 has no such handler; programs fall back on EOPNOTSUPP (and EISDIR of old kernels)."""
    try:
        fd = os.open(mnt, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as e:
        assert e.errno in (errno.EOPNOTSUPP, errno.EISDIR)
    else:
        os.write(fd, b"temporary")
        assert os.pread(fd, 20, 0) == b"temporary"
        os.close(fd)
    assert os.listdir(mnt) == []


def test_many_unlinked_files_at_once(mnt: Path, mounted: Mount | Plain) -> None:
    fds = []
    for i in range(100):
        fd = os.open(mnt / "f", os.O_CREAT | os.O_RDWR | os.O_EXCL)
        os.write(fd, pattern(CHUNK + i, seed=i + 1))
        os.unlink(mnt / "f")
        fds.append(fd)
    mounted.drop_caches()
    for i, fd in enumerate(fds):
        assert os.pread(fd, 2 * CHUNK, 0) == pattern(CHUNK + i, seed=i + 1)
        os.close(fd)


@pytest.mark.nnfs_only("kills the daemon")
def test_orphans_are_reclaimed_at_the_next_mount(fresh_mount: Mount) -> None:
    base = fresh_mount.path

    def nodes() -> int:
        st = os.statvfs(base)
        return st.f_files - st.f_ffree

    before = nodes()
    data = os.urandom(4 << 20)
    fd = os.open(base / "f", os.O_CREAT | os.O_RDWR)
    os.write(fd, data)
    os.unlink(base / "f")
    os.fsync(fd)
    used = sum(p.stat().st_blocks * 512 for p in fresh_mount.store.iterdir())
    assert used > len(data)
    fresh_mount.kill()
    with contextlib.suppress(OSError):  # ENOTCONN; the handle is gone all the same
        os.close(fd)
    fresh_mount.mount()
    assert os.listdir(base) == []

    def reclaimed() -> bool:
        handle = os.open(base, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
        return sum(p.stat().st_blocks * 512 for p in fresh_mount.store.iterdir()) < used - len(data) // 2

    wait_for("the orphan's space", reclaimed, step=0.2)
    assert nodes() == before
