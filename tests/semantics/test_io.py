"""Content: every way to write it, every way to read it back, and that all ways agree."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import FULL, Mount, Plain, libc
from tests.semantics.kit import CHUNK, checked, fails, in_child, pattern, pwrite

SIZES = [0, 1, 4095, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 77, 1 << 20]


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_read(mnt: Path, mounted: Mount | Plain, size: int) -> None:
    for i, data in enumerate((pattern(size), bytes(size), os.urandom(size), b"text " * (size // 5))):
        (mnt / f"f{i}").write_bytes(data)
        assert (mnt / f"f{i}").read_bytes() == data
        mounted.drop_caches()
        assert (mnt / f"f{i}").read_bytes() == data
        assert (mnt / f"f{i}").stat().st_size == len(data)


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("length", [1, 100, CHUNK, CHUNK + 2, 3 * CHUNK])
@pytest.mark.parametrize("start", [0, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 50])
def test_partial_overwrites_across_chunk_borders(
    mnt: Path, mounted: Mount | Plain, start: int, length: int, committed: bool
) -> None:
    f = mnt / "f"
    want = bytearray(pattern(6 * CHUNK))
    f.write_bytes(want)
    if committed:
        mounted.drop_caches()
    new = b"N" * length
    pwrite(f, new, start)
    want[start : start + length] = new
    assert f.read_bytes() == want
    pwrite(f, b"again", start + length // 2)
    want[start + length // 2 : start + length // 2 + 5] = b"again"
    mounted.drop_caches()
    assert f.read_bytes() == want


def test_many_small_writes_in_any_order(mnt: Path, mounted: Mount | Plain) -> None:
    f = mnt / "f"
    want = bytearray(4 * CHUNK)
    f.write_bytes(want)
    with f.open("r+b", buffering=0) as out:
        for i in range(2000):
            offset = (i * 7919) % (4 * CHUNK - 8)
            out.seek(offset)
            out.write(b"%07d" % i)
            want[offset : offset + 7] = b"%07d" % i
            if i % 500 == 499:
                os.fsync(out.fileno())
    mounted.remount()
    assert f.read_bytes() == want


def test_equal_chunks_in_one_file(mnt: Path, mounted: Mount | Plain) -> None:
    """They share a block; reading ahead meets it more than once."""
    f = mnt / "f"
    want = pattern(3 * CHUNK) + b"same".ljust(CHUNK, b"1") * 20 + b"same".ljust(CHUNK, b"2") * 20 + pattern(CHUNK)
    f.write_bytes(want)
    mounted.remount()
    assert f.read_bytes() == want
    # Past the page cache: each request comes alone, so all that is read ahead is the daemon's doing.
    mounted.remount()
    fd, buffer = os.open(f, os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, CHUNK)
    for offset in range(0, len(want), CHUNK):
        assert os.preadv(fd, [buffer], offset) == CHUNK
        assert buffer[:] == want[offset : offset + CHUNK]
    os.close(fd)


def test_two_handles_see_each_other(mnt: Path) -> None:
    with (mnt / "f").open("w+b", buffering=0) as a, (mnt / "f").open("r+b", buffering=0) as b:
        a.write(b"from a")
        assert b.read() == b"from a"
        b.write(b", from b")
        assert os.pread(a.fileno(), 100, 0) == b"from a, from b"
        b.truncate(4)
        assert os.pread(a.fileno(), 100, 0) == b"from"
        assert os.fstat(a.fileno()).st_size == 4


def test_another_process_sees_writes(mnt: Path) -> None:
    with (mnt / "f").open("wb", buffering=0) as f:
        for i in range(10):
            f.write(b"%d" % i)
            assert in_child((mnt / "f").read_bytes) == b"0123456789"[: i + 1]


def test_append_by_two_processes(mnt: Path, mounted: Mount | Plain) -> None:
    """O_APPEND: no record overwrites another, and each process's are in order."""
    f = mnt / "log"
    f.touch()
    count = 2000 if FULL else 400

    def append(tag: bytes) -> None:
        fd = os.open(f, os.O_WRONLY | os.O_APPEND)
        for i in range(count):
            os.write(fd, b"%s%06d\n" % (tag, i))
        os.close(fd)

    pids = []
    for tag in (b"a", b"b"):
        pid = os.fork()
        if pid == 0:
            try:
                append(tag)
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    mounted.drop_caches()
    lines = f.read_bytes().splitlines()
    for tag in (b"a", b"b"):
        assert [line for line in lines if line[:1] == tag] == [b"%s%06d" % (tag, i) for i in range(count)]
    assert len(lines) == 2 * count


def test_append_ignores_the_position(mnt: Path) -> None:
    (mnt / "f").write_bytes(b"0123")
    fd = os.open(mnt / "f", os.O_RDWR | os.O_APPEND)
    os.write(fd, b"45")
    os.lseek(fd, 0, os.SEEK_SET)
    os.write(fd, b"67")
    assert os.pread(fd, 100, 0) == b"01234567"
    os.ftruncate(fd, 2)
    os.write(fd, b"X")
    assert os.pread(fd, 100, 0) == b"01X"
    os.close(fd)


