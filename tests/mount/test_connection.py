"""connection.py, proved on an in-memory filesystem that is really mounted (root and /dev/fuse needed)."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio
from pyfuse3 import FUSEError

from nnfs.cli import locate
from nnfs.config import load_options, parse_own
from nnfs.errors import MountError, UsageError
from nnfs.mount import connection
from nnfs.mount import options as flags
from nnfs.mount.connection import Connection, connect, negotiate
from nnfs.mount.mountpoint import unmount_path
from nnfs.mount.options import MountOptions, parse_options, words
from nnfs.mount.table import MountInfo, mounts
from tests.harness import WAIT_S

mounting = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs root and /dev/fuse"
)
CAPABILITY = b"\1\0\0\2\0\x20\0\0" + bytes(12)  # cap_net_raw=ep, revision 2


def eventually(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds; for what the kernel does in its own time."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "did not come true"
        select.select([], [], [], 0.005)


class Node:
    """An inode in memory."""

    def __init__(self, ino: int, mode: int, ctx: pyfuse3.RequestContext | None) -> None:
        self.ino, self.mode = ino, mode
        self.uid, self.gid = (ctx.uid, ctx.gid) if ctx else (0, 0)
        self.data = bytearray()
        self.times = {"atime": 0, "mtime": 0, "ctime": 0}
        self.children: dict[bytes, int] = {}
        self.xattrs: dict[bytes, bytes] = {}

    def strip(self) -> None:
        if stat.S_ISREG(self.mode):
            self.mode &= ~(stat.S_ISUID | (stat.S_ISGID if self.mode & stat.S_IXGRP else 0))


class MemoryFs(pyfuse3.Operations):
    """Just enough of a filesystem, with a log of what the kernel asked."""

    enable_writeback_cache = True
    enable_acl = True
    supports_dot_lookup = False

    def __init__(self) -> None:
        super().__init__()
        self.nodes = {1: Node(1, stat.S_IFDIR | 0o777, None)}
        self.log: list[tuple[Any, ...]] = []
        self.initialised = False
        self.gate = trio.Event()
        self.gated: set[int] = set()
        self.waiting = 0
        self.on_lookup: Callable[[bytes], None] = lambda name: None

    def init(self) -> None:
        self.initialised = True

    def count(self, *what: Any) -> int:
        """How many logged requests begin with *what*."""
        return sum(entry[: len(what)] == what for entry in self.log)

    def attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode, entry.st_uid, entry.st_gid = node.ino, node.mode, node.uid, node.gid
        entry.st_nlink, entry.st_size = 1, len(node.data)
        entry.entry_timeout = entry.attr_timeout = 300
        for name, value in node.times.items():
            setattr(entry, f"st_{name}_ns", value)
        return entry

    def add(self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> Node:
        node = Node(len(self.nodes) + 1, mode & ~ctx.umask, ctx)
        self.nodes[node.ino] = node
        self.nodes[parent].children[name] = node.ino
        return node

    async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> pyfuse3.EntryAttributes:
        self.log.append(("lookup", name))
        self.on_lookup(name)
        if name not in self.nodes[parent].children:
            raise FUSEError(errno.ENOENT)
        return self.attributes(self.nodes[self.nodes[parent].children[name]])

    async def getattr(self, ino: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
        return self.attributes(self.nodes[ino])

    async def setattr(self, ino: int, attr: Any, fields: Any, fh: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        node, names = self.nodes[ino], ("mode", "uid", "gid", "size", "atime", "mtime", "ctime")
        done = {name for name in names if getattr(fields, f"update_{name}")}
        self.log.append(("setattr", ino, ctx.uid, done))
        if done & {"uid", "gid"} or (ctx.uid and (not done or "size" in done)):  # the rule stated in connection.py
            node.strip()
        for name in done & {"mode", "uid", "gid"}:
            setattr(node, name, getattr(attr, f"st_{name}"))
        for name in done & set(node.times):
            node.times[name] = getattr(attr, f"st_{name}_ns")
        if "size" in done:
            node.data = node.data[: attr.st_size].ljust(attr.st_size, b"\0")
        return self.attributes(node)

    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        self.log.append(("mkdir", name, mode & 0o7777, ctx.umask))
        return self.attributes(self.add(parent, name, stat.S_IFDIR | mode & 0o7777, ctx))

    async def create(self, parent: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        self.log.append(("create", name, mode & 0o7777, ctx.umask))
        node = self.add(parent, name, stat.S_IFREG | mode & 0o7777, ctx)
        return pyfuse3.FileInfo(fh=node.ino, keep_cache=True), self.attributes(node)

    async def symlink(self, parent: int, name: bytes, target: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        node = self.add(parent, name, stat.S_IFLNK | 0o777, ctx)
        node.data[:] = target
        return self.attributes(node)

    async def readlink(self, ino: int, ctx: Any) -> bytes:
        self.log.append(("readlink", ino))
        return bytes(self.nodes[ino].data)

    async def open(self, ino: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        self.log.append(("open", ino, flags))
        if flags & os.O_TRUNC:
            self.nodes[ino].data.clear()
            if ctx.uid:
                self.nodes[ino].strip()
        return pyfuse3.FileInfo(fh=ino, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        self.log.append(("read", fh, off, size))
        if fh in self.gated:
            self.waiting += 1
            await self.gate.wait()
        return bytes(self.nodes[fh].data[off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        self.log.append(("write", fh, off, len(buf)))
        data = self.nodes[fh].data
        data.extend(bytes(max(0, off - len(data))))
        data[off : off + len(buf)] = buf
        return len(buf)

    async def flush(self, fh: int) -> None:
        self.log.append(("flush", fh))

    async def release(self, fh: int) -> None:
        self.log.append(("release", fh))

    async def fsync(self, fh: int, datasync: bool) -> None:
        self.log.append(("fsync", fh))

    async def opendir(self, ino: int, ctx: Any) -> int:
        return ino

    async def releasedir(self, fh: int) -> None:
        pass

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        self.log.append(("readdir", fh))
        for place, (name, ino) in enumerate(self.nodes[fh].children.items()):
            entry = self.attributes(self.nodes[ino])
            if place >= start_id and not pyfuse3.readdir_reply(token, name, entry, place + 1):
                break

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        return pyfuse3.StatvfsData()

    async def getxattr(self, ino: int, name: bytes, ctx: Any) -> bytes:
        self.log.append(("getxattr", ino, name))
        if name not in self.nodes[ino].xattrs:
            raise FUSEError(pyfuse3.ENOATTR)
        return self.nodes[ino].xattrs[name]

    async def setxattr(self, ino: int, name: bytes, value: bytes, ctx: Any) -> None:
        self.log.append(("setxattr", ino, name))
        self.nodes[ino].xattrs[name] = value

    async def removexattr(self, ino: int, name: bytes, ctx: Any) -> None:
        self.log.append(("removexattr", ino, name))
        if self.nodes[ino].xattrs.pop(name, None) is None:
            raise FUSEError(pyfuse3.ENOATTR)

    async def forget(self, inode_list: Any) -> None:
        pass


class Client:
    """What the test's thread has in hand while the filesystem is mounted."""

    def __init__(self, fs: MemoryFs, mountpoint: Path, connection: Connection, token: trio.lowlevel.TrioToken) -> None:
        self.fs, self.path, self.connection, self.token = fs, mountpoint, connection, token

    def in_loop(self, function: Callable[[], Any]) -> Any:
        return trio.from_thread.run_sync(function, trio_token=self.token)

    def mount_info(self) -> MountInfo:
        return next(mount for mount in mounts() if mount.device == self.connection.mount.device)


