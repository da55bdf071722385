"""mount.fuse.nnfs and umount: the helpers of mount(8), with stand-ins and for real."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import harness, isolation
from tests.conftest import why_no_mount
from tests.guard import MNT_DETACH, MNT_FORCE
from tests.tools.kit import REPO, Checkout


def helper(checkout: Checkout, name: str, *args: str) -> int:
    """The status of /sbin/NAME.fuse.nnfs ARGS, called with as bare an environment as an init system's."""
    command, env = checkout.root / f"sbin/{name}.fuse.nnfs", {"PATH": f"{checkout.root}/bin:/usr/bin:/bin"}
    return subprocess.run([command, *args], env=env, cwd="/", stderr=subprocess.DEVNULL).returncode


@pytest.mark.parametrize(
    ("args", "call"),
    [
        (("/data", "/mnt/nn"), "-I -m nnfs mount /data /mnt/nn"),
        (("/data", "/mnt/nn", "-o", "rw,noatime"), "-I -m nnfs mount /data /mnt/nn -o rw,noatime"),
        (("/my data", "/mnt/nn", "-sv", "-o", "ro", "-t", "fuse.nnfs"), "-I -m nnfs mount /my data /mnt/nn -o ro"),
        (("/data", "/mnt/nn", "-n", "-o", "ro", "-o", "dev"), "-I -m nnfs mount /data /mnt/nn -o ro,dev"),
    ],
)
def test_mount_helper_calls_nnfs(installed: Checkout, args: tuple[str, ...], call: str) -> None:
    assert helper(installed, "mount", *args) == 0
    assert installed.calls_of("nnfs") == [call]


def test_mount_helper_reports_failure_as_mount_does(installed: Checkout) -> None:
    installed.recorder(installed.root / ".venv/bin/python", "nnfs", status=5)
    assert helper(installed, "mount", "/data", "/mnt/nn") == 32
    (installed.root / ".venv/bin/python").unlink()
    assert helper(installed, "mount", "/data", "/mnt/nn") == 32


def test_mount_helper_fakes_refuses_and_remounts(installed: Checkout) -> None:
    assert helper(installed, "mount", "/data", "/mnt/nn", "-f") == 0
    assert helper(installed, "mount", "/data", "/mnt/nn", "-N", "1") == 1
    assert helper(installed, "mount", "/data", "/mnt/nn", "-X") == 1
    assert helper(installed, "mount", "/data") == 1
    assert installed.calls_of("nnfs") == []
    assert helper(installed, "mount", "/data", "/mnt/nn", "-o", "ro,remount") == 0
    assert installed.calls_of("nnfs") == ["-I -m nnfs.cli.remount /mnt/nn ro,remount"]
    assert installed.calls_of("mount") == ["-i -o ro,remount /mnt/nn"]


def test_mount_helper_leaves_word_for_umount(installed: Checkout) -> None:
    target = str(installed.root)
    assert helper(installed, "mount", "/data", target, "-o", "ro,_netdev") == 0
    entry = f"--internal-only --fake -t fuse.nnfs -o ro,_netdev,uhelper=fuse.nnfs /data {target}"
    assert installed.calls_of("mount") == [entry]
    installed.recorder(installed.root / "bin/mount", "mount", status=16)
    assert helper(installed, "mount", "/data", target) == 0


def test_umount_helper_waits_for_nnfs_unless_forced(installed: Checkout) -> None:
    assert helper(installed, "umount", "/mnt/n n", "-v", "-t", "fuse.nnfs") == 0
    assert installed.calls_of("nnfs") == ["-I -m nnfs umount /mnt/n n"]
    assert helper(installed, "umount", "/mnt/nn", "-l", "-f") == 0
    (installed.root / ".venv/bin/python").unlink()
    assert helper(installed, "umount", "/mnt/nn") == 0
    assert installed.calls_of("umount") == ["-i -l -f /mnt/nn", "-i /mnt/nn"]
    assert helper(installed, "umount", "/mnt/nn", "-N", "1") == 1
    assert len(installed.calls_of("nnfs")) == 1
    installed.recorder(installed.root / ".venv/bin/python", "nnfs", status=9)
    assert helper(installed, "umount", "/mnt/nn") == 32


class Place:
    """A store and a mount point, and an fstab that names them."""

    def __init__(self, base: Path) -> None:
        self.base, self.store, self.mnt, self.fstab = base, base / "store", base / "mnt", base / "fstab"
        self.mnt.mkdir()
        harness.nnfs("mkfs", str(self.store))
        self.fstab.write_text(f"{self.store} {self.mnt} fuse.nnfs noatime,nofail,x-systemd.automount,_netdev 0 0\n")

    def run(self, *argv: str | Path) -> int:
        """The status of a command; the daemon it leaves behind must not hold our pipes, or pytest would wait for it."""
        return subprocess.run(argv, stdin=subprocess.DEVNULL, timeout=harness.WAIT_S).returncode

    @property
    def pid(self) -> int:
        return int(json.loads(harness.nnfs("status", str(self.mnt), "--json").stdout)["pid"])

    @property
    def options(self) -> set[str]:
        lines = os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).split("\n")[:-1]
        (line,) = (line.split() for line in lines if line.split()[4] == str(self.mnt))
        return set(line[5].split(","))


