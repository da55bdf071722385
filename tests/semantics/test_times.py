"""Timestamps: range, precision, and which operation changes which of them."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Mount, Plain
from tests.semantics.kit import CHUNK, NS, UTIME_NOW, UTIME_OMIT, fails, make, utimensat

OLD = 10**18 + 123_456_789  # 2001, with a fraction


def stamps(path: Path) -> tuple[int, int, int]:
    """atime, mtime, ctime in ns."""
    st = os.lstat(path)
    return st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns


PRESENT = [0, 1, -1, -NS, -NS + 1, 999_999_999, -2_147_483_000 * NS, -2_147_483_000 * NS + 7, 2**31 * NS + 5]
FUTURE = [2**32 * NS - 1, 2**32 * NS, 2**32 * NS + 999_999_999, 6_000_000_000 * NS + 1]


def test_ns_before_1970_and_after_2106(mnt: Path, mounted: Mount | Plain) -> None:
    keep_times(mnt, mounted, PRESENT + FUTURE)


@pytest.mark.beyond("ext4")
def test_from_1684_to_2261(mnt: Path, mounted: Mount | Plain) -> None:
    keep_times(mnt, mounted, [s * NS + 1 for s in (-9_000_000_000, -(2**33), 2**33 + 3, 9_200_000_000)])


EDGES = [-(2**63), -(2**63) + 1, 2**63 - 2, 2**63 - 1]


@pytest.mark.beyond("ext4")
def test_from_1677_to_2262_to_the_nanosecond(mnt: Path, mounted: Mount | Plain) -> None:
    for number, ns in enumerate(EDGES):
        os.utime(made(mnt / f"f{number}"), ns=(ns, ns))
        assert stamps(mnt / f"f{number}")[:2] == (ns, ns)
    mounted.remount()
    assert [stamps(mnt / f"f{number}")[1] for number in range(len(EDGES))] == EDGES


@pytest.mark.nnfs_only("others keep such times, or cut them")
@pytest.mark.parametrize("kind", ["file", "dir", "symlink"])
def test_a_time_that_cannot_be_kept_is_an_error(mnt: Path, mounted: Mount, kind: str) -> None:
    """EINVAL, as POSIX has it for futimens(2). Nothing of the request is done."""
    node = mnt / "node"
    make(node, kind)
    os.utime(node, ns=(OLD, OLD + 1), follow_symlinks=False)
    before = stamps(node)
    for ns in (-(2**63) - 1, 2**63, -(2**33) * 3 * NS, 2**40 * NS, (2**63 - 1) * NS, -(2**63) * NS):
        for times in ((ns, OLD), (OLD, ns), (ns, ns)):
            with fails(errno.EINVAL):
                os.utime(node, ns=times, follow_symlinks=False)
        with fails(errno.EINVAL):
            utimensat(node, UTIME_OMIT, divmod(ns, NS), follow=False)
    assert stamps(node) == before
    mounted.remount()
    assert stamps(node) == before


@pytest.mark.nnfs_only("others keep such times, or cut them")
def test_programs_tell_of_a_time_that_cannot_be_kept(mnt: Path, tmp_path: Path) -> None:
    done = subprocess.run(["touch", "-d", "2263-01-01", mnt / "f"], capture_output=True, text=True)
    assert (done.returncode, "Invalid argument" in done.stderr) == (1, True)
    subprocess.run(["touch", "-d", "2262-04-11 00:00 UTC", mnt / "f"], check=True)
    subprocess.run(["touch", "-d", "1677-09-22 00:00 UTC", mnt / "f"], check=True)
    assert stamps(mnt / "f")[1] == -9223286400 * NS
    source = made(tmp_path / "source")
    os.utime(source, ns=(OLD, 10**19))
    if source.stat().st_mtime_ns != 10**19:
        pytest.skip(f"the filesystem of {tmp_path} cannot keep such times either")
    done = subprocess.run(["cp", "-p", source, mnt / "copy"], capture_output=True, text=True)
    assert (done.returncode, "preserving times" in done.stderr) == (1, True)


def made(path: Path) -> Path:
    """A new file."""
    path.touch()
    return path


def keep_times(mnt: Path, mounted: Mount | Plain, times: list[int]) -> None:
    """Compare times of files, directories and symlinks, at once and after a remount."""
    nodes = [(mnt / f"{kind}{i}", ns) for i, ns in enumerate(times) for kind in "fdl"]
    for path, ns in nodes:
        make(path, {"f": "file", "d": "dir", "l": "symlink"}[path.name[0]])
        os.utime(path, ns=(ns, ns + 1), follow_symlinks=False)
        assert stamps(path)[:2] == (ns, ns + 1)
    mounted.remount()
    for path, ns in nodes:
        assert stamps(path)[:2] == (ns, ns + 1)


def test_now_and_omit(mnt: Path) -> None:
    f = mnt / "f"
    f.touch()
    os.utime(f, ns=(OLD, OLD + 1))
    utimensat(f, UTIME_OMIT, (7, 8))
    assert stamps(f)[:2] == (OLD, 7 * NS + 8)
    utimensat(f, (9, 10), UTIME_OMIT)
    assert stamps(f)[:2] == (9 * NS + 10, 7 * NS + 8)
    created = stamps(f)[2]
    utimensat(f, UTIME_NOW, UTIME_OMIT)
    assert stamps(f)[0] >= created - NS
    assert stamps(f)[1] == 7 * NS + 8
    utimensat(f, UTIME_OMIT, UTIME_NOW)
    assert stamps(f)[1] >= created - NS
    before = stamps(f)
    utimensat(f, UTIME_OMIT, UTIME_OMIT)
    assert stamps(f) == before
    with fails(errno.EINVAL):
        utimensat(f, (1, 10**9), (1, 1))


def test_a_written_mtime_survives_an_explicit_one(mnt: Path, mounted: Mount | Plain) -> None:
    """tar and rsync write, set the time, then close: the kernel's cached writes must not change it again."""
    for i, size in enumerate((1, CHUNK, 5 * CHUNK + 3)):
        f = mnt / f"f{i}"
        with f.open("wb") as out:
            out.write(b"x" * size)
            out.flush()
            os.utime(out.fileno(), ns=(OLD, OLD))
        assert stamps(f)[1] == OLD
        g = mnt / f"g{i}"
        g.write_bytes(b"x" * size)
        os.utime(g, ns=(OLD, OLD))
    mounted.drop_caches()
    for i in range(3):
        assert stamps(mnt / f"f{i}")[1] == stamps(mnt / f"g{i}")[1] == OLD
    mounted.remount()
    for i in range(3):
        assert stamps(mnt / f"f{i}")[1] == stamps(mnt / f"g{i}")[1] == OLD


