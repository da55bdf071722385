"""The end of a mount, and its holders: bind mounts, dead and stopped daemons, other namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nnfs.cli import client
from nnfs.errors import DaemonError, MountError, StoreBusy, UsageError
from nnfs.mount import holders
from nnfs.mount.table import mounts
from tests.guard import MNT_DETACH
from tests.harness import WAIT_S, Mount, command, environment, mounted_at, nnfs, umount, wait_for
from tests.mount.kit import bind, is_clean, stopped

pytestmark = pytest.mark.mount


def count(path: Path) -> int:
    """Return how many mounts there are at a mount point."""
    return sum(mount.mountpoint == str(path) for mount in mounts())


def device(path: Path) -> str:
    """The device of a mount as the table has it."""
    return next(mount.device for mount in mounts() if mount.mountpoint == str(path))


def mount_and_kill(mount: Mount, log: Path) -> None:
    """Leave the mount of a daemon that was killed, the attributes of whose root the kernel has cached."""
    nnfs("mount", str(mount.store), str(mount.path), "--log", str(log))
    os.stat(mount.path)
    pid = client.daemon_pid(mount.store)
    assert pid is not None
    with open(os.pidfd_open(pid), "rb") as daemon:
        os.kill(pid, signal.SIGKILL)
        assert select.select([daemon], [], [], WAIT_S)[0]


def test_mounts_of_dead_daemons_do_not_pile_up(fresh_mount: Mount, tmp_path: Path) -> None:
    (fresh_mount.path / "f").write_bytes(b"kept")
    fresh_mount.unmount()
    for _ in range(3):
        mount_and_kill(fresh_mount, tmp_path / "log")
        assert count(fresh_mount.path) == 1
    for _ in range(3):  # as an earlier version left them: a bind mount is as good as one of its own
        done = holders._libc.mount(bytes(fresh_mount.path), bytes(fresh_mount.path), None, 4096, None)
        assert done == 0
    assert count(fresh_mount.path) == 4
    nnfs("mount", str(fresh_mount.store), str(fresh_mount.path), "--log", str(tmp_path / "log"))
    assert count(fresh_mount.path) == 1
    assert (fresh_mount.path / "f").read_bytes() == b"kept"
    nnfs("umount", str(fresh_mount.path))
    assert count(fresh_mount.path) == 0


def test_a_living_mount_is_not_covered(fresh_mount: Mount, tmp_path: Path) -> None:
    other = tmp_path / "other"
    nnfs("mkfs", str(other))
    done = nnfs("mount", str(other), str(fresh_mount.path), check=False)
    assert done.returncode == MountError.exit_code
    assert f"{fresh_mount.store} is mounted there already" in done.stderr
    assert count(fresh_mount.path) == 1
    assert not (other / "control").exists()


def test_nor_is_that_of_a_stopped_daemon(fresh_mount: Mount, tmp_path: Path) -> None:
    other = tmp_path / "other"
    nnfs("mkfs", str(other))
    with stopped(fresh_mount):
        done = nnfs("mount", str(other), str(fresh_mount.path), check=False)
    assert done.returncode == MountError.exit_code
    assert "is mounted there already" in done.stderr
    assert count(fresh_mount.path) == 1


@pytest.mark.parametrize("words", ["status", "df", "stat", "umount", "compact", "thaw", "scrub", "policy", "pause"])
def test_commands_on_the_mount_of_a_stopped_daemon_end(fresh_mount: Mount, tmp_path: Path, words: str) -> None:
    (fresh_mount.path / "d").mkdir()
    (tmp_path / "link").symlink_to(fresh_mount.path / "d")
    paths = [fresh_mount.path] if words == "umount" else [fresh_mount.path / "d", tmp_path / "link", fresh_mount.path]
    with stopped(fresh_mount):
        for path in paths:
            done = nnfs(*words.split(), str(path), check=False)
            assert done.returncode == DaemonError.exit_code, done.stderr
            assert f"kill -CONT {fresh_mount.pid}" in done.stderr
    if words != "umount":
        assert nnfs("status", str(paths[-1])).returncode == 0


@pytest.mark.parametrize(
    "words",
    ["mkfs M/s", "fsck M/s", "mount M/s D", "mount S M/d", "mount S D --log M/log", "backup S M/file", "fsck L/s"],
)
def test_paths_on_the_mount_of_a_stopped_daemon_are_not_touched(fresh_mount: Mount, tmp_path: Path, words: str) -> None:
    (fresh_mount.path / "d").mkdir()
    (tmp_path / "D").mkdir()
    (tmp_path / "L").symlink_to(fresh_mount.path)
    nnfs("mkfs", str(tmp_path / "S"))
    names = {"M": str(fresh_mount.path), "S": str(tmp_path / "S"), "D": str(tmp_path / "D"), "L": str(tmp_path / "L")}
    given = [names[head] + word[1:] if (head := word.partition("/")[0]) in names else word for word in words.split()]
    with stopped(fresh_mount):
        done = nnfs(*given, check=False)
    assert done.returncode == (8 if given[0] == "fsck" else DaemonError.exit_code), done.stderr
    assert f"kill -CONT {fresh_mount.pid}" in done.stderr
    assert not (fresh_mount.path / "file").exists()


def test_a_store_under_another_name_is_found_and_a_stopped_daemon_too(fresh_mount: Mount) -> None:
    fresh_mount.options.append("fsname=archive,subtype=other")
    fresh_mount.remount()
    told = json.loads(nnfs("status", str(fresh_mount.path), "--json").stdout)
    assert told["store"] == str(fresh_mount.store)
    with stopped(fresh_mount):
        done = nnfs("status", str(fresh_mount.path), check=False)
        assert done.returncode == DaemonError.exit_code
        assert f"kill -CONT {fresh_mount.pid}" in done.stderr


@pytest.mark.parametrize("where", ["file", "table"])
def test_a_configuration_on_the_mount_of_a_stopped_daemon_is_not_touched(
    fresh_mount: Mount, tmp_path: Path, where: str
) -> None:
    """The file itself; the directory of a store that it names."""
    store, mnt, config = tmp_path / "store", tmp_path / "mnt", tmp_path / "nnfs.toml"
    nnfs("mkfs", str(store))
    mnt.mkdir()
    config.write_text(f"[{str(fresh_mount.path / 'd')!r}]\n")
    if where == "file":
        config = Path(shutil.move(config, fresh_mount.path))
    with stopped(fresh_mount):
        words = command("mount", str(store), str(mnt))
        done = subprocess.run(
            words, env=environment({"NNFS_CONFIG": str(config)}), capture_output=True, text=True, timeout=WAIT_S
        )
        if where == "table":
            nnfs("umount", str(mnt))
    assert done.returncode == (DaemonError.exit_code if where == "file" else 0), done.stderr


# -- what a daemon is started with


def test_a_relative_path_in_the_environment_is_what_the_caller_means(tmp_path: Path) -> None:
    """The daemon runs in "/"."""
    store, mnt = tmp_path / "store", tmp_path / "mnt"
    nnfs("mkfs", str(store))
    mnt.mkdir()
    (tmp_path / "nnfs.toml").write_text("[default]\npolicy = 'hot'\n")
    env = environment({"NNFS_CONFIG": "nnfs.toml", "NUMBA_CACHE_DIR": "kernels"})
    done = subprocess.run(
        command("mount", "store", "mnt"), env=env, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(nnfs("status", str(mnt), "--json").stdout)
    has = Path(f"/proc/{told['pid']}/environ").read_bytes().split(b"\0")
    nnfs("umount", str(mnt))
    assert told["compaction"]["policy"] == "hot"
    assert f"NUMBA_CACHE_DIR={tmp_path}/kernels".encode() in has


def test_a_daemon_imports_nothing_from_where_it_runs(fresh_mount: Mount) -> None:
    """In /nnfs may be a mount, and any user's `__init__.py` in it."""
    fresh_mount.unmount()
    nnfs("mount", str(fresh_mount.store), str(fresh_mount.path))
    pid = client.daemon_pid(fresh_mount.store)
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    nnfs("umount", str(fresh_mount.path))
    fresh_mount.mount()
    assert b"-P" in words[: words.index(b"-m")]