@contextlib.contextmanager
def own_helpers(base: Path) -> Iterator[None]:
    """Have /sbin show the helpers of this checkout, in the tests' mount namespace only.

    The machine's links belong to the checkout that was set up last, which another program may do at any time.
    """
    folder, sbin = base / "sbin", Path("/sbin").resolve()
    folder.mkdir()
    for name in ("mount", "umount"):
        for kind in ("fuse.nnfs", "nnfs"):
            (folder / f"{name}.{kind}").symlink_to(REPO / "nnfs/cli/sbin" / f"{name}.nnfs")
    overlay = ["mount", "-t", "overlay", "nnfs-test", "-o", f"lowerdir={folder}:{sbin}", str(sbin)]
    assert isolation.left not in (None, os.readlink("/proc/self/ns/mnt")), "a mount namespace of our own"
    subprocess.run(overlay, check=True)
    try:
        yield
    finally:
        harness.umount(sbin, MNT_DETACH)


@pytest.fixture
def place() -> Iterator[Place]:
    if why := why_no_mount():
        pytest.skip(f"mounting {why}")
    if Path(sys.prefix) == REPO / ".venv":
        assert Path("/sbin/mount.fuse.nnfs").is_symlink(), "tools/test links the helpers"
    place = Place(harness.work_dir())
    try:
        with own_helpers(place.base):
            assert Path("/sbin/mount.fuse.nnfs").resolve().is_relative_to(REPO)
            yield place
    finally:
        while harness.mounted_at(place.mnt):
            harness.umount(place.mnt, MNT_FORCE | MNT_DETACH)
        shutil.rmtree(place.base)


@pytest.mark.mount
@pytest.mark.parametrize("kind", ["fuse.nnfs", "nnfs"])
def test_mount_8_and_umount_8(place: Place, kind: str) -> None:
    assert place.run("mount", "-t", kind, place.store, place.mnt, "-o", "noatime") == 0
    assert harness.mounted_at(place.mnt)
    assert "noatime" in place.options
    (place.mnt / "file").write_bytes(b"content")
    daemon = os.pidfd_open(place.pid)
    assert place.run("umount", place.mnt) == 0
    assert select.select([daemon], [], [], 0)[0] == [daemon], "umount returned before the daemon had ended"
    os.close(daemon)
    assert place.run("mount", "-t", kind, place.store, place.mnt, "-o", "ro") == 0
    assert (place.mnt / "file").read_bytes() == b"content"
    assert place.run("umount", place.mnt) == 0


@pytest.mark.mount
def test_an_fstab_line(place: Place) -> None:
    for _ in range(2):  # the second time it is mounted already
        assert place.run("mount", "--all", "--fstab", place.fstab) == 0
        assert "noatime" in place.options  # one line only: not mounted twice
    assert place.run("umount", place.mnt) == 0


@pytest.mark.mount
def test_remount_read_only_and_back(place: Place) -> None:
    assert place.run("mount", "-t", "fuse.nnfs", place.store, place.mnt) == 0
    assert place.run("mount", "-o", "remount,ro", place.mnt) == 0
    with pytest.raises(OSError, match="Read-only"):
        (place.mnt / "file").touch()
    assert place.run("mount", "-o", "remount,rw", place.mnt) == 0
    (place.mnt / "file").touch()
    assert place.run("umount", place.mnt) == 0


@pytest.mark.mount
def test_failures_have_the_status_of_mount_8(place: Place) -> None:
    no_store = place.base / "no store"
    no_store.mkdir()
    assert place.run("mount", "-t", "fuse.nnfs", no_store, place.mnt) == 32
    assert not harness.mounted_at(place.mnt)


@pytest.mark.mount
def test_after_a_crash_umount_and_mount_work(place: Place) -> None:
    mount = ("mount", "-t", "fuse.nnfs", place.store, place.mnt)
    for clean_up in [("umount", place.mnt), ("umount", "-l", place.mnt), mount]:
        assert place.run(*mount) == 0
        pid = place.pid
        daemon = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        assert select.select([daemon], [], [], 60)[0] == [daemon]
        os.close(daemon)
        assert place.run(*clean_up) == 0
    assert (place.mnt / ".").is_dir()
    assert place.run("umount", place.mnt) == 0