@pytest.mark.parametrize("size", [10, CHUNK - 5, 3 * CHUNK + 9])
def test_write_only_and_append_handles_into_cached_pages(mnt: Path, mounted: Mount | Plain, size: int) -> None:
    """The kernel's writeback cache reads the page under a small write, through a handle that only writes."""
    f = mnt / "f"
    f.write_bytes(pattern(size))
    mounted.drop_caches()
    fd = os.open(f, os.O_WRONLY)
    os.pwrite(fd, b"W", size // 2)
    os.close(fd)
    mounted.drop_caches()
    fd = os.open(f, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"A")
    os.close(fd)
    want = bytearray(pattern(size) + b"A")
    want[size // 2 : size // 2 + 1] = b"W"
    mounted.drop_caches()
    assert f.read_bytes() == want


def direct(path: Path, flags: int = os.O_RDWR) -> int:
    """A handle past the page cache."""
    return os.open(path, flags | os.O_DIRECT | os.O_CREAT)


def test_o_direct(mnt: Path, mounted: Mount | Plain) -> None:
    f = mnt / "f"
    buffer = mmap.mmap(-1, 3 * CHUNK)
    buffer[:] = pattern(3 * CHUNK)
    fd = direct(f)
    assert os.pwritev(fd, [buffer], 0) == 3 * CHUNK
    assert os.pwritev(fd, [memoryview(buffer)[:4096]], 5 * CHUNK) == 4096
    want = pattern(3 * CHUNK) + bytes(2 * CHUNK) + pattern(4096)
    back = mmap.mmap(-1, 8 * CHUNK)
    assert os.preadv(fd, [back], 0) == len(want)
    assert back[: len(want)] == want
    assert os.preadv(fd, [back], 8 * CHUNK) == 0
    os.close(fd)
    assert f.read_bytes() == want
    mounted.remount()
    assert f.read_bytes() == want


def test_o_direct_and_cached_handles_agree(mnt: Path) -> None:
    f = mnt / "f"
    want = bytearray(pattern(4 * CHUNK))
    f.write_bytes(want)
    fd, buffer = direct(f), mmap.mmap(-1, 4096)
    with f.open("r+b", buffering=0) as cached:
        for i in range(60):
            offset = (i * 5 % 16) * 4096
            if i % 2:
                buffer[:] = bytes([i]) * 4096
                os.pwritev(fd, [buffer], offset)
                want[offset : offset + 4096] = buffer[:]
                assert os.pread(cached.fileno(), 4096, offset) == want[offset : offset + 4096]
            else:
                os.pwrite(cached.fileno(), b"cached %d" % i, offset + 100)
                want[offset + 100 : offset + 100 + len(b"cached %d" % i)] = b"cached %d" % i
                assert os.preadv(fd, [buffer], offset) == 4096
                assert buffer[:] == want[offset : offset + 4096]
    os.close(fd)
    assert f.read_bytes() == want


def test_mmap_shared_write_and_msync(mnt: Path, mounted: Mount | Plain) -> None:
    f = mnt / "f"
    want = bytearray(pattern(3 * CHUNK))
    f.write_bytes(want)
    mounted.drop_caches()
    with f.open("r+b") as handle, mmap.mmap(handle.fileno(), 0) as m:
        assert m[:] == want
        for offset in (0, 5000, CHUNK - 3, 2 * CHUNK + 1, 3 * CHUNK - 6):
            m[offset : offset + 6] = want[offset : offset + 6] = b"mapped"
        assert f.read_bytes() == want
        m.flush()
        os.pwrite(handle.fileno(), b"pwrite", 7000)
        want[7000:7006] = b"pwrite"
        assert m[7000:7006] == b"pwrite"
    mounted.remount()
    assert f.read_bytes() == want


def test_mmap_outlives_its_handle_and_its_name(mnt: Path, mounted: Mount | Plain) -> None:
    f = mnt / "f"
    f.write_bytes(bytes(CHUNK))
    os.link(f, mnt / "g")
    with f.open("r+b") as handle:
        m = mmap.mmap(handle.fileno(), 0)
    os.unlink(f)
    m[10:15] = b"alive"
    mounted.drop_caches()
    assert (mnt / "g").read_bytes()[10:15] == b"alive"
    os.unlink(mnt / "g")
    m[20:25] = b"still"
    m.flush()
    mounted.drop_caches()
    assert m[10:25] == b"alive\0\0\0\0\0still"
    m.close()


@pytest.mark.beyond("tmpfs")  # it shows such bytes after growing
def test_mmap_of_the_last_page_does_not_grow_the_file(mnt: Path, mounted: Mount | Plain) -> None:
    f = mnt / "f"
    f.write_bytes(b"x" * (CHUNK + 10))
    with f.open("r+b") as handle:
        m = mmap.mmap(handle.fileno(), CHUNK + 10)
        address = ctypes.addressof(ctypes.c_char.from_buffer(m))
        ctypes.memset(address + CHUNK + 10, 0x41, 50)  # beyond the end, within the page: must be forgotten
        m[CHUNK + 9 : CHUNK + 10] = b"y"
        m.flush()
    mounted.drop_caches()
    assert f.read_bytes() == b"x" * (CHUNK + 9) + b"y"
    os.truncate(f, CHUNK + 100)
    assert f.read_bytes()[CHUNK + 10 :] == bytes(90)


def test_private_mapping_changes_nothing(mnt: Path, mounted: Mount | Plain) -> None:
    f = mnt / "f"
    f.write_bytes(b"original")
    with f.open("rb") as handle, mmap.mmap(handle.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as m:
        m[:3] = b"ORI"
    mounted.drop_caches()
    assert f.read_bytes() == b"original"


def test_a_program_runs_from_the_mount(mnt: Path, mounted: Mount | Plain) -> None:
    program = mnt / "true"
    program.write_bytes(Path("/bin/true").read_bytes())
    os.chmod(program, 0o755)
    mounted.drop_caches()
    assert os.waitpid(os.spawnv(os.P_NOWAIT, program, ["true"]), 0)[1] == 0
    (mnt / "script").write_text("#!/bin/sh\nexit 7\n")
    os.chmod(mnt / "script", 0o755)
    assert os.waitstatus_to_exitcode(os.waitpid(os.spawnv(os.P_NOWAIT, mnt / "script", ["s"]), 0)[1]) == 7


def test_o_trunc_and_recreate(mnt: Path, mounted: Mount | Plain) -> None:
    f = mnt / "f"
    for i in range(10):
        f.write_bytes(pattern(CHUNK * 2, seed=i + 1))
        if i % 3 == 0:
            mounted.drop_caches()
        f.write_bytes(b"short %d" % i)
        assert f.read_bytes() == b"short %d" % i
    mounted.remount()
    assert f.read_bytes() == b"short 9"


def test_vectors_offsets_and_reads_at_the_end(mnt: Path) -> None:
    with (mnt / "f").open("w+b", buffering=0) as f:
        fd = f.fileno()
        assert os.writev(fd, [b"ab", b"", b"cde"]) == 5
        assert os.pwritev(fd, [b"X", b"Y"], 3) == 2
        assert os.pread(fd, 100, 0) == b"abcXY"
        assert os.pread(fd, 100, 5) == b""
        assert os.pread(fd, 100, 1 << 40) == b""
        assert os.lseek(fd, -2, os.SEEK_END) == 3
        assert os.read(fd, 10) == b"XY"
        with fails(errno.EINVAL):
            os.lseek(fd, -1, os.SEEK_SET)
        with fails(errno.EINVAL):
            os.pread(fd, 1, -1)
        assert os.write(fd, b"") == 0
        assert os.fstat(fd).st_size == 5


def sync_fs(fd: int) -> None:
    """syncfs(2)."""
    checked(libc.syncfs(fd))


SYNCS: dict[str, Callable[[int], object]] = {"fsync": os.fsync, "fdatasync": os.fdatasync, "syncfs": sync_fs}


@pytest.mark.parametrize("how", SYNCS)
def test_syncs_answer(mnt: Path, how: str) -> None:
    with (mnt / "f").open("wb", buffering=0) as f:
        for i in range(5):
            f.write(b"%d" % i)
            SYNCS[how](f.fileno())
    directory = os.open(mnt, os.O_RDONLY)
    SYNCS[how](directory)
    os.close(directory)
    assert (mnt / "f").read_bytes() == b"01234"


@pytest.mark.nnfs_only("kills the daemon")
@pytest.mark.parametrize("how", ["file", "directory"])
def test_fsync_survives_a_crash(fresh_mount: Mount, how: str) -> None:
    """fsync of a file and of a directory both end in a durable commit of everything before."""
    base = fresh_mount.path
    (base / "d").mkdir()
    (base / "old").write_bytes(b"moved")
    os.rename(base / "old", base / "d" / "new")
    fd = os.open(base / "d" / "f", os.O_CREAT | os.O_RDWR)
    os.write(fd, pattern(3 * CHUNK + 5))
    os.fsync(fd)
    os.close(fd)
    if how == "directory":
        os.unlink(base / "d" / "new")
        os.symlink("target", base / "d" / "l")
        fd = os.open(base / "d", os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    fresh_mount.kill()
    fresh_mount.mount()
    assert (base / "d" / "f").read_bytes() == pattern(3 * CHUNK + 5)
    assert not (base / "old").exists()
    assert sorted(os.listdir(base / "d")) == (["f", "l"] if how == "directory" else ["f", "new"])


def test_concurrent_writers_of_one_file(mnt: Path, mounted: Mount | Plain) -> None:
    """Four processes write interleaved stripes that share chunks."""
    f = mnt / "f"
    f.touch()
    stripe, count = 3000, 60
    pids = []
    for who in range(4):
        pid = os.fork()
        if pid == 0:
            try:
                fd = os.open(f, os.O_WRONLY)
                for i in range(count):
                    os.pwrite(fd, bytes([65 + who]) * stripe, (i * 4 + who) * stripe)
                os.close(fd)
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    want = b"".join(bytes([65 + who]) * stripe for _ in range(count) for who in range(4))
    assert f.read_bytes() == want
    mounted.remount()
    assert f.read_bytes() == want
