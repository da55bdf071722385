"""Quotas on a mount: the command, df, attributes, errors of write and fsync, kill -9 while inodes are counted."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nnfs.cli import client
from nnfs.constants import STORE_XATTR
from nnfs.fs import quotareport
from nnfs.fs.fsck import check
from nnfs.store.env import Store
from tests.conftest import why_no_mount
from tests.harness import Mount, nnfs, wait_for
from tests.mount.kit import emptied

pytestmark = pytest.mark.skipif(why_no_mount() is not None, reason="mounting needs root and /dev/fuse")
MIB = 1 << 20
PREFIX = "user.nnfs.quota."


def quota(action: str, path: Path, **limits: int) -> Any:
    """The daemon's answer to `nnfs quota ACTION PATH`."""
    store = Path(os.fsdecode(os.getxattr(path, STORE_XATTR)))
    return client.ask(store, f"quota_{action}", timeout=None, ino=path.stat().st_ino, **limits)


def said(action: str, path: Path, *more: str) -> Any:
    """The answer of `nnfs quota ACTION PATH ... --json`."""
    return json.loads(nnfs("quota", action, str(path), *more, "--json").stdout)


def counted(path: Path) -> tuple[int, int]:
    """Bytes and inodes that count for the quota of a directory."""
    line = quota("show", path)["quotas"][0]
    return line["bytes"], line["inodes"]


def refused(code: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        call()
    assert caught.value.errno == code


@pytest.fixture
def mnt(mounted: Mount) -> Iterator[Path]:
    """The root of the module's mount, empty and without quotas."""
    mnt = emptied(mounted)
    for line in quota("show", mnt)["quotas"]:
        if line["path"] == "/":
            nnfs("quota", "remove", str(mnt))
    wait_for("a mount without quotas", lambda: not quota("show", mnt)["quotas"])
    yield mnt
    assert quota("check", mnt) == {"wrong": [], "misplaced": 0, "unknown": 0, "repaired": False}
    mounted.deadline(0)


def test_the_command(mnt: Path) -> None:
    (mnt / "d/e").mkdir(parents=True)
    (mnt / "d/file").write_bytes(b"x" * 1000)
    lines = said("set", mnt / "d", "--bytes", "1M", "--inodes", "10")["quotas"]
    assert lines == [{
        "path": "/d", "number": 1, "ino": (mnt / "d").stat().st_ino, "max_bytes": MIB, "bytes": 1000,
        "max_inodes": 10, "inodes": 3, "counting": False, "removing": False,
    }]  # fmt: skip
    said("set", mnt / "d/e", "--inodes", "2")
    assert [line["path"] for line in said("show", mnt)["quotas"]] == ["/d", "/d/e"]
    assert [line["path"] for line in said("show", mnt / "d/e")["quotas"]] == ["/d/e", "/d"]
    text = nnfs("quota", "show", str(mnt)).stdout
    assert "/d/e" in text
    assert "1.00 MiB" in text
    nnfs("quota", "remove", str(mnt / "d"))
    assert [line["path"] for line in said("show", mnt)["quotas"]] == ["/d/e"]
    said("set", mnt / "d/e", "--inodes", "0")
    assert said("show", mnt)["quotas"] == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("set", "d"), "say which limit"), (("set", "file", "--bytes", "1M"), "a quota is that of a directory"),
        (("set", "d", "--bytes", "many"), "is not a number of bytes"), (("remove", "d"), "no quota of its own"),
        (("set", "d", "--inodes", str(1 << 64)), "from 0 to 2^64 - 1"),
    ],
)  # fmt: skip
def test_bad_words_are_told(mnt: Path, words: tuple[str, ...], says: str) -> None:
    (mnt / "d").mkdir()
    (mnt / "file").touch()
    action, name, *more = words
    done = nnfs("quota", action, str(mnt / name), *more, check=False)
    assert done.returncode == 2 or (done.returncode, action) == (2, "remove")
    assert says in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_writes_fail_at_once_near_the_limit(mnt: Path) -> None:
    (mnt / "d").mkdir()
    quota("set", mnt / "d", bytes=MIB)
    with (mnt / "d/file").open("wb", buffering=0) as file:
        for _ in range(16):
            file.write(b"x" * 65536)
        refused(errno.EDQUOT, lambda: file.write(b"x"))
    assert counted(mnt / "d") == (MIB, 2)
    refused(errno.EDQUOT, lambda: os.truncate(mnt / "d/file", MIB + 1))
    os.truncate(mnt / "d/file", MIB - 10)
    assert (mnt / "d/file").read_bytes() == b"x" * (MIB - 10)
    refused(errno.EDQUOT, lambda: os.symlink("a long target", mnt / "d/link"))
    os.symlink("short", mnt / "d/link")