def test_a_mount_that_nobody_waits_for_any_more_is_taken_off(fresh_mount: Mount, tmp_path: Path) -> None:
    """`nnfs mount` was killed while its daemon started: no bug, and no traceback."""
    fresh_mount.unmount()
    read, write = os.pipe()
    os.close(read)
    words = command("mount", "-f", "--ready-fd", str(write), "--log", str(tmp_path / "log"))
    done = subprocess.run(
        [*words, str(fresh_mount.store), str(fresh_mount.path)], env=environment(), pass_fds=[write], timeout=WAIT_S
    )
    os.close(write)
    assert done.returncode == 0
    assert not mounted_at(fresh_mount.path)
    assert "has ended meanwhile" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert is_clean(fresh_mount.store)
    fresh_mount.mount()


@pytest.mark.parametrize("closed", ["0<&- 1>&-", "0<&- 2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-", "0<&-", "2>&-"])
def test_mount_with_closed_descriptors_returns(tmp_path: Path, fresh_mount: Mount, closed: str) -> None:
    fresh_mount.unmount()
    words = command("mount", str(fresh_mount.store), str(fresh_mount.path), "--log", str(tmp_path / "log"))
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *words], env=environment(), timeout=WAIT_S)
    assert done.returncode == 0
    assert mounted_at(fresh_mount.path)
    nnfs("umount", str(fresh_mount.path))
    assert is_clean(fresh_mount.store)
    fresh_mount.mount()


