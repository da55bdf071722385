"""Which error for which mistake, in the manner of pjdfstest: every call against every kind of wrong path."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.semantics.kit import ALICE, as_user, fails, make

CALLS: dict[str, Callable[[Path], object]] = {
    "open": lambda p: os.open(p, os.O_RDONLY),
    "open O_CREAT": lambda p: os.open(p, os.O_CREAT | os.O_WRONLY, 0o644),
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod": lambda p: os.mknod(p, stat.S_IFREG | 0o600),
    "symlink": lambda p: os.symlink("t", p),
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "stat": os.stat,
    "lstat": os.lstat,
    "chmod": lambda p: os.chmod(p, 0o644),
    "chown": lambda p: os.chown(p, 1, 1),
    "lchown": lambda p: os.lchown(p, 1, 1),
    "truncate": lambda p: os.truncate(p, 0),
    "utime": lambda p: os.utime(p, (0, 0)),
    "readlink": os.readlink,
    "listdir": os.listdir,
    "statvfs": os.statvfs,
    "getxattr": lambda p: os.getxattr(p, "user.a"),
    "setxattr": lambda p: os.setxattr(p, "user.a", b""),
    "listxattr": os.listxattr,
    "removexattr": lambda p: os.removexattr(p, "user.a"),
    "access": os.stat,
    "rename from": lambda p: os.rename(p, p.parent.parent / "target"),
    "rename to": lambda p: os.rename(source(p), p),
    "link from": lambda p: os.link(p, p.parent.parent / "target"),
    "link to": lambda p: os.link(source(p), p),
}
MAKES = {"open O_CREAT", "mkdir", "mkfifo", "mknod", "symlink", "rename to", "link to"}


def source(path: Path) -> Path:
    """A file to rename or link, at the root of the test's directory."""
    base = next(p for p in path.parents if p.name.startswith("test_"))
    (base / "source").touch()
    return base / "source"


@pytest.mark.parametrize("call", CALLS)
def test_a_component_that_is_no_directory(mnt: Path, call: str) -> None:
    (mnt / "file").touch()
    with fails(errno.ENOTDIR):
        CALLS[call](mnt / "file" / "x")


@pytest.mark.parametrize("call", CALLS)
def test_a_component_that_does_not_exist(mnt: Path, call: str) -> None:
    with fails(errno.ENOENT):
        CALLS[call](mnt / "none" / "x")


@pytest.mark.parametrize("call", sorted(set(CALLS) - MAKES))
def test_a_name_that_does_not_exist(mnt: Path, call: str) -> None:
    (mnt / "d").mkdir()
    with fails(errno.ENOENT):
        CALLS[call](mnt / "d" / "none")


@pytest.mark.parametrize("call", CALLS)
def test_a_component_that_is_too_long(mnt: Path, call: str) -> None:
    with fails(errno.ENAMETOOLONG):
        CALLS[call](mnt / ("n" * 256) / "x")


@pytest.mark.parametrize("call", CALLS)
def test_a_loop_of_symlinks(mnt: Path, call: str) -> None:
    os.symlink("b", mnt / "a")
    os.symlink("a", mnt / "b")
    with fails(errno.ELOOP):
        CALLS[call](mnt / "a" / "x")


@pytest.mark.parametrize("call", CALLS)
def test_a_directory_that_may_not_be_searched(mnt: Path, call: str) -> None:
    (mnt / "d").mkdir()
    (mnt / "d" / "x").touch()
    source(mnt / "d" / "x").chmod(0o666)
    os.chown(mnt / "source", ALICE, ALICE)
    os.chmod(mnt / "d", 0o600)

    def run() -> None:
        with fails(errno.EACCES):
            CALLS[call](mnt / "d" / "x")

    as_user(ALICE, run)
    assert os.listdir(mnt / "d") == ["x"]


@pytest.mark.parametrize("call", [*sorted(MAKES), "unlink", "rename from"])
def test_a_directory_that_may_not_be_written(mnt: Path, call: str) -> None:
    (mnt / "d").mkdir()
    source(mnt / "d" / "x").chmod(0o666)
    os.chown(mnt / "source", ALICE, ALICE)
    if call not in MAKES:
        (mnt / "d" / "x").touch()

    def run() -> None:
        with fails(errno.EACCES):
            CALLS[call](mnt / "d" / "x")

    as_user(ALICE, run)


@pytest.mark.parametrize("call", ["mkdir", "mkfifo", "mknod", "symlink", "link to"])
@pytest.mark.parametrize("kind", ["file", "dir", "symlink", "fifo"])
def test_a_name_that_exists(mnt: Path, call: str, kind: str) -> None:
    (mnt / "d").mkdir()
    x = mnt / "d" / "x"
    make(x, kind)
    with fails(errno.EEXIST):
        CALLS[call](x)


def test_other_filesystems_are_across_a_border(mnt: Path) -> None:
    (mnt / "f").touch()
    with fails(errno.EXDEV):
        os.link(mnt / "f", "/dev/nnfs-test-link")
    with fails(errno.EXDEV):
        os.rename(mnt / "f", "/dev/nnfs-test-link")


def test_calls_on_the_wrong_kind(mnt: Path) -> None:
    (mnt / "f").touch()
    (mnt / "d").mkdir()
    os.symlink("t", mnt / "l")
    os.mkfifo(mnt / "p")
    for path in (mnt / "f", mnt / "d", mnt / "p"):
        with fails(errno.EINVAL):
            os.readlink(path)
    with fails(errno.EISDIR):
        os.truncate(mnt / "d", 0)
    with fails(errno.EINVAL):
        os.truncate(mnt / "p", 0)
    with fails(errno.ENOTDIR):
        os.listdir(mnt / "f")
    fd = os.open(mnt / "d", os.O_RDONLY)
    with fails(errno.EISDIR):
        os.read(fd, 10)
    with fails(errno.EINVAL):
        os.ftruncate(fd, 0)
    os.close(fd)
    fd = os.open(mnt / "f", os.O_RDONLY)
    with fails(errno.EINVAL):
        os.ftruncate(fd, 0)
    os.close(fd)
    with fails(errno.EINVAL):
        os.rmdir(f"{mnt}/d/.")


def test_empty_and_odd_paths(mnt: Path) -> None:
    (mnt / "f").touch()
    (mnt / "d").mkdir()
    for attempt in (
        lambda: os.stat(os.fsencode(mnt) + b"/f/"),
        lambda: os.mkdir(os.fsencode(mnt) + b"/f/"),
        lambda: os.rename(mnt / "f", os.fsencode(mnt) + b"/g/"),
        lambda: os.unlink(os.fsencode(mnt) + b"/f/"),
    ):
        with fails(errno.ENOTDIR, errno.EEXIST):
            attempt()
    os.mkdir(os.fsencode(mnt) + b"/e/")
    os.rename(os.fsencode(mnt) + b"/e/", os.fsencode(mnt) + b"/d/")
    assert sorted(os.listdir(mnt)) == ["d", "f"]


def test_a_running_program_is_not_overwritten(mnt: Path) -> None:
    program = mnt / "sleep"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    os.chmod(program, 0o755)
    pid = os.spawnv(os.P_NOWAIT, program, ["sleep", "100"])
    try:
        # Until exec is over the file may still be written.
        exe = Path(f"/proc/{pid}/exe")
        for _ in range(100_000):
            if exe.resolve() == program:
                break
        with fails(errno.ETXTBSY):
            os.open(program, os.O_WRONLY)
        os.unlink(program)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