def as_user(command: str, umask: int = 0o022) -> None:
    """Run a shell command as uid 1234, who has no capability."""
    user = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups"]
    subprocess.run([*user, "sh", "-c", f"umask {umask:o}; {command}"], check=True)


def mounted(mountpoint: Path, test: Callable[[Client], None], *options: str, unmount: bool = True) -> MemoryFs:
    """Mount, run *test* in a thread, unmount; whatever happens, nothing stays mounted."""
    with contextlib.suppress(FileExistsError, NotADirectoryError):
        os.mkdir(mountpoint)
    fs = MemoryFs()

    async def main() -> None:
        with trio.fail_after(2 * WAIT_S):
            link = connect(fs, str(mountpoint), parse_options(options))
            try:
                await link.handshake()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(link.serve)
                    client = Client(fs, mountpoint, link, trio.lowlevel.current_trio_token())
                    await trio.to_thread.run_sync(test, client, abandon_on_cancel=True)
                    if unmount:
                        await link.unmount()
            finally:
                link.close()
            assert link.mountpoint() is None

    trio.run(main)
    assert not any(mount.mountpoint == str(mountpoint) for mount in mounts())
    return fs


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other users may enter, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="nnfs-connection-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


# --- without a mount --------------------------------------------------------------------------------------------------


