"""The thin adapter between pyfuse3 and the rooms below: arguments in, attributes out, errors to errno.

File and directory handles are inode numbers: no state belongs to a single handle. An inode's kernel look-up count
outlives its open handles, so nothing else has to be counted.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar, cast

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FUSEError, RequestContext, SetattrFields

from nnfs.blockio.commit import Committer
from nnfs.blockio.dirty import DirtyData
from nnfs.blockio.reader import Reader
from nnfs.blockio.writer import Writer
from nnfs.errors import FsError, NnfsError, RecordDamaged, kept
from nnfs.fs import virtual
from nnfs.fs.apply import RELEASE_NODES
from nnfs.fs.filesystem import Filesystem
from nnfs.fs.namespace import Namespace
from nnfs.fs.usage import Usage
from nnfs.fs.xattrs import ACL_ACCESS, Xattrs
from nnfs.store import schema
from nnfs.store.schema import Dentry, Inode

log = logging.getLogger(__name__)

TIMEOUT = 3600.0  # seconds the kernel may trust names and attributes: nobody changes them but through it
UNSETTLED = 1.0  # the same while an inode has dirty data, whose stored size is not known yet
RELATIME = 24 * 3600 * 10**9  # ns
GRAIN = 10**7  # ns: the kernel's mtimes come from a clock that may be so late, and ours from one that is not
TOLD = 1000  # messages about damage that are not logged again
RECORD_COST = 4096  # bytes of space that a new name or attribute is taken to need, generously

P = ParamSpec("P")
T = TypeVar("T")
Handler: TypeAlias = "Callable[Concatenate[Operations, P], Coroutine[Any, Any, T]]"


def guard(handler: Handler[P, T]) -> Handler[P, T]:
    """Let nothing but FUSEError leave a handler: anything else would end the mount.

    A bug is logged once with its traceback, answered with EIO, and turns the mount read-only.
    """

    @functools.wraps(handler)
    async def guarded(self: Operations, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError:
            raise
        except FsError as error:
            raise FUSEError(error.errno) from None
        except NnfsError as error:
            self.tell(handler.__name__, error)
            raise FUSEError(kept(error).errno) from None
        except MemoryError:
            raise FUSEError(errno.ENOMEM) from None
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        except Exception as bug:  # noqa: BLE001 - that is the point
            self.trip(handler.__name__, bug)
            kept(bug)
            raise FUSEError(errno.EIO) from None

    return guarded  # type: ignore[return-value]  # functools.wraps makes a type of its own


class Operations(pyfuse3.Operations):
    """FUSE requests on one store."""

    enable_writeback_cache = True
    enable_acl = True
    supports_dot_lookup = True

    def __init__(
        self, fs: Filesystem, data: DirtyData, reader: Reader, committer: Committer, *,
        read_only: bool, atime: str, read_age: float = 0.0,
    ) -> None:  # fmt: skip
        """`read_age`: seconds after which recompression takes a file for unread; 0: it does not mind."""
        super().__init__()
        self.fs, self.data, self.reader, self.committer = fs, data, reader, committer
        self.writer = Writer(data, reader, committer)
        self.xattrs = Xattrs(fs)
        self.names = Namespace(fs, self.xattrs)
        self.read_only = "mounted read-only" if read_only else ""
        self.atime = atime
        self.read_age = read_age
        self.usage = Usage()
        self._told: set[str] = set()  # what is damaged and was logged
        self._proving: dict[int, trio.Event] = {}  # large directories whose names a thread is loading

    def trip(self, where: str, bug: Exception) -> None:
        """Turn the mount read-only because of a bug."""
        if not self.read_only:
            self.read_only = f"a bug in {where}: {bug!r}"
        log.error("bug in %s, the mount is read-only from here on: unmount and mount again", where, exc_info=bug)

    def tell(self, where: str, error: NnfsError) -> None:
        """Log why a request fails; what is damaged loudly, but once: it may be looked at all the time."""
        is_news = isinstance(error, RecordDamaged) and str(error) not in self._told
        if is_news:
            if len(self._told) == TOLD:
                self._told.clear()
            self._told.add(str(error))
        log.log(logging.ERROR if is_news else logging.DEBUG, "%s: %s", where, error)

    def _changing(self) -> None:
        if self.read_only or self.committer.failure is not None:
            raise FUSEError(errno.EROFS)

    async def _growing(self, size: int = 0) -> None:
        """Before anything that makes the store larger, by `size` bytes beside a record."""
        self._changing()
        await self.committer.admit(RECORD_COST + size)

    # -- attributes

    def attributes(self, inode: Inode) -> EntryAttributes:
        """Return what stat(2) shows, and count nothing."""
        entry = EntryAttributes()
        entry.st_ino = inode.ino
        entry.st_mode = inode.mode
        entry.st_nlink = inode.nlink
        entry.st_uid = inode.uid
        entry.st_gid = inode.gid
        entry.st_size = inode.size
        entry.st_atime_ns = inode.atime
        entry.st_mtime_ns = inode.mtime
        entry.st_ctime_ns = inode.ctime
        entry.entry_timeout = entry.attr_timeout = TIMEOUT
        kind = inode.mode & 0o170000
        if kind == stat.S_IFREG:
            stored = inode.stored
            if self.data.has(inode.ino):
                stored += self.data.dirty_bytes(inode.ino)
                entry.attr_timeout = UNSETTLED
            entry.st_blocks = max(-(-stored // 512), inode.count > 0)  # 0 would say that there is nothing but a hole
            entry.st_blksize = self.data.chunk_size
        elif kind in (stat.S_IFBLK, stat.S_IFCHR):
            entry.st_rdev = inode.aux
        elif kind == stat.S_IFDIR:
            entry.st_size = inode.count * 32
        return entry

    def _known(self, inode: Inode) -> EntryAttributes:
        """Attributes for an answer by which the kernel takes note of the inode."""
        self.fs.remember(inode.ino)
        return self.attributes(inode)

    @guard
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        await self._prove(parent_inode, name)
        inode = self.names.lookup(parent_inode, name)
        if inode is not None:
            return self._known(inode)
        absent = EntryAttributes()
        absent.st_ino = 0  # a negative answer that the kernel may keep
        absent.entry_timeout = TIMEOUT
        return absent

    @guard
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            self.fs.forget(ino, count)

    @guard
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self.attributes(self.fs.inode(inode))

    @guard
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        await self._shrinking()
        found = self.fs.inode(inode)
        if fields.update_size:
            found = await self._resize(found, attr.st_size)
        if fields.update_mode:
            self.xattrs.chmod(found, attr.st_mode)
        if fields.update_uid:
            found.uid = attr.st_uid
        if fields.update_gid:
            found.gid = attr.st_gid
        now = time.time_ns()
        plain = not (fields.update_mode or fields.update_atime or fields.update_mtime or fields.update_ctime)
        if fields.update_uid or fields.update_gid or ((fields.update_size or plain) and ctx.uid != 0):
            self._drop_privileges(found)
        if fields.update_atime:
            found.atime = _clamp(attr.st_atime_ns)
        if fields.update_mtime:
            found.mtime = _clamp(attr.st_mtime_ns)
        elif fields.update_size:
            found.mtime = now
        found.ctime = _clamp(attr.st_ctime_ns) if fields.update_ctime else now
        self.fs.touch(found)
        return self.attributes(found)

    @staticmethod
    def _drop_privileges(inode: Inode) -> None:
        """What FUSE_HANDLE_KILLPRIV_V2 asks for (see connection.py): suid goes, sgid where it means execution."""
        if not stat.S_ISDIR(inode.mode):
            inode.mode &= ~stat.S_ISUID
            if inode.mode & stat.S_IXGRP:
                inode.mode &= ~stat.S_ISGID

    async def _resize(self, inode: Inode, size: int) -> Inode:
        """Return the live inode: it may be another object after a wait."""
        if stat.S_ISDIR(inode.mode):
            raise FUSEError(errno.EISDIR)
        if not stat.S_ISREG(inode.mode):
            raise FUSEError(errno.EINVAL)
        spare = self.fs.new_ino() if size < inode.size and inode.count > RELEASE_NODES * schema.NODE_SPAN else 0
        inode = await self.writer.truncate(inode.ino, size, spare)
        inode.size = size
        self.fs.touch(inode)
        return inode

    @guard
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self.fs.inode(inode).target

    @guard
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        unit = 4096
        space = self.committer.space
        free = max(0, space.shown - self.data.size) // unit
        used = max(0, self.fs.store.physical_bytes() - space.in_place) // unit
        result = pyfuse3.StatvfsData()
        result.f_bsize = result.f_frsize = unit
        result.f_blocks = used + free
        result.f_bfree = result.f_bavail = free
        result.f_files = self.fs.named + free
        result.f_ffree = result.f_favail = free
        result.f_namemax = schema.NAME_MAX
        return result

    # -- names

    async def _prove(self, ino: int, name: bytes | None = None) -> None:
        """Have a large directory proved in a thread before the loop would stand still for it.

        `name`: only if looking that up needs it.
        """
        while self.fs.is_long_to_prove(directory := self.fs.inode(ino)):
            if name is not None and self.fs.find_first(directory, name) is not None:
                return
            if ino in self._proving:
                await self._proving[ino].wait()
                continue
            self._proving[ino] = trio.Event()
            try:
                with self.fs.loading(ino) as loading:
                    await trio.to_thread.run_sync(loading.scan)
            finally:
                self._proving.pop(ino).set()

    async def _shrinking(self, *directories: tuple[int, bytes]) -> None:
        """Before anything that changes names and needs no space to speak of: works on a full disk, too."""
        self._changing()
        await self.committer.throttle()
        for ino, name in directories:
            await self._prove(ino, name)

    async def _create(
        self, parent: int, name: bytes, mode: int, ctx: RequestContext, *, rdev: int = 0, target: bytes = b""
    ) -> Inode:
        await self._growing()
        await self._prove(parent)
        return self.names.create(parent, name, mode, ctx.umask, ctx.uid, ctx.gid, rdev=rdev, target=target)

    @guard
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._known(await self._create(parent_inode, name, mode, ctx, rdev=rdev))

    @guard
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._known(await self._create(parent_inode, name, mode | stat.S_IFDIR, ctx))

    @guard
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        if len(target) > schema.SYMLINK_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        return self._known(await self._create(parent_inode, name, stat.S_IFLNK | 0o777, ctx, target=target))

    @guard
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[pyfuse3.FileInfo, EntryAttributes]:
        inode = await self._create(parent_inode, name, mode | stat.S_IFREG, ctx)
        self.usage.opened(inode.ino, reads=flags & os.O_ACCMODE != os.O_WRONLY)
        return pyfuse3.FileInfo(fh=inode.ino), self._known(inode)

    @guard
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        await self._growing()
        await self._prove(new_parent_inode)
        return self._known(self.names.link(inode, new_parent_inode, new_name))

    @guard
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._shrinking((parent_inode, name))
        self.names.unlink(parent_inode, name)

    @guard
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._shrinking((parent_inode, name))
        self.names.rmdir(parent_inode, name)

    @guard
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        await self._shrinking((parent_inode_old, name_old))
        for parent in (parent_inode_new, *([parent_inode_old] if flags else ())):  # where names are entered
            await self._prove(parent)
        self.names.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @guard
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        self.names.directory(inode)
        return inode

    @guard
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        await self._prove(fh)
        self._accessed(self.fs.inode(fh))
        for cookie, name, found in self.names.entries(fh, start_id):
            entry = _unknown(found) if isinstance(found, Dentry) else self.attributes(found)
            if not pyfuse3.readdir_reply(token, name, entry, cookie):
                break
            if name not in (b".", b".."):
                self.fs.remember(found.ino)

    @guard
    async def releasedir(self, fh: int) -> None:
        pass

    @guard
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self.committer.sync()

    # -- content

    @guard
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> pyfuse3.FileInfo:
        found = self.fs.inode(inode)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            self._changing()
        if flags & os.O_TRUNC and stat.S_ISREG(found.mode):
            found = await self._resize(found, 0)
            if ctx.uid != 0:
                self._drop_privileges(found)
            found.mtime = found.ctime = time.time_ns()
        self._opened(found, flags)
        return pyfuse3.FileInfo(fh=inode)

    def _opened(self, inode: Inode, flags: int) -> None:
        """Take an open for reading as the reading: what the kernel has in its page cache is read without our knowing.

        The kernel keeps the atime as well, and nothing else would tell it of another one.
        """
        reads = flags & os.O_ACCMODE != os.O_WRONLY and not flags & os.O_NOATIME
        self.usage.opened(inode.ino, reads=reads)
        before = inode.atime
        if reads:
            self._accessed(inode)
        if inode.atime != before:
            try:
                pyfuse3.invalidate_inode(inode.ino, attr_only=True)
            except OSError as error:
                log.debug("inode %d: %s", inode.ino, error)

    @guard
    async def read(self, fh: int, offset: int, size: int) -> bytes:
        inode = self.fs.inode(fh)
        self._accessed(inode)
        return cast(bytes, await self.reader.read(inode, offset, size))  # pyfuse3 takes any buffer

    @guard
    async def write(self, fh: int, offset: int, buf: bytes) -> int:
        self._changing()
        inode = await self.writer.write(fh, offset, buf)
        inode.size = max(inode.size, offset + len(buf))
        inode.mtime = inode.ctime = time.time_ns()
        self.fs.touch(inode)
        return len(buf)

    def _accessed(self, inode: Inode) -> None:
        self.usage.used(inode.ino)
        if self.read_only or not self.committer.spares():
            return
        if self.atime == "strictatime" or (
            self.atime == "relatime" and (inode.atime <= max(inode.mtime, inode.ctime) + GRAIN or self._is_old(inode))
        ):
            inode.atime = time.time_ns()
            self.fs.touch(inode)

    def _is_old(self, inode: Inode) -> bool:
        """Whether an atime is so old that relatime wants another one.

        relatime(8) says a day; but a file that is read every day must not look as if nobody had read it for a day.
        """
        return time.time_ns() - inode.atime > (min(RELATIME, int(self.read_age * 1e9 / 2)) or RELATIME)

    def last_read(self, ino: int) -> int:
        """Return when a file was last in use in this mount, in ns; 0: unknown."""
        return self.usage.last(ino)

    async def flush(self, fh: int) -> None:
        # The kernel writes dirty pages back before it would send this, and never sends it again: open, read, close is
        # 1.3 times as fast. What goes wrong with a file later is told by fsync.
        raise FUSEError(errno.ENOSYS)

    @guard
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self.committer.sync_inode(fh)

    @guard
    async def release(self, fh: int) -> None:
        if self.usage.closed(fh) and self.atime != "noatime" and not self.read_only:
            inode = self.fs.inode(fh)
            if inode.nlink and self._is_old(inode):  # read until now, as the next mount should know
                inode.atime = time.time_ns()
                self.fs.touch(inode)

    # -- extended attributes

    @guard
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        found = self.fs.inode(inode)
        if name == virtual.CODECS and stat.S_ISREG(found.mode):
            return await trio.to_thread.run_sync(virtual.codecs, self.fs.store, inode)
        value = virtual.computed(self.fs, found, name) if name in virtual.COMPUTED else self.xattrs.get(found, name)
        if value is None:
            raise FUSEError(errno.ENODATA)
        return value

    @guard
    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        names = self.xattrs.names(self.fs.inode(inode))
        if ctx.uid != 0:  # who may not read them is not shown them, as on ext4: cp -a would fail otherwise
            names = [name for name in names if not name.startswith(b"trusted.")]
        return names

    @guard
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        await self._growing(len(value))
        found = self.fs.inode(inode)
        keep = True
        if name == ACL_ACCESS and found.mode & stat.S_ISGID and ctx.uid != 0 and ctx.gid != found.gid:
            keep = found.gid in pyfuse3.get_sup_groups(ctx.pid)
        self.xattrs.set(found, name, value, keep_setgid=keep)

    @guard
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self._changing()
        self.xattrs.remove(self.fs.inode(inode), name)


def _unknown(dentry: Dentry) -> EntryAttributes:
    """For a name whose inode is damaged: it is listed; whoever looks closer asks again and gets EIO."""
    entry = EntryAttributes()
    entry.st_ino = dentry.ino
    entry.st_mode = dentry.kind << 12
    entry.entry_timeout = entry.attr_timeout = 0
    return entry


def _clamp(ns: int) -> int:
    return max(-(1 << 63), min((1 << 63) - 1, ns))