def test_umount_of_a_bind_mount_is_of_that_alone(fresh_mount: Mount, tmp_path: Path) -> None:
    (fresh_mount.path / "d").mkdir()
    bind(fresh_mount.path, tmp_path / "one")
    bind(fresh_mount.path / "d", tmp_path / "two")
    for name in ("one", "two"):
        done = nnfs("umount", str(tmp_path / name))
        assert f"stays mounted on {fresh_mount.path}" in done.stderr
        assert not mounted_at(tmp_path / name)
    assert (fresh_mount.path / "d").is_dir()
    assert fresh_mount.alive


def test_umount_by_the_store_leaves_a_bind_mount(fresh_mount: Mount, tmp_path: Path) -> None:
    bind(fresh_mount.path, tmp_path / "bind")
    done = nnfs("umount", str(fresh_mount.store))
    assert f"stays mounted on {tmp_path / 'bind'}" in done.stderr
    assert not mounted_at(fresh_mount.path)
    nnfs("umount", str(tmp_path / "bind"))
    fresh_mount.unmount()


def test_a_dead_bind_mount_does_not_wait_for_the_next_daemon(fresh_mount: Mount, tmp_path: Path) -> None:
    fresh_mount.unmount()
    nnfs("mount", str(fresh_mount.store), str(fresh_mount.path), "--log", str(tmp_path / "log"))
    bind(fresh_mount.path, tmp_path / "bind")
    pid = client.daemon_pid(fresh_mount.store)
    assert pid is not None
    with open(os.pidfd_open(pid), "rb") as daemon:
        os.kill(pid, signal.SIGKILL)
        assert select.select([daemon], [], [], WAIT_S)[0]
    nnfs("mount", str(fresh_mount.store), str(fresh_mount.path), "--log", str(tmp_path / "log"))
    nnfs("umount", str(tmp_path / "bind"))
    assert not mounted_at(tmp_path / "bind")
    assert client.daemon_pid(fresh_mount.store) is not None
    nnfs("umount", str(fresh_mount.path))
    assert is_clean(fresh_mount.store)


@pytest.mark.parametrize("by", ["mount", "store", "bind", "alias"])
def test_no_backup_goes_into_the_store_itself(fresh_mount: Mount, tmp_path: Path, by: str) -> None:
    bind(fresh_mount.store if by == "alias" else fresh_mount.path, tmp_path / "bind")
    source = fresh_mount.store if by == "store" else fresh_mount.path
    target = (tmp_path / "bind" if by in ("bind", "alias") else fresh_mount.path) / "backup"
    done = nnfs("backup", str(source), str(target), check=False)
    assert done.returncode == UsageError.exit_code, done.stderr
    assert "write the backup elsewhere" in done.stderr
    assert not target.exists()
    umount(tmp_path / "bind")


def test_a_signal_takes_bind_mounts_off_too(fresh_mount: Mount, tmp_path: Path) -> None:
    bind(fresh_mount.path, tmp_path / "bind")
    os.kill(fresh_mount.pid, signal.SIGTERM)
    wait_for("the end", lambda: not fresh_mount.alive)
    fresh_mount.unmount()
    assert not mounted_at(tmp_path / "bind")
    assert is_clean(fresh_mount.store)


def cover(path: Path) -> None:
    """Mount a tmpfs over a mount, with a file in it."""
    subprocess.run(["mount", "-t", "tmpfs", "over", str(path)], check=True)
    (path / "precious").touch()


def test_what_is_mounted_over_a_mount_is_not_taken_for_it(fresh_mount: Mount) -> None:
    cover(fresh_mount.path)
    for more in ([], ["-l"]):
        done = nnfs("umount", *more, str(fresh_mount.store), check=False)
        assert done.returncode == MountError.exit_code
        assert "over (type tmpfs) is mounted over" in done.stderr
    assert (fresh_mount.path / "precious").exists()
    umount(fresh_mount.path)
    nnfs("umount", str(fresh_mount.store))
    fresh_mount.unmount()


