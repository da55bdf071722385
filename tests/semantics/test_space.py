"""statfs tells the truth; deleted and shrunk data gives its space back while mounted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnfs.fs.apply import RELEASE_NODES
from nnfs.store import schema
from tests.caches import drop_caches
from tests.harness import Mount, Plain, umount, wait_for, work_dir
from tests.harness import libc as _libc
from tests.semantics.kit import CHUNK, checked, pattern

MIB = 1 << 20


def test_statfs_fields(mnt: Path) -> None:
    st = os.statvfs(mnt)
    assert st.f_namemax == 255
    assert st.f_bsize >= 512
    assert st.f_frsize >= 512
    assert 0 < st.f_bavail <= st.f_bfree <= st.f_blocks
    (mnt / "f").touch()
    assert os.statvfs(mnt / "f").f_blocks == st.f_blocks
    fd = os.open(mnt / "f", os.O_RDONLY)
    assert os.fstatvfs(fd).f_namemax == 255
    os.close(fd)


class Lower:
    """A filesystem of 256 MiB that nobody else writes to, so that its free space can be counted on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def free(self) -> int:
        """Bytes a user may still write."""
        st = os.statvfs(self.path)
        return st.f_bavail * st.f_frsize


@pytest.fixture
def lower(request: pytest.FixtureRequest) -> Iterator[Lower]:
    """A tmpfs of its own: its free space moves by what the store does and by nothing else."""
    if request.config.getoption("--target"):
        pytest.skip("nnfs only: the store's own filesystem")
    path = work_dir()
    checked(_libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, b"size=256m"))
    try:
        yield Lower(path)
    finally:
        umount(path)
        path.rmdir()


def free(mount: Mount | Plain) -> int:
    """Return the bytes that df shows."""
    st = os.statvfs(mount.path)
    return st.f_bavail * st.f_frsize


def settle(mount: Mount) -> None:
    """Commit."""
    fd = os.open(mount.path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def test_free_space_follows_the_lower_filesystem(lower: Lower) -> None:
    (lower.path / "store").mkdir()
    with Mount(lower.path / "store") as mount:
        mount.deadline()
        empty = free(mount)
        assert 0 < empty <= lower.free()
        st = os.statvfs(mount.path)
        assert st.f_blocks * st.f_frsize <= 257 * MIB
        (mount.path / "random").write_bytes(os.urandom(32 * MIB))
        mount.drop_caches()
        settle(mount)
        assert free(mount) <= lower.free()
        what = "df to fall by what was written, once what was held for the writing is given back"
        wait_for(what, lambda: 31 * MIB <= empty - free(mount) <= 40 * MIB, 60)
        full = free(mount)
        (mount.path / "zeros").write_bytes(bytes(32 * MIB))
        mount.drop_caches()
        settle(mount)
        wait_for("what was held to be given back", lambda: full - free(mount) < 2 * MIB, 60)
        # Somebody else's file on the lower filesystem takes free space away, too; up to 2 MiB may still have been held.
        before = free(mount)
        (lower.path / "other").write_bytes(bytes(16 * MIB))
        wait_for("statfs to notice", lambda: free(mount) <= min(lower.free(), before - 13 * MIB))


@pytest.mark.parametrize("how", ["unlink", "truncate", "overwrite", "rename"])
def test_space_comes_back_while_mounted(lower: Lower, how: str) -> None:
    (lower.path / "store").mkdir()
    with Mount(lower.path / "store") as mount:
        mount.deadline()
        victim = mount.path / "victim"
        (mount.path / "kept").write_bytes(b"kept" * 1000)
        settle(mount)
        start = lower.free()
        victim.write_bytes(os.urandom(32 * MIB))
        drop_caches(mount.path)
        settle(mount)
        assert start - lower.free() > 31 * MIB
        if how == "unlink":
            victim.unlink()
        elif how == "truncate":
            os.truncate(victim, 100)
        elif how == "overwrite":
            with victim.open("r+b") as f:
                f.write(bytes(32 * MIB))
        else:
            (mount.path / "small").write_bytes(b"small")
            os.rename(mount.path / "small", victim)

        def back() -> bool:
            drop_caches(mount.path)
            settle(mount)
            return start - lower.free() < 4 * MIB

        wait_for("the space of what was deleted", back, step=0.2)
        assert free(mount) <= lower.free()
        mount.remount()
        assert (mount.path / "kept").read_bytes() == b"kept" * 1000


def used_inodes(path: Path) -> int:
    """Return the number of inodes that `df -i` shows as used."""
    st = os.statvfs(path)
    assert 0 <= st.f_ffree <= st.f_files
    return st.f_files - st.f_ffree


def test_inodes_are_counted(mounted: Mount | Plain, mnt: Path) -> None:
    before = used_inodes(mnt)
    for i in range(100):
        (mnt / f"f{i}").touch()
    mounted.drop_caches()
    # A filesystem shared with others (the target) may move by more; btrfs says 0 and 0.
    assert used_inodes(mnt) - before == 100 if mounted.is_nnfs else used_inodes(mnt) >= 0


@pytest.mark.nnfs_only("others count a nameless inode until its last handle is closed")
def test_removed_inodes_are_not_counted_from_the_request_on(fresh_mount: Mount) -> None:
    """Nothing is waited for: no commit, no FORGET, no RELEASE, no last close."""
    base = fresh_mount.path
    assert used_inodes(base) == 1
    for i in range(20):
        (base / f"f{i}").write_bytes(pattern(i * 1000))
        (base / f"d{i}").mkdir()
    os.link(base / "f0", base / "other")
    assert used_inodes(base) == 41
    settle(fresh_mount)
    assert used_inodes(base) == 41
    with (base / "f1").open("rb") as held:
        for i in range(10):
            (base / f"f{i}").unlink()
            (base / f"d{i}").rmdir()
        os.rename(base / "f10", base / "f11")
        os.rename(base / "d10", base / "d11")
        assert used_inodes(base) == 41 - 9 - 10 - 2  # f0 has another name
        settle(fresh_mount)
        assert used_inodes(base) == 20
        assert held.read() == pattern(1000)
    assert used_inodes(base) == 20
    settle(fresh_mount)
    assert used_inodes(base) == 20
    fresh_mount.remount()
    assert used_inodes(base) == 20
    for entry in base.iterdir():
        entry.rmdir() if entry.is_dir() else entry.unlink()
    assert used_inodes(base) == 1


def test_inodes_whose_release_takes_commits_are_not_counted(fresh_mount: Mount) -> None:
    file, other = fresh_mount.path / "f", fresh_mount.path / "other"
    with file.open("w+b") as f:
        for i in range(RELEASE_NODES + 40):
            os.pwrite(f.fileno(), b"x", i * schema.NODE_SPAN * CHUNK)
    other.touch()
    settle(fresh_mount)
    assert used_inodes(fresh_mount.path) == 3
    file.unlink()
    for n in range(4):
        assert used_inodes(fresh_mount.path) == 2
        other.write_bytes(bytes([n]))
        settle(fresh_mount)
    fresh_mount.remount()
    assert used_inodes(fresh_mount.path) == 2