def test_fsync_tells_what_the_kernel_has_cached(mnt: Path) -> None:
    (mnt / "d").mkdir()
    quota("set", mnt / "d", bytes=MIB)
    descriptor = os.open(mnt / "d/file", os.O_RDWR | os.O_CREAT)
    try:
        os.write(descriptor, b"x" * (2 * MIB))
        refused(errno.EDQUOT, lambda: os.fsync(descriptor))
        os.ftruncate(descriptor, 100)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    assert counted(mnt / "d") == (100, 2)


def test_files_and_names(mnt: Path) -> None:
    (mnt / "d").mkdir()
    quota("set", mnt / "d", inodes=3)
    (mnt / "d/a").touch()
    (mnt / "d/b").mkdir()
    refused(errno.EDQUOT, (mnt / "d/c").touch)
    refused(errno.EDQUOT, (mnt / "d/c").mkdir)
    refused(errno.EDQUOT, lambda: os.mkfifo(mnt / "d/c"))
    (mnt / "c").touch()
    refused(errno.EDQUOT, lambda: os.rename(mnt / "c", mnt / "d/c"))
    os.unlink(mnt / "d/a")
    os.rename(mnt / "c", mnt / "d/a")
    refused(errno.EXDEV, lambda: os.link(mnt / "d/a", mnt / "c"))
    os.rename(mnt / "d/a", mnt / "a")
    (mnt / "d/c").touch()


def test_open_files_go_on_and_count(mnt: Path) -> None:
    """Handles that were open before, and files without names, are held to the limit, too."""
    (mnt / "d").mkdir()
    with (mnt / "d/file").open("wb", buffering=0) as file:
        file.write(b"x" * 1000)
        quota("set", mnt / "d", bytes=2000)
        file.write(b"x" * 1000)
        os.fsync(file.fileno())
        file.write(b"x" * 1000)
        refused(errno.EDQUOT, lambda: os.fsync(file.fileno()))
        os.unlink(mnt / "d/file")
        refused(errno.EDQUOT, lambda: (mnt / "d/other").write_bytes(b"x" * 1000))
    wait_for("the space of the closed file", lambda: counted(mnt / "d")[0] == 0)
    (mnt / "d/other").write_bytes(b"x" * 2000)


def test_df_shows_the_limit(mnt: Path) -> None:
    (mnt / "d/e").mkdir(parents=True)
    (mnt / "d/file").write_bytes(b"x" * MIB)
    whole = os.statvfs(mnt)
    quota("set", mnt / "d", bytes=10 * MIB, inodes=100)
    for path in (mnt / "d", mnt / "d/e", mnt / "d/file"):
        shown = os.statvfs(path)
        assert shown.f_blocks * shown.f_frsize == 10 * MIB
        assert shown.f_bavail * shown.f_frsize == 9 * MIB
        assert (shown.f_files, shown.f_ffree) == (100, 97)
    assert os.statvfs(mnt).f_blocks == pytest.approx(whole.f_blocks, rel=0.2)
    quota("set", mnt / "d/e", bytes=100 * MIB)
    shown = os.statvfs(mnt / "d/e")
    assert shown.f_blocks * shown.f_frsize == 100 * MIB
    assert shown.f_bavail * shown.f_frsize == 9 * MIB  # the outer one leaves no more
    (mnt / "d/e").rmdir()


def test_attributes_set_and_show_limits(mnt: Path) -> None:
    (mnt / "d").mkdir()
    os.setxattr(mnt / "d", PREFIX + "max_bytes", b"1M")
    os.setxattr(mnt / "d", PREFIX + "max_inodes", b"5")
    (mnt / "d/a").write_bytes(b"x" * 10)
    values = {name: os.getxattr(mnt / "d", PREFIX + name) for name in ("max_bytes", "max_inodes", "bytes", "inodes")}
    assert values == {"max_bytes": b"1048576", "max_inodes": b"5", "bytes": b"10", "inodes": b"2"}
    assert os.listxattr(mnt / "d") == []
    refused(errno.EINVAL, lambda: os.setxattr(mnt / "d", PREFIX + "max_bytes", b"much"))
    refused(errno.EINVAL, lambda: os.setxattr(mnt / "d/a", PREFIX + "max_bytes", b"1"))
    refused(errno.ENODATA, lambda: os.getxattr(mnt, PREFIX + "bytes"))
    os.removexattr(mnt / "d", PREFIX + "max_bytes")
    refused(errno.ENODATA, lambda: os.getxattr(mnt / "d", PREFIX + "max_bytes"))
    refused(errno.ENODATA, lambda: os.removexattr(mnt / "d", PREFIX + "max_bytes"))
    os.setxattr(mnt / "d", PREFIX + "max_inodes", b"0")
    wait_for("no quota", lambda: not quota("show", mnt)["quotas"])


