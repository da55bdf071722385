"""Holes: read as zeros, cost nothing; no work is in proportion to a file's size (the guard ends who counts)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.harness import Mount, Plain
from tests.semantics.kit import CHUNK, fails, pattern, pwrite

MAX = 2**63 - 1


def blocks(path: Path) -> int:
    """Bytes stored, as stat says."""
    return os.stat(path).st_blocks * 512


@pytest.mark.beyond("ext4")
@pytest.mark.parametrize("size", [10**15, 2**62, MAX])
def test_huge_sparse_file(mnt: Path, mounted: Mount | Plain, size: int) -> None:
    f = mnt / "f"
    f.write_bytes(b"head")
    os.truncate(f, size)
    assert f.stat().st_size == size
    pwrite(f, b"tail", size - 4)
    pwrite(f, b"mid", size // 2)
    mounted.remount()
    assert f.stat().st_size == size
    with f.open("rb") as src:
        assert os.pread(src.fileno(), 10, 0) == b"head" + bytes(6)
        assert os.pread(src.fileno(), 5, size // 2 - 1) == b"\0mid\0"
        assert os.pread(src.fileno(), 8, size - 8) == bytes(4) + b"tail"
        assert os.pread(src.fileno(), 100_000, size // 3) == bytes(100_000)
    assert blocks(f) < 1 << 20
    os.truncate(f, size // 2 + 2)
    os.truncate(f, size)
    mounted.drop_caches()
    with f.open("rb") as src:
        assert os.pread(src.fileno(), 6, size // 2 - 1) == b"\0mi\0\0\0"
        assert os.pread(src.fileno(), 8, size - 8) == bytes(8)
    os.truncate(f, 4)
    assert f.read_bytes() == b"head"
    os.unlink(f)


@pytest.mark.beyond("ext4")
def test_unlink_and_rename_over_a_huge_file(mnt: Path) -> None:
    for name in ("a", "b"):
        (mnt / name).touch()
        os.truncate(mnt / name, MAX)
        pwrite(mnt / name, b"x", MAX - 1)
    (mnt / "small").write_bytes(b"s")
    os.rename(mnt / "small", mnt / "a")
    os.unlink(mnt / "b")
    with (mnt / "c").open("w+b") as f:
        f.truncate(MAX)
        os.unlink(mnt / "c")
        f.truncate(1)
        f.truncate(MAX)
        assert os.pread(f.fileno(), 3, 1 << 50) == bytes(3)
    assert (mnt / "a").read_bytes() == b"s"


def test_limits_of_size(mnt: Path) -> None:
    (mnt / "f").touch()
    with fails(errno.EINVAL):
        os.truncate(mnt / "f", -1)
    with (mnt / "f").open("r+b") as f, fails(errno.EINVAL, errno.EFBIG):
        os.pwrite(f.fileno(), b"xx", MAX - 1)
        os.pwrite(f.fileno(), b"xx", MAX)
    assert (mnt / "f").stat().st_size in (0, MAX)


@pytest.mark.parametrize("gap", [1, 4095, CHUNK - 1, CHUNK, CHUNK + 1, 10 * CHUNK + 5])
def test_write_beyond_the_end_leaves_zeros(mnt: Path, mounted: Mount | Plain, gap: int) -> None:
    f = mnt / "f"
    f.write_bytes(b"start")
    pwrite(f, b"end", 5 + gap)
    want = b"start" + bytes(gap) + b"end"
    assert f.read_bytes() == want
    mounted.remount()
    assert f.read_bytes() == want


def test_blocks_count_what_is_stored(mnt: Path, mounted: Mount | Plain) -> None:
    hole, full = mnt / "hole", mnt / "full"
    hole.touch()
    os.truncate(hole, 1 << 30)
    full.write_bytes(os.urandom(1 << 20))
    mounted.drop_caches()
    assert blocks(hole) < 1 << 16
    assert 1 << 20 <= blocks(full) < (1 << 20) + (1 << 16)
    os.truncate(full, 1 << 19)
    mounted.drop_caches()
    assert 1 << 19 <= blocks(full) < (1 << 19) + (1 << 16)
    os.truncate(full, 0)
    mounted.drop_caches()
    assert blocks(full) < 1 << 16


@pytest.mark.nnfs_only("others store what they are given")
def test_blocks_of_compressible_data_are_fewer(mnt: Path, mounted: Mount | Plain) -> None:
    (mnt / "zeros").write_bytes(bytes(1 << 20))
    (mnt / "text").write_bytes(b"the same line again and again\n" * 35_000)
    for name in ("zeros", "text"):
        with (mnt / name).open("rb") as f:
            os.fsync(f.fileno())
    mounted.drop_caches()
    assert blocks(mnt / "zeros") < 1 << 18
    assert 0 < blocks(mnt / "text") < 1 << 18


@pytest.mark.parametrize("size", [0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
@pytest.mark.parametrize("to", [0, 1, 50, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7, 5 * CHUNK])
def test_truncate_down_and_up_across_chunk_borders(mnt: Path, mounted: Mount | Plain, size: int, to: int) -> None:
    f = mnt / "f"
    f.write_bytes(pattern(size))
    if (size + to) % 2:  # half of the cases from the store, half from what is still dirty
        mounted.drop_caches()
    os.truncate(f, to)
    want = pattern(size)[:to].ljust(to, b"\0")
    assert f.read_bytes() == want
    os.truncate(f, to + CHUNK + 3)
    want += bytes(CHUNK + 3)
    assert f.read_bytes() == want
    mounted.drop_caches()
    assert f.read_bytes() == want


def test_cut_off_bytes_never_come_back(mnt: Path, mounted: Mount | Plain) -> None:
    """Shrunk into a chunk, committed, grown: the rest of the chunk must be zeros, not what it was."""
    f = mnt / "f"
    f.write_bytes(b"S" * (2 * CHUNK))
    mounted.drop_caches()
    os.truncate(f, 100)
    mounted.drop_caches()
    os.truncate(f, 2 * CHUNK)
    assert f.read_bytes() == b"S" * 100 + bytes(2 * CHUNK - 100)
    pwrite(f, b"T", 200)
    mounted.remount()
    assert f.read_bytes() == b"S" * 100 + bytes(100) + b"T" + bytes(2 * CHUNK - 201)


def test_seek_data_and_hole(mnt: Path, mounted: Mount | Plain) -> None:
    """The kernel answers for lack of a handler: all data, a hole at the end. No answer may lose data."""
    f = mnt / "f"
    f.touch()
    os.truncate(f, 1 << 20)
    pwrite(f, b"x" * 10, 512 * 1024)
    mounted.drop_caches()
    with f.open("rb") as src:
        data = os.lseek(src.fileno(), 0, os.SEEK_DATA)
        assert data <= 512 * 1024
        assert os.lseek(src.fileno(), 512 * 1024, os.SEEK_HOLE) >= 512 * 1024 + 10
        with fails(errno.ENXIO):
            os.lseek(src.fileno(), 1 << 20, os.SEEK_DATA)
        with fails(errno.ENXIO):
            os.lseek(src.fileno(), (1 << 20) + 1, os.SEEK_HOLE)


def test_many_holes(mnt: Path, mounted: Mount | Plain) -> None:
    f = mnt / "f"
    f.touch()
    with f.open("r+b") as out:
        for i in range(200):
            os.pwrite(out.fileno(), b"%4d" % i, i * 3 * CHUNK)
    mounted.remount()
    with f.open("rb") as src:
        for i in range(200):
            assert os.pread(src.fileno(), 5, i * 3 * CHUNK) == (b"%4d\0" % i if i < 199 else b" 199")
            assert not any(os.pread(src.fileno(), 2 * CHUNK, i * 3 * CHUNK + CHUNK))
