"""The daemon after an internal failure: it answers, logs the failure, and stays mounted."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from nnfs.config import Options, parse_own
from nnfs.constants import SOCKET_NAME
from nnfs.errors import MountError, UsageError
from nnfs.mount.control import short_name
from tests.caches import sync_fs
from tests.harness import Mount, mounted_at, nnfs, wait_for

SCRIPT = Path(__file__).with_name("buggy_daemon.py")


def buggy(store: Path, bug: str = "link", **env: str) -> Mount:
    """A mount with a bug."""
    mount = Mount(
        store, argv=lambda m: [sys.executable, str(SCRIPT), str(m.store), str(m.path)], env={"BUG": bug, **env}
    )
    mount.expect_log("ZeroDivisionError")
    return mount


@pytest.mark.mount
def test_a_bug_turns_the_mount_read_only_and_ends_nothing(tmp_path: Path) -> None:
    mount = buggy(tmp_path / "store")
    with mount:
        (mount.path / "before").write_bytes(b"kept")
        with pytest.raises(OSError, match="Input/output error"):
            os.link(mount.path / "before", mount.path / "after")
        with pytest.raises(OSError, match="Read-only file system"):
            (mount.path / "new").write_bytes(b"")
        with pytest.raises(OSError, match="Read-only file system"):
            os.unlink(mount.path / "before")
        mount.drop_caches()
        assert (mount.path / "before").read_bytes() == b"kept"
        assert os.listdir(mount.path) == ["before"]
        assert "a bug in link" in nnfs("status", str(mount.path)).stdout
        assert mount.log().count("Traceback") == 1
    nnfs("fsck", str(tmp_path / "store"), "--data")


@pytest.mark.mount
@pytest.mark.parametrize("bug", ["tell", "watchdog", "accept"])
def test_a_bug_in_a_task_ends_neither_the_mount_nor_the_last_commit(tmp_path: Path, bug: str) -> None:
    with buggy(tmp_path / "store", bug, WATCHDOG_USEC="1000000000") as mount:
        if bug == "accept":
            with socket.socket(socket.AF_UNIX) as client, short_name(mount.store / SOCKET_NAME) as name:
                client.connect(name)
        (mount.path / "a").write_bytes(b"a" * 300_000)
        (mount.path / "b").write_bytes(b"b")
        wait_for("the bug", lambda: f"a bug in {bug}" in mount.log())
        assert sorted(os.listdir(mount.path)) == ["a", "b"]
    with Mount(tmp_path / "store") as mount:
        assert "not cleanly unmounted" not in mount.log()
        assert (mount.path / "a").read_bytes() == b"a" * 300_000
        assert (mount.path / "b").read_bytes() == b"b"


@pytest.mark.mount
def test_a_bug_in_reading_is_told_to_the_reader(tmp_path: Path) -> None:
    with buggy(tmp_path / "store", "fetch") as mount:
        (mount.path / "a").write_bytes(os.urandom(300_000))
        with (mount.path / "a").open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with contextlib.suppress(OSError):  # the first chunk may have been read before
                file.read()
        assert "a bug in read: ZeroDivisionError" in nnfs("status", str(mount.path)).stdout
        assert os.listdir(mount.path) == ["a"]


@pytest.mark.mount
@pytest.mark.parametrize("bug", ["serve", "finish"])
def test_a_bug_that_ends_the_mount_ends_it_with_an_error(tmp_path: Path, bug: str) -> None:
    with buggy(tmp_path / "store", bug) as mount:
        (mount.path / "kept").write_bytes(b"kept")
        with contextlib.suppress(OSError):
            sync_fs(mount.path)
        with contextlib.suppress(OSError):  # nobody may be left to answer
            (mount.path / "new").touch()
            (mount.path / "new").unlink()
        if bug == "serve":
            wait_for("the daemon's end", lambda: not mount.alive)
        mount.unmount(expect=MountError.exit_code if bug == "serve" else 1)
        assert not mounted_at(mount.path)
        assert mount.log().count(" ERROR ") == 1
    if bug == "serve":
        with Mount(tmp_path / "store") as mount:
            assert "not cleanly unmounted" not in mount.log()
            assert (mount.path / "kept").read_bytes() == b"kept"


@pytest.mark.mount
def test_a_mount_that_does_not_come_about_says_why(tmp_path: Path) -> None:
    """It raises the error itself, not a group of errors with tracebacks."""
    store, where = tmp_path / "store", tmp_path / "mnt"
    nnfs("mkfs", str(store))
    (store / SOCKET_NAME).write_text("precious")
    where.mkdir()
    done = nnfs("mount", str(store), str(where), "-f", check=False)
    assert done.returncode == UsageError.exit_code
    assert "in the way of the control socket" in done.stderr
    assert "Traceback" not in done.stderr
    assert not mounted_at(where)


@pytest.mark.mount
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_unmount_cleanly(fresh_mount: Mount, number: signal.Signals) -> None:
    (fresh_mount.path / "f").write_bytes(b"x" * 100_000)
    os.kill(fresh_mount.pid, number)
    wait_for("the daemon's end", lambda: not fresh_mount.alive)
    assert not mounted_at(fresh_mount.path)
    fresh_mount.unmount()
    fresh_mount.mount()
    assert (fresh_mount.path / "f").read_bytes() == b"x" * 100_000
    assert "not cleanly unmounted" not in fresh_mount.log()


@pytest.mark.mount
def test_sigterm_with_open_files_detaches(fresh_mount: Mount) -> None:
    """The mount point is free at once; the daemon goes on until the last file is closed, and loses nothing."""
    with open(fresh_mount.path / "f", "wb") as file:
        file.write(b"before ")
        file.flush()
        os.kill(fresh_mount.pid, signal.SIGTERM)
        wait_for("the mount to go", lambda: not mounted_at(fresh_mount.path))
        assert fresh_mount.alive
        file.write(b"after")
    wait_for("the daemon's end", lambda: not fresh_mount.alive)
    fresh_mount.unmount()
    fresh_mount.mount()
    assert (fresh_mount.path / "f").read_bytes() == b"before after"


@pytest.mark.mount
def test_a_second_mount_of_a_store_is_refused(fresh_mount: Mount, tmp_path: Path) -> None:
    done = nnfs("mount", str(fresh_mount.store), str(tmp_path), "-f", check=False)
    assert done.returncode == 5
    assert "in use" in done.stderr
    assert (fresh_mount.path).is_dir()


@pytest.mark.mount
def test_a_store_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    store, where = tmp_path / "store", tmp_path / "mnt"
    store.mkdir()
    where.mkdir()
    (store / "thesis.tex").write_text("x")
    done = nnfs("mount", str(store), str(where), check=False)
    assert done.returncode == 4
    assert "thesis" not in done.stderr
    assert os.listdir(store) == ["thesis.tex"]
    assert not mounted_at(where)


def test_options() -> None:
    assert parse_own({}) == Options()
    assert parse_own({"cache": "64M", "dirty": "1G", "read_timeout": "2.5"}) == Options(64 << 20, 1 << 30, 2.5)
    for bad in ({"cach": "1"}, {"cache": "x"}, {"dirty": "1M"}, {"read_timeout": "0"}, {"cache": "-1"}):
        with pytest.raises(UsageError):
            parse_own(bad)
    assert UsageError.errno == errno.EINVAL
