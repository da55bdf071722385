"""The adapter between pyfuse3 and the rooms below: it translates requests and answers, and decides nothing else.

File and directory handles are inode numbers: no state belongs to a single handle. An inode's kernel look-up count
outlives its open handles, so nothing else has to be counted. `nnfs.fs` decides what a request means.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Sequence
from typing import cast

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FUSEError, RequestContext, SetattrFields

from nnfs.blockio.commit import Committer
from nnfs.blockio.dirty import DirtyData
from nnfs.blockio.reader import Reader
from nnfs.blockio.writer import Writer
from nnfs.fs import attributes, virtual
from nnfs.fs.accesstimes import AccessTimes
from nnfs.fs.attributes import Attributes, Caller, Change
from nnfs.fs.filesystem import Filesystem
from nnfs.fs.namespace import Namespace
from nnfs.fs.pasts import is_fleeting, is_past
from nnfs.fs.xattrs import Xattrs
from nnfs.mount import quotas, statfsinode
from nnfs.mount.fingerprint import fingerprint
from nnfs.mount.guard import GuardedOperations, guard
from nnfs.mount.meter import count
from nnfs.mount.quotas import QuotaService
from nnfs.proof import MAX_CHUNKS
from nnfs.store import schema
from nnfs.store.schema import Dentry, Inode

log = logging.getLogger(__name__)

TIMEOUT = 3600.0  # seconds the kernel may trust names and attributes: nobody changes them but through it
UNSETTLED = 1.0  # the same while an inode has dirty data, whose stored size is not known yet
RECORD_COST = 4096  # bytes of space that a new name or attribute is taken to need, generously


class Operations(GuardedOperations):
    """FUSE requests on one store."""

    enable_writeback_cache = True
    enable_acl = True
    supports_dot_lookup = True

    def __init__(
        self, fs: Filesystem, data: DirtyData, reader: Reader, committer: Committer, times: AccessTimes, *,
        read_only: bool,
    ) -> None:  # fmt: skip
        super().__init__(read_only=read_only)
        self.fs, self.data, self.reader, self.committer, self.times = fs, data, reader, committer, times
        self.writer = Writer(data, reader, committer)
        self.xattrs = Xattrs(fs)
        self.inodes = Attributes(fs, self.xattrs)
        self.names = Namespace(fs, self.xattrs)
        self.quotas = QuotaService(fs, committer, self.prove, read_only=read_only)
        self._proving: dict[int, trio.Event] = {}  # large directories whose names a thread is loading

    def _changing(self, *inodes: int) -> None:
        if any(map(is_past, inodes)):
            raise FUSEError(errno.EROFS)
        if self.read_only or self.committer.failure is not None:
            raise FUSEError(errno.EROFS)

    async def _growing(self, size: int = 0) -> None:
        """Prepare for a request that makes the store larger, by `size` bytes beside a record."""
        self._changing()
        await self.committer.admission.admit(RECORD_COST + size)

    # -- attributes

    def attributes(self, inode: Inode) -> EntryAttributes:
        """Return the attributes that stat(2) shows, without counting a look-up."""
        entry = EntryAttributes()
        entry.st_ino = inode.ino
        entry.st_mode = inode.mode
        entry.st_nlink = inode.nlink
        entry.st_uid = inode.uid
        entry.st_gid = inode.gid
        entry.st_size = attributes.size(inode)
        entry.st_atime_ns = inode.atime
        entry.st_mtime_ns = inode.mtime
        entry.st_ctime_ns = inode.ctime
        entry.entry_timeout = entry.attr_timeout = 0 if is_fleeting(inode.ino) else TIMEOUT
        kind = inode.mode & 0o170000
        if kind == stat.S_IFREG:
            dirty = 0
            if self.data.has(inode.ino):
                dirty = self.data.dirty_bytes(inode.ino)
                entry.attr_timeout = UNSETTLED
            entry.st_blocks = attributes.blocks(inode, dirty)
            entry.st_blksize = self.data.chunk_size
        elif kind in (stat.S_IFBLK, stat.S_IFCHR):
            entry.st_rdev = inode.aux
        return entry

    def _known(self, inode: Inode) -> EntryAttributes:
        """Return attributes for an answer that adds one to the kernel's lookup count."""
        self.fs.remember(inode.ino)
        return self.attributes(inode)

    @guard
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        await self.prove(parent_inode, name)
        inode = self.names.lookup(parent_inode, name)
        if inode is not None:
            return self._known(inode)
        absent = EntryAttributes()
        absent.st_ino = 0  # a negative answer that the kernel may keep
        absent.entry_timeout = 0 if is_fleeting(parent_inode) else TIMEOUT
        return absent

    @guard
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, lookups in inode_list:
            self.fs.forget(ino, lookups)

    @guard
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self.attributes(self.fs.inode(inode))

    @guard
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        self._changing(inode)
        await self._shrinking()
        wanted = Change(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime=attr.st_atime_ns if fields.update_atime else None,
            mtime=attr.st_mtime_ns if fields.update_mtime else None,
            ctime=attr.st_ctime_ns if fields.update_ctime else None,
        )
        wanted.check()
        found = self.fs.inode(inode)
        if wanted.size is not None:
            found = await self._resize(found, wanted.size)
        self.inodes.change(found, wanted, _caller(ctx))
        return self.attributes(found)

    async def _resize(self, inode: Inode, size: int) -> Inode:
        """Change a file's size. Return the live inode: it may be another object after a wait."""
        spare = self.inodes.spare(inode, size)
        inode = await self.writer.truncate(inode.ino, size, spare)
        self.inodes.resized(inode, size)
        return inode

    @guard
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self.fs.inode(inode).target

    @guard
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        space = self.committer.space
        figures = self.inodes.figures(space.shown() - self.data.size, space.in_place, statfsinode.requested())
        result = pyfuse3.StatvfsData()
        result.f_bsize = result.f_frsize = attributes.UNIT
        result.f_blocks, result.f_files = figures.blocks, figures.files
        result.f_bfree, result.f_bavail = figures.free, figures.available
        result.f_ffree = result.f_favail = figures.free_files
        result.f_namemax = schema.NAME_MAX
        return result

    # -- names

    async def prove(self, ino: int, name: bytes | None = None) -> None:
        """Prove the names of a large directory in a thread: it would stop the loop.

        With `name`, do so only if looking that name up needs it.
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
        """Prepare for a request that changes names and needs hardly any space: it works on a full disk, too."""
        self._changing()
        await self.committer.admission.throttle()
        for ino, name in directories:
            await self.prove(ino, name)

    async def _create(
        self, parent: int, name: bytes, mode: int, ctx: RequestContext, *, rdev: int = 0, target: bytes = b""
    ) -> Inode:
        await self._growing()
        await self.prove(parent)
        return self.names.create(parent, name, mode, ctx.umask, ctx.uid, ctx.gid, rdev=rdev, target=target)

    @guard
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._known(await self._create(parent_inode, name, mode, ctx, rdev=rdev))

    @guard
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._known(await self._create(parent_inode, name, mode | stat.S_IFDIR, ctx))

    @guard
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._known(await self._create(parent_inode, name, stat.S_IFLNK | 0o777, ctx, target=target))

    @guard
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[pyfuse3.FileInfo, EntryAttributes]:
        inode = await self._create(parent_inode, name, mode | stat.S_IFREG, ctx)
        self.times.usage.opened(inode.ino, reads=flags & os.O_ACCMODE != os.O_WRONLY)
        return pyfuse3.FileInfo(fh=inode.ino, direct_io=self.quotas.fails_at_once(inode, flags)), self._known(inode)

    @guard
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        await self._growing()
        await self.prove(new_parent_inode)
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
            await self.prove(parent)
        self.names.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @guard
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        self.names.directory(inode)
        return inode

    @guard
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        await self.prove(fh)
        self._accessed(self.fs.inode(fh))
        if start_id == 0:
            self.reader.listings.begin(fh)
        for cookie, name, found in self.names.entries(fh, start_id):
            entry = _unknown(found) if isinstance(found, Dentry) else self.attributes(found)
            if not pyfuse3.readdir_reply(token, name, entry, cookie):
                break
            if name not in (b".", b".."):
                self.fs.remember(found.ino)
                if isinstance(found, Inode) and (stat.S_ISREG(found.mode) or found.is_directory):
                    self.reader.listings.listed(fh, found.ino)

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
            self._changing(inode)
        if flags & os.O_TRUNC and stat.S_ISREG(found.mode):
            found = await self._resize(found, 0)
            self.inodes.emptied(found, _caller(ctx))
        reads = flags & os.O_ACCMODE != os.O_WRONLY and not flags & os.O_NOATIME
        if self.times.opened(found, reads=reads, may_store=self._may_move_atimes()):
            try:  # the kernel keeps the atime, and nothing else would tell it of another one
                pyfuse3.invalidate_inode(inode, attr_only=True)
            except OSError as error:
                log.debug("inode %d: %s", inode, error)
        return pyfuse3.FileInfo(fh=inode, direct_io=self.quotas.fails_at_once(found, flags))

    def _may_move_atimes(self) -> bool:
        return not self.read_only and self.committer.admission.has_room_to_spare()

    def _accessed(self, inode: Inode) -> None:
        self.times.accessed(inode, may_store=self._may_move_atimes())

    @guard
    async def read(self, fh: int, offset: int, size: int) -> bytes:
        inode = self.fs.inode(fh)
        if self.times.usage.reads(fh):  # not if all handles are O_NOATIME, or only write
            self._accessed(inode)
        data = await self.reader.read(inode, offset, size)
        count(self.meter.read, len(data))
        return cast(bytes, data)  # pyfuse3 takes any buffer

    @guard
    async def write(self, fh: int, offset: int, buf: bytes) -> int:
        self._changing()
        inode = await self.writer.write(fh, offset, buf)
        self.inodes.written(inode, offset + len(buf))
        count(self.meter.written, len(buf))
        return len(buf)

    async def flush(self, fh: int) -> None:
        # The kernel writes dirty pages back before it would send this, and never sends it again: open, read, close is
        # 1.3 times as fast. fsync tells errors that come later.
        raise FUSEError(errno.ENOSYS)

    @guard
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self.committer.sync_inode(fh)

    @guard
    async def release(self, fh: int) -> None:
        self.times.closed(fh, may_store=not self.read_only)

    # -- extended attributes

    @guard
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        found = self.fs.inode(inode)
        if stat.S_ISREG(found.mode) and name in (*virtual.SLOW, virtual.FINGERPRINT):
            return await self._described(inode, name)
        if name in quotas.ATTRIBUTES:
            return self.quotas.attribute(found, name)
        value = virtual.computed(self.fs, found, name) if name in virtual.COMPUTED else self.xattrs.get(found, name)
        if value is None:
            raise FUSEError(errno.ENODATA)
        return value

    async def _described(self, inode: int, name: bytes) -> bytes:
        """Return a computed attribute for which all blocks of a file are visited, as of now."""
        if self.data.has(inode):
            await self.committer.sync()
        if name == virtual.FINGERPRINT:
            if self.fs.inode(inode).size > MAX_CHUNKS * self.data.chunk_size:  # a hole may have any size
                raise FUSEError(errno.ENODATA)
            return (await fingerprint(self.fs.store, self.fs, self.reader, inode)).hex().encode()
        return await trio.to_thread.run_sync(virtual.SLOW[name], self.fs.store, inode)

    @guard
    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        return self.inodes.xattr_names(self.fs.inode(inode), _caller(ctx))

    @guard
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self._changing(inode)
        await self._growing(len(value))
        if name in quotas.LIMITS:
            self.quotas.set_attribute(self.fs.inode(inode), name, value, ctx.uid)
            return
        self.inodes.set_xattr(self.fs.inode(inode), name, value, _caller(ctx))

    @guard
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self._changing(inode)
        if name in quotas.LIMITS:
            self.quotas.set_attribute(self.fs.inode(inode), name, None, ctx.uid)
            return
        self.xattrs.remove(self.fs.inode(inode), name)


def _unknown(dentry: Dentry) -> EntryAttributes:
    """Return attributes for a name whose inode is damaged: a listing shows it, and a look-up gets EIO."""
    entry = EntryAttributes()
    entry.st_ino = dentry.ino
    entry.st_mode = dentry.kind << 12
    entry.entry_timeout = entry.attr_timeout = 0
    return entry


def _caller(ctx: RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, lambda: pyfuse3.get_sup_groups(ctx.pid))