CONTENT: dict[str, Callable[[Path], object]] = {
    "write": lambda f: f.write_bytes(b"new"),
    "grow": lambda f: os.truncate(f, 100_000),
    "shrink": lambda f: os.truncate(f, 1),
}


@pytest.mark.parametrize("change", CONTENT)
def test_content_changes_mtime_and_ctime(mnt: Path, mounted: Mount | Plain, change: str) -> None:
    f = mnt / "f"
    f.write_bytes(b"content")
    os.utime(f, ns=(OLD, OLD))
    before = stamps(f)
    CONTENT[change](f)
    after = stamps(f)
    assert after[1] > before[1] + NS
    assert after[2] >= before[2]
    mounted.remount()
    assert stamps(f)[1:] == after[1:]


@pytest.mark.parametrize("size", [7, 0])
def test_truncate_to_the_same_size(mnt: Path, mounted: Mount | Plain, size: int) -> None:
    """Filesystems differ in whether that moves mtime; what the kernel shows must be what is stored."""
    f = mnt / "f"
    f.write_bytes(b"c" * size)
    with f.open("r+b") as handle:
        changes: tuple[Callable[[], None], ...] = (
            lambda: os.truncate(f, size),
            lambda: os.ftruncate(handle.fileno(), size),
        )
        for change in changes:
            os.utime(f, ns=(OLD, OLD))
            change()
            shown = stamps(f)
            mounted.drop_caches()
            assert stamps(f) == shown


METADATA: dict[str, Callable[[Path], object]] = {
    "chmod": lambda f: os.chmod(f, 0o600),
    "chown": lambda f: os.chown(f, 5, 5),
    "link": lambda f: os.link(f, f.with_name("other")),
    "setxattr": lambda f: os.setxattr(f, "user.x", b"y"),
    "rename": lambda f: os.rename(f, f.with_name("moved")),
    "read": lambda f: f.read_bytes(),
    "stat": lambda f: f.stat(),
}