def test_options_default_and_root() -> None:
    options = parse_options([], root=True)
    assert options.flags == flags.MS_NOSUID | flags.MS_NODEV
    assert options.allow_other
    assert options.default_permissions
    assert options.subtype == "nnfs"
    assert not parse_options([], root=False).allow_other
    assert parse_options(["allow_root"], root=False).allow_other


def test_options_later_wins_and_bookkeeping_is_ignored() -> None:
    options = parse_options(
        ["rw,suid,ro,dev,noexec,noatime", "relatime,auto,noauto,_netdev,nofail,x-systemd.automount,comment=a,defaults"]
    )
    assert options.flags == flags.MS_RDONLY | flags.MS_NOEXEC | flags.MS_RELATIME
    assert options.read_only
    assert options.atime == "relatime"
    assert not options.own
    assert parse_options(["noatime"]).atime == "noatime"
    assert parse_options(["noatime,strictatime"]).atime == "strictatime"
    users = parse_options(["suid,exec,user"]).flags
    assert users == flags.MS_NOSUID | flags.MS_NODEV | flags.MS_NOEXEC
    assert parse_options(["user,exec"]).flags == flags.MS_NOSUID | flags.MS_NODEV


def test_options_of_nnfs_come_back() -> None:
    options = parse_options([r"fsname=/a\,b,cache=1G,verbose", r"path=c:\\d=e"], fsname="/store")
    assert options.fsname == "/a,b"
    assert options.own == {"cache": "1G", "verbose": "", "path": "c:\\d=e"}
    assert parse_options(["cache=1"], fsname="/store").fsname == "/store"
    for wrong in ("fsname", "subtype=", "max_read=few", "max_read=1"):
        with pytest.raises(UsageError):
            parse_options([wrong])


def init_request(flags: int, flags2: int = 0, readahead: int = 1 << 17) -> bytes:
    return connection._IN.pack(104, connection.FUSE_INIT, 2, 0, 0, 0, 0, 0, 7, 45, readahead, flags, flags2)


BEHIND = bytes(range(1, 29))  # fields of fuse_init_out that only a newer libfuse knows


def init_reply(flags: int, error: int = 0, unique: int = 2) -> bytes:
    out = connection._OUT.pack(7, 38, 4096, flags, 0, 0, 1 << 20, 1, 256, 0, 0) + BEHIND
    return connection._OUT_HEADER.pack(80, error, unique) + out


