"""Options of a mount that exists, and paths of the daemon that it must not cover."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnfs.cli.values import absolute
from nnfs.errors import UsageError
from nnfs.mount import ownpaths
from nnfs.mount.table import resolve
from tests.harness import WAIT_S, Mount, command, environment, mounted_at, nnfs, umount, wait_for
from tests.mount.kit import bind, stopped

pytestmark = pytest.mark.mount


def test_a_remount_with_noatime_is_done(fresh_mount: Mount) -> None:
    file = fresh_mount.path / "f"
    file.write_bytes(b"x")
    os.utime(file, ns=(1, 1))

    def atime() -> int:
        file.read_bytes()
        fresh_mount.drop_caches()
        return file.stat().st_atime_ns

    subprocess.run(["mount", "-i", "-o", "remount,noatime", fresh_mount.path], check=True)
    wait_for("the news", lambda: "remounted with noatime" in fresh_mount.log())
    assert atime() == 1
    subprocess.run(["mount", "-i", "-o", "remount,strictatime", fresh_mount.path], check=True)
    wait_for("the news", lambda: "remounted with strictatime" in fresh_mount.log())
    assert atime() > 1


def test_what_a_remount_cannot_do_is_refused(fresh_mount: Mount) -> None:
    """The helper refuses it before the kernel shows it."""
    fresh_mount.options.append("ro")
    fresh_mount.remount()

    def checked(options: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "nnfs.cli.remount", str(fresh_mount.path), options]
        return subprocess.run(words, env=environment(), capture_output=True, text=True)

    refused = checked("remount,rw")
    assert refused.returncode == 1
    assert "unmount and mount again" in refused.stderr
    done = checked("remount,ro,noatime,cache=1M")
    assert (done.returncode, "does not change cache" in done.stderr) == (0, True)


OTHERS = "auto_unmount,nonempty,kernel_cache,auto_cache,big_writes,use_ino,attr_timeout=1,entry_timeout=2,umask=022"


def test_options_of_other_filesystems_are_ignored_with_one_line(fresh_mount: Mount) -> None:
    fresh_mount.options += [OTHERS, "max_read=131072,clone_fd,uid=0"]
    fresh_mount.remount()
    lines = [line for line in fresh_mount.log().splitlines() if "are ignored" in line]
    assert len(lines) == 1
    assert "auto_unmount, nonempty, kernel_cache" in lines[0]


def test_what_the_kernel_shows_of_a_mount_can_mount_it_again(fresh_mount: Mount) -> None:
    """People copy the options from /proc/mounts into /etc/fstab."""
    lines = Path("/proc/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    shown = next(line.split()[3] for line in lines if line.split()[1] == str(fresh_mount.path))
    assert "user_id=" in shown
    fresh_mount.options.append(shown)
    fresh_mount.remount()
    assert mounted_at(fresh_mount.path)


def test_a_path_is_resolved_without_touching_a_mount(fresh_mount: Mount, tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b/../c")
    (tmp_path / "b").mkdir()
    (tmp_path / "c").symlink_to(fresh_mount.path)
    (tmp_path / "loop").symlink_to("loop")
    with stopped(fresh_mount):
        assert resolve(f"{tmp_path}/a/x//./y/..") == f"{fresh_mount.path}/x"
        assert resolve(f"{tmp_path}/a/../none/..") == f"{fresh_mount.path.parent}"
        assert resolve("/..//") == "/"
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        resolve(f"{tmp_path}/loop")


@pytest.mark.parametrize("inside", ["", "model", "fs/fsck"])
def test_no_part_of_the_program_is_covered(tmp_path: Path, inside: str) -> None:
    package = tmp_path / "nnfs"
    with pytest.MonkeyPatch.context() as patch:
        (package / inside).mkdir(parents=True)
        patch.setattr("nnfs.__file__", str(package / "__init__.py"))
        with pytest.raises(UsageError, match="this program"):
            ownpaths.check(package / inside, tmp_path / "store", None)
        ownpaths.check(tmp_path / "nnfs-mnt", tmp_path / "store", None)


@pytest.mark.parametrize(
    "where",
    [
        "log", "link", "above link", "alias", "config", "TMPDIR", "NUMBA_CACHE_DIR", "NNFS_KERNELS_CACHE",
        "XDG_CACHE_HOME", "HOME", "thawed", "python",
    ],
)  # fmt: skip
def test_nothing_that_the_daemon_opens_lies_beneath(tmp_path: Path, where: str) -> None:
    store, mnt = tmp_path / "store", tmp_path / "mnt"
    nnfs("mkfs", str(store))
    (mnt / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(mnt / "inner")
    env, words = environment(), command("mount", str(store), str(mnt))
    if where.isupper():
        env[where] = str(mnt / "inner")
    elif where == "config":
        (mnt / "nnfs.toml").touch()
        env["NNFS_CONFIG"] = str(mnt / "nnfs.toml")
    elif where == "thawed":
        (store / "thawed").symlink_to(mnt / "inner")
    elif where == "python":
        env["PYTHONPATH"] += f":{mnt / 'inner'}"
    elif where == "above link":  # is mnt/new, and not tmp_path/new
        words += ["--log", f"{tmp_path}/link/../new/log"]
    elif where == "alias":
        bind(mnt, tmp_path / "alias")
        words += ["--log", f"{tmp_path}/alias/new/log"]
    else:
        words += ["--log", str((mnt if where == "log" else tmp_path / "link") / "new" / "log")]
    for more in ([], ["-f"]):
        done = subprocess.run([*words, *more], env=env, capture_output=True, text=True, timeout=WAIT_S)
        assert done.returncode == 2, done.stderr
        assert f"would lie beneath the mount point {mnt}" in done.stderr
        assert done.stderr.count("\n") == 1
        assert not mounted_at(mnt)
    assert sorted(os.listdir(mnt)) == ["inner", *(["nnfs.toml"] if where == "config" else [])]
    assert os.listdir(mnt / "inner") == []
    if where == "alias":
        umount(tmp_path / "alias")


def test_a_log_is_where_the_kernel_has_it(tmp_path: Path) -> None:
    """LINK/../log is beside what the link leads to; a directory that is gone is one line."""
    (tmp_path / "deep" / "down").mkdir(parents=True)
    (tmp_path / "link").symlink_to("deep/down")
    (tmp_path / "loop").symlink_to("loop")
    assert absolute(f"{tmp_path}/link/../log") == tmp_path / "deep" / "log"
    assert absolute(f"{tmp_path}/link") == tmp_path / "link", "a log that is a link stays one"
    script = f'mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; exec "$@"'
    for log in (f"{tmp_path}/loop/log", "log"):
        words = ["sh", "-c", script, "sh", *command("mount", str(tmp_path), str(tmp_path), "--log", log)]
        done = subprocess.run(words, env=environment(), capture_output=True, text=True)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("nnfs: argument --log")


def test_nosymfollow(fresh_mount: Mount) -> None:
    (fresh_mount.path / "f").write_bytes(b"x")
    (fresh_mount.path / "link").symlink_to("f")
    assert (fresh_mount.path / "link").read_bytes() == b"x"
    fresh_mount.options.append("nosymfollow")
    fresh_mount.remount()
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        (fresh_mount.path / "link").read_bytes()
    assert os.readlink(fresh_mount.path / "link") == "f"
