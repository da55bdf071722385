"""Properties of an nnfs mount only: its line in mount(8), the virtual xattrs, and that no request ends it."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Mount, Plain, nnfs
from tests.semantics.kit import ALICE, NS, as_user, fails, mode

pytestmark = pytest.mark.nnfs_only("about nnfs's own mount")
VIRTUAL = "user.nnfs."


def mount_line(path: Path) -> dict[str, str]:
    """Return the output of findmnt."""
    done = subprocess.run(
        ["findmnt", "--json", "-o", "SOURCE,FSTYPE,OPTIONS", "--mountpoint", str(path)], capture_output=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)["filesystems"][0]
    return found


def test_how_it_appears(fresh_mount: Mount) -> None:
    line = mount_line(fresh_mount.path)
    options = line["options"].split(",")
    assert line["fstype"] == "fuse.nnfs"
    assert line["source"] == str(fresh_mount.store.resolve())
    assert {"rw", "nosuid", "nodev", "allow_other", "default_permissions"} <= set(options)
    done = subprocess.run(
        ["findmnt", "-t", "fuse.nnfs", "-n", "-o", "TARGET"], capture_output=True, text=True, check=True
    )
    assert str(fresh_mount.path) in done.stdout.split()


def test_options_as_asked(request: pytest.FixtureRequest, mounted: Mount | Plain) -> None:
    if not mounted.is_nnfs:
        pytest.skip("nnfs only")
    with Mount(options=["suid", "dev", "noatime", "fsname=somewhere", "noexec"]) as mount:
        line = mount_line(mount.path)
        options = line["options"].split(",")
        assert line["source"] == "somewhere"
        assert not {"nosuid", "nodev"} & set(options)
        assert {"noexec", "noatime"} <= set(options)
        os.mknod(mount.path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        with (mount.path / "null").open("rb") as null:
            assert null.read() == b""
        f = mount.path / "f"
        f.write_bytes(b"#!/bin/sh\n")
        f.chmod(0o755)
        with fails(errno.EACCES):
            subprocess.run([f], check=False)
        os.utime(f, ns=(NS, 2 * NS))
        f.read_bytes()
        assert f.stat().st_atime_ns == NS


def test_read_only(fresh_mount: Mount) -> None:
    (fresh_mount.path / "f").write_bytes(b"content")
    fresh_mount.unmount()
    fresh_mount.options = ["ro"]
    fresh_mount.mount()
    f = fresh_mount.path / "f"
    assert "ro" in mount_line(fresh_mount.path)["options"].split(",")
    assert f.read_bytes() == b"content"
    for attempt in (
        lambda: os.open(f, os.O_WRONLY),
        lambda: os.unlink(f),
        lambda: os.mkdir(fresh_mount.path / "d"),
        lambda: os.chmod(f, 0o600),
        lambda: os.setxattr(f, "user.a", b"x"),
        lambda: os.rename(f, f.with_name("g")),
    ):
        with fails(errno.EROFS):
            attempt()


def test_suid_programs_are_honoured_only_when_asked(fresh_mount: Mount) -> None:
    def effective() -> int:
        program = fresh_mount.path / "id"
        done = as_user(ALICE, lambda: subprocess.run([str(program), "-u"], capture_output=True, check=True).stdout)
        return int(done)

    program = fresh_mount.path / "id"
    program.write_bytes(Path("/usr/bin/id").read_bytes())
    program.chmod(0o4755)
    assert effective() == ALICE
    fresh_mount.unmount()
    fresh_mount.options = ["suid"]
    fresh_mount.mount()
    assert mode(program) == 0o4755
    assert effective() == 0


def test_a_second_mount_is_refused(fresh_mount: Mount) -> None:
    other = fresh_mount.base / "other"
    other.mkdir()
    done = nnfs("mount", str(fresh_mount.store), str(other), "-f", check=False)
    assert done.returncode == 6 - 1, done.stderr  # StoreBusy
    assert "Traceback" not in done.stderr
    (fresh_mount.path / "f").write_bytes(b"alive")


def test_virtual_xattrs(mnt: Path, mounted: Mount | Plain) -> None:
    """Readable for who asks, in no list (rsync -X would copy them), computed ones not settable."""
    f = mnt / "f"
    f.write_bytes(b"compressible " * 10_000)
    os.setxattr(f, "user.mine", b"x")
    with f.open("rb") as file:
        os.fsync(file.fileno())  # what is computed of stored bytes changes with a commit
    mounted.drop_caches()
    values = {name: os.getxattr(f, VIRTUAL + name) for name in computed()}
    assert values
    assert all(values.values())
    assert os.listxattr(f) == ["user.mine"]
    assert os.listxattr(mnt) == []
    for name, value in values.items():
        with fails(errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL):
            os.setxattr(f, VIRTUAL + name, b"1")
        with fails(errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL):
            os.removexattr(f, VIRTUAL + name)
        assert os.getxattr(f, VIRTUAL + name) == value
    with fails(errno.ENODATA):
        os.getxattr(f, VIRTUAL + "no-such-thing")


def computed() -> list[str]:
    """The names that the filesystem computes."""
    from nnfs.fs import virtual

    return [name.decode().removeprefix(VIRTUAL) for name in virtual.COMPUTED]


def test_no_request_ends_the_mount(mnt: Path, mounted: Mount | Plain) -> None:
    """A storm of wrong requests; every answer is an errno, and the daemon logs nothing of it."""
    (mnt / "f").touch()
    (mnt / "d").mkdir()
    wrong: list[Callable[[], object]] = [
        lambda: os.rmdir(mnt / "f"),
        lambda: os.unlink(mnt / "d"),
        lambda: os.rename(mnt / "f", mnt / "d"),
        lambda: os.link(mnt / "d", mnt / "e"),
        lambda: os.truncate(mnt / "d", 1),
        lambda: os.getxattr(mnt / "f", "user.x"),
        lambda: os.setxattr(mnt / "f", "system.nonsense", b"x"),
        lambda: os.mkdir(mnt / ("x" * 300)),
        lambda: os.open(mnt / "f", os.O_DIRECTORY),
        lambda: os.readlink(mnt / "f"),
        lambda: os.listdir(mnt / "f"),
        lambda: os.removexattr(mnt / "d", "trusted.none"),
        lambda: os.open(mnt, os.O_TMPFILE | os.O_RDWR),
        lambda: os.posix_fadvise(-1, 0, 0, 0),
        lambda: os.posix_fallocate(-1, 0, 0),
    ]
    for attempt in wrong * 5:
        try:
            attempt()
        except OSError as e:
            assert e.errno not in (errno.EIO, errno.ENOTCONN, errno.ENOSYS), e
        else:
            raise AssertionError("succeeded")
    (mnt / "f").write_bytes(b"alive")
    assert isinstance(mounted, Mount)
    assert mounted.alive


def test_unmount_keeps_everything_written(fresh_mount: Mount) -> None:
    """Trap 11: umount(2) returns early, but what was written before is there at the next mount."""
    for round_ in range(3):
        for i in range(20):
            (fresh_mount.path / f"{round_}-{i}").write_bytes(b"%d" % i * 5000)
        fresh_mount.remount()
        for i in range(20):
            assert (fresh_mount.path / f"{round_}-{i}").read_bytes() == b"%d" % i * 5000
    fresh_mount.unmount()
    done = nnfs("fsck", str(fresh_mount.store), "--data")
    assert done.returncode == 0, done.stdout
    fresh_mount.mount()


def test_umount_command_waits(fresh_mount: Mount) -> None:
    (fresh_mount.path / "f").write_bytes(os.urandom(4 << 20))
    nnfs("umount", str(fresh_mount.path))
    assert not fresh_mount.alive
    fresh_mount.unmount()
    nnfs("fsck", str(fresh_mount.store))
    fresh_mount.mount()
    assert (fresh_mount.path / "f").stat().st_size == 4 << 20


def test_root_directory_itself(fresh_mount: Mount) -> None:
    root = fresh_mount.path
    os.chown(root, ALICE, ALICE)
    os.chmod(root, 0o2750)
    os.setxattr(root, "user.a", b"root")
    os.utime(root, ns=(-5, 7))
    fresh_mount.remount()
    st = os.stat(root)
    assert (st.st_uid, st.st_gid, mode(root), st.st_mtime_ns, st.st_nlink) == (ALICE, ALICE, 0o2750, 7, 2)
    assert os.getxattr(root, "user.a") == b"root"
    with fails(errno.EBUSY):
        os.rmdir(root)
    with fails(errno.EBUSY, errno.EXDEV):
        os.rename(root, root.parent / "moved")
    as_user(ALICE, (root / "f").touch)