def test_negotiation_sets_only_what_the_kernel_offers() -> None:
    wants = connection.ASYNC_READ | connection.HANDLE_KILLPRIV
    reply, agreed = negotiate(init_request(connection.ASYNC_READ | connection.DONT_MASK), init_reply(wants))
    assert agreed.flags == connection.ASYNC_READ | connection.DONT_MASK
    assert (agreed.max_readahead, agreed.max_background, agreed.congestion_threshold) == (1 << 17, 1024, 768)
    fields = connection._OUT.unpack_from(reply, 16)
    assert reply[52:] == BEHIND
    assert fields[3] == agreed.flags
    assert fields[6] == 1 << 20
    assert fields[8] == 256


@pytest.mark.parametrize(("error", "unique"), [(-errno.EPROTO, 2), (0, 3)])
def test_negotiation_refused_by_libfuse(error: int, unique: int) -> None:
    with pytest.raises(MountError):
        negotiate(init_request(1), init_reply(1, error, unique))


def test_unusable_mountpoints(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MountError, match="not a directory"):
        connect(MemoryFs(), str(tmp_path / "file"), MountOptions())
    with pytest.raises(MountError, match="mkdir"):
        connect(MemoryFs(), str(tmp_path / "none"), MountOptions())


# --- mounted ----------------------------------------------------------------------------------------------------------


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
@pytest.mark.parametrize("lazy", [False, True])
def test_umount_from_outside_ends_serve(place: Path, lazy: bool) -> None:
    def look(client: Client) -> None:
        (client.path / "f").write_bytes(b"dirty" * 1000)
        subprocess.run(["umount", "-i", *(["-l"] if lazy else []), client.path], check=True)

    fs = mounted(place / "m", look, unmount=False)
    assert bytes(fs.nodes[2].data) == b"dirty" * 1000  # the kernel wrote it back before it let go


@mounting
def test_busy_unmount_says_so_and_a_later_one_works(place: Path) -> None:
    def look(client: Client) -> None:
        with (client.path / "f").open("wb"):
            with pytest.raises(MountError, match="lazily") as caught:
                trio.from_thread.run(client.connection.unmount, trio_token=client.token)
            assert caught.value.errno == errno.EBUSY
        assert client.connection.mountpoint() == str(client.path)

    mounted(place / "m", look)


@mounting
def test_failed_daemon_leaves_no_mount_and_no_hang(place: Path) -> None:
    def look(client: Client) -> None:
        (client.path / "f").write_bytes(b"never flushed")
        raise RuntimeError("the daemon fails")

    with pytest.raises(ExceptionGroup):
        mounted(place / "m", look)
    assert not any(mount.mountpoint == str(place / "m") for mount in mounts())
    mounted(place / "m", lambda client: None)


@mounting
def test_mount_of_a_killed_daemon_is_taken_off(place: Path) -> None:
    def look(client: Client) -> None:
        assert (client.path / "f").write_bytes(b"x")

    mountpoint = place / "m"
    mountpoint.mkdir()
    fuse = connection._mount_as_root(str(mountpoint), MountOptions())
    os.close(fuse)
    try:
        with pytest.raises(OSError, match="not connected"):
            mountpoint.stat()
        mounted(mountpoint, look)
    finally:
        with contextlib.suppress(MountError):
            unmount_path(str(mountpoint), lazy=True)


@mounting
def test_unmount_leaves_other_mounts_on_the_same_path(place: Path) -> None:
    def look(client: Client) -> None:
        subprocess.run(["umount", "-i", client.path], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "other", client.path], check=True)
        try:
            trio.from_thread.run(client.connection.unmount, trio_token=client.token)
            assert any(mount.mountpoint == str(client.path) and mount.source == "other" for mount in mounts())
        finally:
            subprocess.run(["umount", "-i", client.path], check=True)

    mounted(place / "m", look, unmount=False)


@mounting
def test_tune(place: Path) -> None:
    def look(client: Client) -> None:
        client.connection.tune(read_ahead_kb=2048, max_bytes=32 << 20)
        bdi = Path("/sys/class/bdi") / client.connection.mount.device
        assert (bdi / "read_ahead_kb").read_text() == "2048\n"

    mounted(place / "m", look)


