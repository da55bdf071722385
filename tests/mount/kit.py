"""A filesystem in memory, mounted by nnfs.mount.connection, and clients that use it."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio
from pyfuse3 import FUSEError

from nnfs.mount.connection import Connection, connect
from nnfs.mount.options import parse_options
from nnfs.mount.table import MountInfo, mounts
from nnfs.store.env import Store
from tests.harness import WAIT_S, Mount

mounting = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs root and /dev/fuse"
)


def emptied(mounted: Mount) -> Path:
    """Return the root of a mount that tests share, without files, whatever the last test has left."""
    mounted.revive()
    mounted.deadline()
    for name in os.listdir(mounted.path):
        file = mounted.path / name
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink()
    return mounted.path


def is_clean(store: Path) -> bool:
    """Return whether a store is free, and was closed in order."""
    opened = Store.open(store)
    try:
        return opened.state.clean_commit == opened.state.commit
    finally:
        opened.close()


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
        """Return how many logged requests begin with *what*."""
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
    """The objects that the test's thread uses while the filesystem is mounted."""

    def __init__(self, fs: MemoryFs, mountpoint: Path, connection: Connection, token: trio.lowlevel.TrioToken) -> None:
        self.fs, self.path, self.connection, self.token = fs, mountpoint, connection, token

    def in_loop(self, function: Callable[[], Any]) -> Any:
        return trio.from_thread.run_sync(function, trio_token=self.token)

    def mount_info(self) -> MountInfo:
        return next(mount for mount in mounts() if mount.device == self.connection.mount.device)


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


@contextlib.contextmanager
def stopped(mount: Mount) -> Iterator[None]:
    """The daemon is stopped meanwhile."""
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(mount.pid, signal.SIGCONT)


def bind(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", source, target], check=True)
