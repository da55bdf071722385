"""Mounting with a tiny in-memory filesystem: what the kernel, mountinfo and clients see of a connection."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyfuse3
import pytest

from nnfs.cli import locate
from nnfs.errors import MountError
from nnfs.mount import connection
from nnfs.mount.table import mounts
from tests.mount.kit import Client, eventually, mounted, mounting

CAPABILITY = b"\1\0\0\2\0\x20\0\0" + bytes(12)  # cap_net_raw=ep, revision 2


def as_user(command: str, umask: int = 0o022) -> None:
    """Run a shell command as uid 1234, who has no capability."""
    user = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups"]
    subprocess.run([*user, "sh", "-c", f"umask {umask:o}; {command}"], check=True)


@mounting
def test_a_pyfuse3_without_the_private_wait_serves_all_the_same(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "WAIT", "_a_name_that_pyfuse3_does_not_have")

    def look(client: Client) -> None:
        (client.path / "file").write_bytes(b"x")
        assert (client.path / "file").read_bytes() == b"x"

    mounted(place / "m", look)
    assert [record.message for record in caplog.records if "its own loop serves" in record.message]


@mounting
def test_handshake_and_flags(place: Path) -> None:
    def look(client: Client) -> None:
        assert client.fs.initialised
        agreed = client.connection.negotiated
        assert agreed is not None
        assert agreed.flags & ~agreed.offered & ~connection.BIG_WRITES == 0
        wanted = (
            connection.ASYNC_READ | connection.ATOMIC_O_TRUNC | connection.DONT_MASK | connection.DO_READDIRPLUS
            | connection.PARALLEL_DIROPS | connection.WRITEBACK_CACHE | connection.POSIX_ACL | connection.MAX_PAGES
            | connection.CACHE_SYMLINKS | connection.ASYNC_DIO
        )  # fmt: skip
        assert agreed.flags & wanted == wanted & agreed.offered
        assert not agreed.flags & (connection.HANDLE_KILLPRIV | connection.READDIRPLUS_AUTO | connection.EXPORT_SUPPORT)
        assert agreed.max_write == 1 << 20
        assert agreed.max_pages == 256
        assert agreed.time_gran == 1
        assert sorted(os.listdir(client.path)) == []

    mounted(place / "m", look)


@mounting
@pytest.mark.parametrize(
    ("given", "present", "absent"),
    [
        ("", {"rw", "nosuid", "nodev", "relatime"}, {"noexec"}),
        ("suid,dev,noatime", {"rw", "noatime"}, {"nosuid", "nodev"}),
        ("ro,noexec,sync,dirsync,nodiratime", {"ro", "noexec", "nosuid", "nodev", "nodiratime"}, set()),
        ("lazytime,strictatime", {"rw"}, {"relatime", "noatime"}),
    ],
)
def test_mountinfo(place: Path, given: str, present: set[str], absent: set[str]) -> None:
    source = str(place / "a store,with odd\\name")

    def look(client: Client) -> None:
        info = client.mount_info()
        assert info.mountpoint == str(client.path)
        assert info.fstype == "fuse.nnfs"
        assert info.source == source
        words = set(info.options.split(","))
        assert words >= present
        assert not words & absent
        deep = set(info.super_options.split(","))
        assert deep >= {"default_permissions", "allow_other"}
        assert ("sync" in deep) == ("sync" in given.split(","))
        assert ("lazytime" in deep) == ("lazytime" in given)
        if "ro" in present:
            with pytest.raises(OSError, match="Read-only"):
                (client.path / "f").write_bytes(b"")

    escaped = source.replace("\\", "\\\\").replace(",", "\\,")
    mounted(place / "m with space", look, given, f"fsname={escaped}")


@mounting
def test_mount_points_with_odd_bytes(place: Path) -> None:
    """The kernel escapes blanks, newlines and backslashes in mountinfo, and nothing else: one name breaks no line."""
    point = place / "a\rb\x0bc\x85d \u2028\n\\134\udcff"

    def look(client: Client) -> None:
        assert client.mount_info().mountpoint == str(point)
        assert locate.mounts()[-1].mountpoint == str(point)
        assert len(locate.mounts()) == len(mounts())

    mounted(point, look)


@mounting
def test_umask_is_left_to_the_filesystem(place: Path) -> None:
    def look(client: Client) -> None:
        as_user(f"mkdir -m 777 {client.path}/d0; mkdir {client.path}/d; : > {client.path}/f", umask=0o027)

    fs = mounted(place / "m", look)
    assert ("mkdir", b"d", 0o777, 0o027) in fs.log
    assert ("create", b"f", 0o666, 0o027) in fs.log


@mounting
def test_suid_stays_when_root_writes_and_goes_when_others_write(place: Path) -> None:
    def look(client: Client) -> None:
        file = client.path / "f"
        file.write_bytes(b"x" * 5000)
        node = client.fs.nodes[2]

        def after(action: Callable[[], object]) -> int:
            os.chmod(file, 0o6777)
            action()
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
            assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(node.mode), "kernel and filesystem differ"
            return stat.S_IMODE(node.mode)

        write = f"printf a | dd of={file} bs=1 conv=notrunc status=none"
        assert after(lambda: subprocess.run(write, shell=True, check=True)) == 0o6777
        assert after(lambda: subprocess.run(["truncate", "-s", "100", file], check=True)) == 0o6777
        assert after(lambda: as_user(write)) == 0o777
        assert after(lambda: as_user(f"truncate -s 9 {file}")) == 0o777
        assert after(lambda: as_user(f": > {file}")) == 0o777
        assert after(lambda: os.chown(file, 1234, 1234)) == 0o777
        assert after(lambda: as_user(f"printf a >> {file}")) == 0o777
        os.chmod(file, 0o2767)  # not group-executable: this is no setgid
        as_user(write)
        assert file.read_bytes()[:1] == b"a"

    mounted(place / "m", look)


@mounting
def test_small_writes_do_not_ask_for_capabilities_each_time(place: Path) -> None:
    def look(client: Client) -> None:
        file = client.path / "f"
        with file.open("wb", buffering=0) as handle:
            for _ in range(200):
                handle.write(b"x" * 100)
        assert client.fs.count("getxattr", 2, b"security.capability") <= 2
        os.setxattr(file, "security.capability", CAPABILITY)
        os.getxattr(file, "security.capability")
        with file.open("ab", buffering=0) as handle:
            handle.write(b"x")
        assert client.fs.count("removexattr", 2, b"security.capability") == 1
        with pytest.raises(OSError, match="No data"):
            os.getxattr(file, "security.capability")
        assert file.stat().st_size == 20001

    mounted(place / "m", look)


@mounting
def test_data_through_splice_and_cached_symlinks(place: Path) -> None:
    data = bytes(range(256)) * (3 << 12)

    def look(client: Client) -> None:
        file = client.path / "f"
        file.write_bytes(data)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read_bytes() == data
        os.symlink("f", client.path / "link")
        for _ in range(5):
            assert os.readlink(client.path / "link") == "f"

    fs = mounted(place / "m", look)
    assert bytes(fs.nodes[2].data) == data
    assert max(entry[3] for entry in fs.log if entry[0] == "write") == 1 << 20
    assert fs.count("readlink") == 1


@mounting
def test_blocked_reads_do_not_stop_others(place: Path) -> None:
    def look(client: Client) -> None:
        names = [client.path / f"f{n}" for n in range(300)]
        for name in names:
            name.write_bytes(b"x" * 200_000)  # several pages: readahead, which the kernel counts as background
        fast = client.path / "fast"
        fast.write_bytes(b"y" * 100_000)
        inodes = {name.stat().st_ino for name in names}
        for path in [*names, fast]:
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        client.in_loop(lambda: client.fs.gated.update(inodes))
        with ThreadPoolExecutor(len(names)) as pool:
            try:
                results = [pool.submit(name.read_bytes) for name in names]
                eventually(lambda: client.fs.waiting >= len(names))
                before = client.fs.count("lookup")
                assert not (client.path / "unknown").exists()
                assert client.fs.count("lookup") == before + 1
                assert fast.read_bytes() == b"y" * 100_000
                (client.path / "new").write_bytes(b"z")
                with (client.path / "new").open("rb") as handle:
                    os.fsync(handle.fileno())
                assert not any(result.done() for result in results)
            finally:
                client.in_loop(client.fs.gate.set)
            assert {result.result() for result in results} == {b"x" * 200_000}

        def idle() -> bool:
            """Tasks that pyfuse3 has ended are not counted as waiting ones, or the daemon stays slow for ever."""
            (client.path / "another").exists()
            return len(pyfuse3._wait_fuse_readable.__self__.serving) <= 1  # type: ignore[attr-defined]

        eventually(idle)

    mounted(place / "m", look)


@mounting
def test_tune(place: Path) -> None:
    def look(client: Client) -> None:
        client.connection.tune(read_ahead_kb=2048, max_bytes=32 << 20)
        bdi = Path("/sys/class/bdi") / client.connection.mount.device
        assert (bdi / "read_ahead_kb").read_text() == "2048\n"

    mounted(place / "m", look)


@mounting
@pytest.mark.skipif(shutil.which("fusermount3") is None, reason="needs fusermount3")
def test_mount_through_fusermount(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users other than root mount so. fusermount3 itself runs as root here: /dev/fuse may be closed to others."""
    monkeypatch.setattr(os, "geteuid", lambda: 1234)

    def look(client: Client) -> None:
        info = client.mount_info()
        assert (info.fstype, info.source) == ("fuse.nnfs", "/a,b")
        assert {"ro", "nosuid", "nodev", "noatime"} <= set(info.options.split(","))
        agreed = client.connection.negotiated
        assert agreed is not None
        assert agreed.flags & connection.DONT_MASK
        assert os.listdir(client.path) == []

    mounted(place / "m", look, r"ro,noatime,lazytime,relatime,noatime,fsname=/a\,b")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MountError, match="install fuse3"):
        mounted(place / "m", lambda client: None)