class KillBeforeRead(trio.abc.Instrument):
    """Kill a process between the moment when epoll reports its request and the moment when pyfuse3 reads it."""

    def __init__(self) -> None:
        self.victim: subprocess.Popen[bytes] | None = None
        self.poll = select.poll()
        self.done = False

    def after_io_wait(self, timeout: float) -> None:
        if self.victim is not None and not self.done and self.poll.poll(0):
            self.victim.kill()
            self.victim.wait()
            eventually(lambda: not self.poll.poll(0))
            self.done = True


@mounting
def test_request_that_vanishes_does_not_hang_the_daemon(place: Path) -> None:
    """Without the second look the daemon would sit in read(2), GIL held; then the alarm gets it out again."""
    alarms: list[int] = []
    names: list[str] = []
    previous = signal.signal(signal.SIGALRM, lambda number, frame: alarms.append(number))

    def look(client: Client) -> None:
        trap = KillBeforeRead()
        trap.poll.register(client.connection._fd, select.POLLIN)

        def arm() -> None:
            if trap.done:  # by now
                return
            signal.alarm(10)
            names.append(f"vanishing{len(names)}")
            trap.victim = subprocess.Popen(["stat", client.path / names[-1]], stderr=subprocess.DEVNULL)

        def is_done() -> bool:
            """Try again when a request was read without a wait before it: on a busy machine it may come in between."""
            if not trap.done and trap.victim is not None and trap.victim.poll() is not None:
                client.in_loop(arm)
            return trap.done

        try:
            client.in_loop(lambda: trio.lowlevel.add_instrument(trap))
            client.in_loop(arm)
            eventually(is_done)
            client.in_loop(lambda: None)
        finally:
            signal.alarm(0)
            client.in_loop(lambda: trio.lowlevel.remove_instrument(trap))
        assert not alarms, "the daemon hung in read(2)"

    try:
        fs = mounted(place / "m", look)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert not fs.count("lookup", names[-1].encode())


@mounting
@pytest.mark.skipif(shutil.which("fusermount3") is None, reason="needs fusermount3")
def test_mount_through_fusermount(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What users other than root get; fusermount3 itself runs as root here, for /dev/fuse may be closed to others."""
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


@pytest.mark.parametrize("given", ["device=cuda:0+cpu", "device=cuda:0,cpu", r"device=cuda:0\,cpu"])
def test_devices_stand_between_commas_or_plus_signs(given: str) -> None:
    options = parse_options(["ro," + given + ",cache=1G", "noatime"])
    assert {**options.own} == {"device": options.own["device"], "cache": "1G"}
    assert parse_own(options.own).devices == ["cuda:0", "cpu"]
    assert options.read_only


def test_what_is_meant_by_an_option_that_is_not_known(tmp_path: Path) -> None:
    for wrong, right in (("thaw_limt", "thaw_limit"), ("noatme", "noatime"), ("allow_othr", "allow_other")):
        with pytest.raises(UsageError, match=f"unknown option '{wrong}'; did you mean {right}"):
            load_options(tmp_path, {wrong: ""}, words())
    with pytest.raises(UsageError, match=r"unknown option 'zzz' \("):
        load_options(tmp_path, {"zzz": ""}, words())


@pytest.mark.parametrize("mounted", [True, False])
async def test_a_connection_that_the_kernel_aborts(mounted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """ECONNABORTED ends an unmount now and then; while the filesystem is mounted, it is an abort by somebody."""

    async def main(_least: int, _most: int) -> None:
        async with trio.open_nursery():
            raise ConnectionAbortedError(errno.ECONNABORTED, "fuse_session_receive_buf failed")

    own = object.__new__(Connection)
    monkeypatch.setattr(pyfuse3, "main", main)
    monkeypatch.setattr(Connection, "mounted", lambda _: ["here"] if mounted else [])
    with pytest.raises(ExceptionGroup) if mounted else contextlib.nullcontext():
        await own.serve()