def test_a_signal_waits_for_what_is_mounted_over(fresh_mount: Mount) -> None:
    fresh_mount.expect_log("not unmounted, tried again")
    cover(fresh_mount.path)
    os.kill(fresh_mount.pid, signal.SIGTERM)
    wait_for("the daemon's word", lambda: "not unmounted" in fresh_mount.log())
    assert (fresh_mount.path / "precious").exists()
    umount(fresh_mount.path)
    wait_for("the end", lambda: not fresh_mount.alive)
    fresh_mount.unmount()
    assert is_clean(fresh_mount.store)


@contextlib.contextmanager
def elsewhere(mount: Mount, script: str) -> Iterator[subprocess.Popen[str]]:
    """A shell in a private mount namespace with a copy of the mount; it says "there" and waits."""
    words = ["unshare", "-m", "--propagation", "private", "sh", "-c", f"{script}; echo there; read end"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=mount.path) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "there\n"
        yield child
        child.kill()


def test_who_holds_a_mount_is_found(fresh_mount: Mount) -> None:
    (fresh_mount.path / "f").write_bytes(b"x")
    where = device(fresh_mount.path)
    assert holders.look(where) == holders.Held()
    with elsewhere(fresh_mount, "cd /") as child:
        held = holders.look(where)
        assert [one.pid for one in held.namespaces] == [child.pid]
        assert held.users == ()
    for script in ("exec 3<f; cd /", "true"):
        with elsewhere(fresh_mount, script) as child:
            assert [one.pid for one in holders.look(where).users] == [child.pid]
    with subprocess.Popen(
        [sys.executable, "-c", "import mmap,sys; f=open(sys.argv[1],'rb'); m=mmap.mmap(f.fileno(),0,prot=1); input()",
         str(fresh_mount.path / "f")], stdin=subprocess.PIPE,
    ) as mapper:  # fmt: skip
        wait_for("the mapping", lambda: holders.look(where).users)
        mapper.kill()


@pytest.mark.parametrize("how", ["TERM", "umount", "umount -l", "nnfs umount"])
def test_a_namespace_that_only_shows_the_mount_does_not_keep_the_store(fresh_mount: Mount, how: str) -> None:
    (fresh_mount.path / "f").write_bytes(b"x" * 100_000)
    with elsewhere(fresh_mount, "cd /"):
        end(fresh_mount, how)
        wait_for("the daemon's end", lambda: not fresh_mount.alive)
        assert is_clean(fresh_mount.store)
    fresh_mount.unmount()
    assert "mounted still in the mount namespace of sh" in fresh_mount.log()
    fresh_mount.mount()
    assert (fresh_mount.path / "f").read_bytes() == b"x" * 100_000


def end(mount: Mount, how: str) -> None:
    actions: dict[str, Callable[[], object]] = {
        "TERM": lambda: os.kill(mount.pid, signal.SIGTERM),
        "umount": lambda: umount(mount.path),
        "umount -l": lambda: umount(mount.path, MNT_DETACH),
        "nnfs umount": lambda: nnfs("umount", str(mount.path)),
    }
    actions[how]()


def test_who_uses_it_there_is_served_on_and_named(fresh_mount: Mount) -> None:
    """Its writes are kept, too: until a second signal, at the latest."""
    with elsewhere(fresh_mount, "exec 3>f; cd /; echo first >&3") as child:
        done = nnfs("umount", str(fresh_mount.path), check=False, timeout=WAIT_S)
        assert done.returncode == StoreBusy.exit_code
        assert f"used by sh (pid {child.pid})" in done.stderr
        assert f"kill {fresh_mount.pid}" in done.stderr
        assert fresh_mount.alive
        subprocess.run(["sh", "-c", f"echo second >/proc/{child.pid}/root{fresh_mount.path}/g"], check=True)
        os.kill(fresh_mount.pid, signal.SIGTERM)
        os.kill(fresh_mount.pid, signal.SIGINT)
        wait_for("the daemon's end", lambda: not fresh_mount.alive)
        assert is_clean(fresh_mount.store)
    fresh_mount.unmount()
    fresh_mount.mount()
    assert (fresh_mount.path / "f").read_text() == "first\n"
    assert (fresh_mount.path / "g").read_text() == "second\n"
