"""The commands on a mount: mount, umount, df, stat, status, backup."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

import nnfs as nnfs_package
from nnfs import errors
from nnfs.cli import client
from nnfs.constants import DATA_FILE, SOCKET_NAME
from nnfs.mount.mountpoint import is_dead
from nnfs.store.env import Store
from tests.conftest import why_no_mount
from tests.ending import gone, wait_gone
from tests.harness import Mount, mounted_at, nnfs, umount, wait_for, work_dir

needs_mount = pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")


@needs_mount
@pytest.mark.mount
def test_df_stat_and_status_of_a_mount(mount: Mount) -> None:
    (mount.path / "text").write_bytes(b"the same line\n" * 10_000)
    (mount.path / "copy").write_bytes(b"the same line\n" * 10_000)
    (mount.path / "noise").write_bytes(os.urandom(40_000))
    with (mount.path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    (mount.path / "link").symlink_to("text")
    for path in (mount.path, mount.path / "text", mount.store):
        df = json.loads(nnfs("df", "--json", str(path)).stdout)
        assert df["logical_bytes"] == 2 * 140_000 + 40_000
        assert {line["codec"] for line in df["codecs"]} == {"raw", "zstd"}
        assert df["stored_bytes"] == sum(line["stored_bytes"] for line in df["codecs"]) < 60_000
        assert all(line["fingerprint"] is None for line in df["codecs"])
    stat = json.loads(nnfs("stat", "--json", str(mount.path / "text")).stdout)
    assert (stat["size"], stat["chunks"], stat["holes"], stat["type"]) == (140_000, 9, 0, "file")
    assert stat["ino"] == (mount.path / "text").stat().st_ino
    assert stat["shared"] == 9
    sparse = json.loads(nnfs("stat", "--json", str(mount.path / "sparse")).stdout)
    assert (sparse["chunks"], sparse["holes"]) == (0, (1 << 40) // 16384)
    assert json.loads(nnfs("stat", "--json", str(mount.path / "link")).stdout)["type"] == "symbolic link"
    tree = json.loads(nnfs("stat", "--json", str(mount.path)).stdout)
    assert (tree["inodes"], tree["size"]) == (5, (1 << 40) + 2 * 140_000 + 40_000)
    status = json.loads(nnfs("status", "--json", str(mount.path)).stdout)
    assert (status["pid"], status["mountpoint"], status["store"]) == (mount.pid, str(mount.path), str(mount.store))
    assert client.daemon_pid(mount.store) == mount.pid
    for name in ("df", "status", "stat"):
        assert nnfs(name, str(mount.path)).stdout.strip()
    mount.deadline(0)


@needs_mount
@pytest.mark.mount
def test_the_control_socket_is_the_owners_only(mount: Mount) -> None:
    assert (mount.store / SOCKET_NAME).stat().st_mode & 0o777 == 0o600
    mount.unmount()
    assert not (mount.store / SOCKET_NAME).exists()
    mount.mount()


@needs_mount
@pytest.mark.mount
def test_others_are_told_that_they_may_not(mount: Mount) -> None:
    child = os.fork()
    if child == 0:  # no exec: the interpreter may lie where others cannot read
        status = 99
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            client.ask(mount.store, "df")
        except errors.DaemonError as error:
            status = error.exit_code if "only who has mounted" in str(error) else 98
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errors.DaemonError.exit_code
    assert mounted_at(mount.path)


@needs_mount
@pytest.mark.mount
def test_a_second_mount_is_refused(mount: Mount, tmp_path: Path) -> None:
    done = nnfs("mount", str(mount.store), str(tmp_path), check=False)
    assert done.returncode == errors.StoreBusy.exit_code
    assert done.stderr.count("\n") == 1
    assert "in use" in done.stderr
    assert nnfs("fsck", str(mount.store), check=False).returncode == 8


@needs_mount
@pytest.mark.mount
def test_hot_backup(mount: Mount, tmp_path: Path) -> None:
    (mount.path / "file").write_bytes(b"content" * 5000)
    nnfs("backup", str(mount.path), str(tmp_path / "copy.mdb"))
    refused = nnfs("backup", str(mount.path), str(mount.path / "copy.mdb"), check=False)
    assert refused.returncode == 2
    (tmp_path / "restored").mkdir()
    (tmp_path / "copy.mdb").rename(tmp_path / "restored" / DATA_FILE)
    assert nnfs("fsck", "--data", str(tmp_path / "restored"), check=False).returncode == 0
    with Mount(store=tmp_path / "restored") as restored:
        assert (restored.path / "file").read_bytes() == b"content" * 5000


class Background:
    """`nnfs mount` without -f, unmounted in all cases."""

    def __init__(self, *args: str) -> None:
        self.base = work_dir()
        self.store, self.mnt = self.base / "store", self.base / "mnt"
        self.log = self.base / "log"
        self.mnt.mkdir()
        self.store.mkdir()
        self.args = args

    def __enter__(self) -> Background:
        options = ["--log", str(self.log), "-o", "create"]
        self.done = nnfs("mount", str(self.store), str(self.mnt), *options, *self.args)
        return self

    def __exit__(self, *_: object) -> None:
        pid = client.daemon_pid(self.store)
        if mounted_at(self.mnt):
            umount(self.mnt, 2)
        if pid is not None:
            wait_gone(pid, self.log)
        subprocess.run(["rm", "-r", str(self.base)], check=True)


@needs_mount
@pytest.mark.mount
def test_mount_returns_when_mounted_and_umount_when_committed() -> None:
    with Background("--chunk-size", "32K", "-o", "noatime") as back:
        assert back.done.stdout == ""
        assert back.done.stderr == f"nnfs: {back.store} was empty: made a new store in it\n"
        assert mounted_at(back.mnt)
        (back.mnt / "file").write_text("kept")
        status = json.loads(nnfs("status", str(back.mnt), "--json").stdout)
        assert os.getsid(status["pid"]) == status["pid"]
        assert os.readlink(f"/proc/{status['pid']}/fd/0") == os.devnull
        nnfs("umount", str(back.mnt))
        assert gone(status["pid"])
        opened = Store.open(back.store)
        assert opened.superblock.chunk_size == 32768
        assert opened.state.clean_commit == opened.state.commit > 0
        opened.close()
        assert "INFO nnfs" in back.log.read_text()


@needs_mount
@pytest.mark.mount
def test_umount_by_the_stores_name_and_of_a_busy_mount() -> None:
    with Background() as back:
        with (back.mnt / "open").open("w"):
            done = nnfs("umount", str(back.mnt), check=False)
            assert done.returncode == errors.MountError.exit_code
            assert "is busy" in done.stderr
            assert mounted_at(back.mnt)
        nnfs("umount", str(back.store))
        assert not mounted_at(back.mnt)
        assert nnfs("umount", str(back.mnt), check=False).returncode == 2


@needs_mount
@pytest.mark.mount
def test_lazy_umount_ends_with_the_last_user() -> None:
    with Background() as back:
        pid = client.daemon_pid(back.store)
        assert pid is not None
        with (back.mnt / "open").open("w") as file:
            nnfs("umount", "-l", str(back.mnt))
            assert not mounted_at(back.mnt)
            file.write("still written")
            file.flush()
            assert not gone(pid)
        wait_gone(pid, back.log)
        nnfs("fsck", "--data", str(back.store))


@needs_mount
@pytest.mark.mount
@pytest.mark.parametrize("words", [[], ["-l"], ["-f"]])
def test_umount_of_a_dead_mount(words: list[str]) -> None:
    with Background() as back:
        pid = client.daemon_pid(back.store)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for("the end of its threads", lambda: client.daemon_pid(back.store) is None)
        assert gone(pid)
        done = nnfs("umount", *words, str(back.mnt), check=False)
        assert not mounted_at(back.mnt)
        assert done.returncode == errors.MountError.exit_code, "what was not synced may be lost"
        assert "its daemon had died" in done.stderr
        assert "see the log" in done.stderr
        done = nnfs("umount", *words, str(back.mnt), check=False)
        assert "is not mounted" in done.stderr


@needs_mount
@pytest.mark.mount
def test_umount_of_a_dead_mount_that_lost_nothing() -> None:
    with Background("-o", "ro") as back:
        pid = client.daemon_pid(back.store) or json.loads(nnfs("status", str(back.mnt), "--json").stdout)["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for("the end of its threads", lambda: is_dead(str(back.mnt)))
        assert "its daemon had died" in nnfs("umount", str(back.mnt)).stderr
        assert not mounted_at(back.mnt)


@needs_mount
@pytest.mark.mount
def test_a_failed_start_gives_its_message_and_status(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").touch()
    done = nnfs("mount", str(tmp_path / "full"), str(tmp_path / "mnt"), "--log", str(tmp_path / "log"), check=False)
    assert done.returncode == errors.NotAStore.exit_code
    assert done.stderr.startswith("nnfs: ")
    assert done.stderr.count("\n") == 1
    done = nnfs("mount", str(tmp_path / "new"), str(tmp_path / "mnt"), "-o", "fsname=", check=False)
    assert done.returncode == errors.UsageError.exit_code
    assert "fsname" in done.stderr


@needs_mount
@pytest.mark.mount
def test_what_was_done_is_listed_after_a_remount(mount: Mount) -> None:
    """They are listed also while nothing is mounted. `status` tells the log, the version and the last scrub."""
    (mount.path / "file").write_bytes(b"text " * 1000)
    nnfs("scrub", str(mount.path), "--wait")
    nnfs("thaw", str(mount.path), "--wait")

    def listed() -> list[tuple[int, str, str]]:
        found = json.loads(nnfs("jobs", str(mount.store), "--json").stdout)["jobs"]
        return [(one["job"], one["kind"], one["state"]) for one in found]

    ended = [(1, "scrub", "done"), (2, "thaw", "done")]
    assert listed() == ended
    mount.unmount()
    assert listed() == ended
    mount.mount()
    assert listed() == ended
    assert json.loads(nnfs("thaw", str(mount.path), "--json").stdout)["job"] == 3
    status = json.loads(nnfs("status", str(mount.path), "--json").stdout)
    assert status["scrubbed"]["checksums"] > 1e9
    assert (status["scrubbed"]["deep"], status["log"], status["version"]) == (None, "stderr", nnfs_package.__version__)
    assert status["free_bytes"] >= 0
    assert "scrub (task 1): done" in mount.log().replace(f"scrub {mount.path} (", "scrub (")
    mount.deadline(0)