@pytest.mark.parametrize("change", METADATA)
def test_metadata_leaves_mtime_alone(mnt: Path, change: str) -> None:
    f = mnt / "f"
    f.write_bytes(b"content")
    os.utime(f, ns=(OLD, OLD))
    before = stamps(f)
    METADATA[change](f)
    now = mnt / "moved" if change == "rename" else f
    after = stamps(now)
    assert after[1] == OLD
    assert after[2] >= before[2]
    if change in ("rename", "stat", "chmod"):
        assert after[0] == OLD


@pytest.mark.parametrize("change", ["chmod", "chown", "link", "setxattr"])
def test_metadata_changes_ctime(mnt: Path, mounted: Mount | Plain, change: str) -> None:
    """The clock is coarse, so the file is made old first: ctime cannot be set, but a second file can wait."""
    f = mnt / "f"
    f.write_bytes(b"content")
    first = stamps(f)[2]
    seen = first
    for i in range(100_000):  # until the kernel's clock has ticked: bounded, no sleep
        (mnt / "tick").write_bytes(b"%d" % i)
        seen = stamps(mnt / "tick")[2]
        if seen > first:
            break
    assert seen > first
    METADATA[change](f)
    assert stamps(f)[2] >= seen
    kept = stamps(f)
    mounted.remount()
    assert stamps(f) == kept


def test_read_moves_an_atime_older_than_mtime(mnt: Path) -> None:
    """relatime, where the mount has it; with noatime it stays. It never goes backwards."""
    f = mnt / "f"
    f.write_bytes(b"content")
    os.utime(f, ns=(OLD, OLD + NS))
    f.read_bytes()
    assert stamps(f)[0] >= OLD
    assert stamps(f)[1] == OLD + NS


DIRECTORY: dict[str, Callable[[Path], object]] = {
    "create": lambda d: (d / "new").touch(),
    "mkdir": lambda d: (d / "new").mkdir(),
    "symlink": lambda d: os.symlink("t", d / "new"),
    "mknod": lambda d: os.mkfifo(d / "new"),
    "link": lambda d: os.link(d / "file", d / "new"),
    "unlink": lambda d: os.unlink(d / "file"),
    "rmdir": lambda d: os.rmdir(d / "dir"),
    "rename": lambda d: os.rename(d / "file", d / "new"),
    "rename out": lambda d: os.rename(d / "file", d.parent / "out"),
    "rename in": lambda d: os.rename(d.parent / "in", d / "new"),
}


@pytest.mark.parametrize("change", DIRECTORY)
def test_entries_change_the_directorys_times(mnt: Path, mounted: Mount | Plain, change: str) -> None:
    d = mnt / "d"
    d.mkdir()
    (d / "file").touch()
    (d / "dir").mkdir()
    (mnt / "in").touch()
    os.utime(d, ns=(OLD, OLD))
    before = stamps(d)
    DIRECTORY[change](d)
    after = stamps(d)
    assert after[1] > OLD + NS
    assert after[2] >= before[2]
    mounted.drop_caches()
    assert stamps(d)[1:] == after[1:]


def test_writing_a_file_leaves_its_directory_alone(mnt: Path) -> None:
    d = mnt / "d"
    d.mkdir()
    (d / "f").touch()
    os.utime(d, ns=(OLD, OLD))
    (d / "f").write_bytes(b"x" * 100_000)
    os.chmod(d / "f", 0o600)
    os.truncate(d / "f", 5)
    assert stamps(d)[1] == OLD


def test_failed_operations_change_nothing(mnt: Path) -> None:
    d = mnt / "d"
    d.mkdir()
    (d / "f").touch()
    os.utime(d, ns=(OLD, OLD))
    before = stamps(d), stamps(d / "f")
    with fails(errno.EEXIST):
        os.mkdir(d / "f")
    with fails(errno.ENOENT):
        os.unlink(d / "none")
    with fails(errno.ENOTDIR):
        os.rmdir(d / "f")
    with fails(errno.EISDIR, errno.EPERM):
        os.unlink(d)
    assert (stamps(d), stamps(d / "f")) == before