def test_users_cannot_change_limits(mnt: Path) -> None:
    (mnt / "d").mkdir()
    quota("set", mnt / "d", inodes=3)
    os.chown(mnt / "d", 4711, 4711)

    def as_user() -> int:
        os.setgid(4711)
        os.setuid(4711)
        refused(errno.EPERM, lambda: os.setxattr(mnt / "d", PREFIX + "max_inodes", b"9"))
        (mnt / "d/a").touch()
        (mnt / "d/b").touch()
        refused(errno.EDQUOT, (mnt / "d/c").touch)
        return 0

    child = os.fork()
    if child == 0:
        try:
            os._exit(as_user())
        except BaseException:  # noqa: BLE001 - the parent tells
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_of_everything(mnt: Path) -> None:
    (mnt / "d").mkdir()
    quota("set", mnt, bytes=MIB, inodes=4)
    with (mnt / "file").open("wb", buffering=0) as file:
        file.write(b"x" * MIB)
        refused(errno.ENOSPC, lambda: file.write(b"x"))
    (mnt / "d/a").touch()
    refused(errno.ENOSPC, (mnt / "d/b").touch)
    assert counted(mnt) == (MIB, 4)
    shown = os.statvfs(mnt)
    assert (shown.f_blocks * shown.f_frsize, shown.f_files, shown.f_ffree) == (MIB, 4, 0)


def test_snapshots_do_not_count(mnt: Path) -> None:
    (mnt / "d").mkdir()
    quota("set", mnt / "d", bytes=1000)
    (mnt / "d/a").write_bytes(b"x" * 900)
    nnfs("snapshot", "create", str(mnt), "one")
    os.unlink(mnt / "d/a")
    (mnt / "d/b").write_bytes(b"y" * 900)
    assert counted(mnt / "d") == (900, 2)
    done = nnfs("snapshot", "restore", str(mnt / "d/a"), "one", check=False)
    assert done.returncode != 0
    os.unlink(mnt / "d/b")
    nnfs("snapshot", "restore", str(mnt / "d/a"), "one")
    assert counted(mnt / "d") == (900, 2)
    nnfs("snapshot", "delete", str(mnt), "one")


def assert_sound(store: Path) -> None:
    """The sums of a store that is not mounted are those of a walk, and fsck finds nothing."""
    opened = Store.open(store, readonly=True)
    with opened.read() as snapshot:
        found = quotareport.check(snapshot)
    assert (found.missing, found.misplaced, found.unknown) == ({}, {}, 0)
    assert not check(opened, data=False, repair=False, progress=lambda *_: None).problems
    opened.close()


def test_kill_while_inodes_are_counted() -> None:
    with Mount() as mount:
        mount.deadline()
        for name in "abcdef":
            (mount.path / "d" / name).mkdir(parents=True)
            for number in range(100):
                (mount.path / "d" / name / str(number)).write_bytes(b"x" * number)
        truth = 6 * sum(range(100)), 1 + 6 * 101
        for limit, expected in ((10_000, [truth]), (0, [])):
            quota("set", mount.path / "d", inodes=limit, wait=False)
            mount.kill()
            opened = Store.open(mount.store, readonly=True)
            with opened.read() as snapshot:
                assert not quotareport.check(snapshot).missing
            opened.close()
            mount.mount()
            wait_for("the end of it", lambda: all(
                not line["counting"] and not line["removing"] for line in quota("show", mount.path)["quotas"]
            ))  # fmt: skip
            assert [(line["bytes"], line["inodes"]) for line in quota("show", mount.path)["quotas"]] == expected
        quota("set", mount.path / "d", bytes=1 << 30)
        nnfs("backup", str(mount.path), str(mount.base / "copy.mdb"))
        mount.unmount()
        assert_sound(mount.store)
        (mount.base / "second").mkdir()
        os.rename(mount.base / "copy.mdb", mount.base / "second/data.mdb")
        assert_sound(mount.base / "second")
        lines = json.loads(nnfs("quota", "show", str(mount.base / "second"), "--json").stdout)["quotas"]
        assert [(line["path"], line["max_bytes"], line["bytes"]) for line in lines] == [("/d", 1 << 30, truth[0])]
        mount.mount()
