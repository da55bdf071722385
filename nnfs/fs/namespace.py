"""Names: look-up, creation, removal, rename, listing. The kernel checks permissions; the semantics are here."""

from __future__ import annotations

import contextlib
import errno
import logging
import stat
import time
from collections.abc import Iterator

from nnfs.errors import FsError, RecordDamaged, StoreDamaged
from nnfs.fs import acl, policy
from nnfs.fs.filesystem import Filesystem
from nnfs.fs.pasts import HOME, HOME_NAME, is_past
from nnfs.fs.xattrs import ACL_ACCESS, ACL_DEFAULT, Xattrs
from nnfs.store import schema
from nnfs.store.moments import PAST
from nnfs.store.schema import Dentry, Inode

log = logging.getLogger(__name__)

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
LINK_MAX = (1 << 31) - 1
DOT, DOTDOT = 1, 2  # cookies of "." and ".."


class Namespace:
    """Operations on names. Each is done wholly, or raises `FsError` or `StoreDamaged` with nothing changed."""

    def __init__(self, fs: Filesystem, xattrs: Xattrs) -> None:
        self.fs = fs
        self.xattrs = xattrs

    def directory(self, ino: int) -> Inode:
        """Return a directory's inode. Raises `FsError(ENOTDIR)`."""
        inode = self.fs.inode(ino)
        if not stat.S_ISDIR(inode.mode):
            raise FsError(errno.ENOTDIR)
        return inode

    def _parent(self, ino: int, name: bytes) -> Inode:
        if is_past(ino):
            raise FsError(errno.EROFS)
        if len(name) > schema.NAME_MAX:
            raise FsError(errno.ENAMETOOLONG)
        parent = self.directory(ino)
        if ino == schema.ROOT_INO and name == HOME_NAME and self.fs.find(parent, name) is None:
            raise FsError(errno.EBUSY)  # where the snapshots are
        if parent.nlink == 0:
            raise FsError(errno.ENOENT)  # removed while somebody stands in it
        return parent

    def _existing(self, parent: Inode, name: bytes) -> tuple[bytes, bytes, Dentry]:
        found = self.fs.find(parent, name)
        if found is None:
            raise FsError(errno.ENOENT)
        return found

    def _target(self, dentry: Dentry) -> Inode:
        try:
            return self.fs.inode(dentry.ino)
        except FsError as error:
            raise RecordDamaged("inode", schema.KEY.pack(dentry.ino), f"missing, but named {dentry.name!r}") from error

    def lookup(self, parent_ino: int, name: bytes) -> Inode | None:
        """Return the inode of a name, None when there is no such name."""
        if len(name) > schema.NAME_MAX:
            raise FsError(errno.ENAMETOOLONG)
        if name == b".":  # of a file, too: so the kernel finds inodes by their handles (open_by_handle_at, NFS)
            inode = self.fs.inode(parent_ino)
            if inode.nlink == 0:
                raise FsError(errno.ESTALE)  # may be on its way out
            return inode
        parent = self.directory(parent_ino)
        if name == b"..":
            return self.fs.inode(parent.aux)
        if is_past(parent_ino):
            return self.fs.pasts.lookup(parent, name)
        found = self.fs.find(parent, name)
        if found is None and parent_ino == schema.ROOT_INO and name == HOME_NAME:
            return self.fs.inode(HOME)
        return None if found is None else self._target(found[2])

    def create(
        self,
        parent_ino: int,
        name: bytes,
        mode: int,
        umask: int,
        uid: int,
        gid: int,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Inode:
        """Make a new inode of any type under a name.

        Group and setgid bit follow a setgid directory; the umask applies unless the directory has a default ACL.
        """
        if len(target) > schema.SYMLINK_MAX:
            raise FsError(errno.ENAMETOOLONG)
        parent = self._parent(parent_ino, name)
        if self.fs.find(parent, name) is not None:
            raise FsError(errno.EEXIST)
        is_dir = stat.S_ISDIR(mode)
        if parent.mode & stat.S_ISGID:
            gid = parent.gid
            mode |= stat.S_ISGID if is_dir else 0
        default = None if stat.S_ISLNK(mode) else self.xattrs.get(parent, ACL_DEFAULT)
        access = child_default = None
        if default is not None:
            mode, access, child_default = acl.inherit(default, mode, is_dir)
        elif not stat.S_ISLNK(mode):
            mode &= ~umask
        if parent.quota:
            self.fs.quotas.check(parent.quota, len(target), 1)
        inode = self.fs.new_inode(mode, uid, gid)
        if is_dir:
            inode.nlink, inode.aux = 2, parent_ino
            parent.nlink += 1
        elif stat.S_ISLNK(mode):
            inode.target, inode.size = target, len(target)
        else:
            inode.aux = rdev
        if parent.quota:
            self.fs.quotas.enter(inode, parent.quota)
        if access is not None:
            self.xattrs.put(inode, ACL_ACCESS, access)
        if child_default is not None:
            self.xattrs.put(inode, ACL_DEFAULT, child_default)
        self.fs.add_dentry(parent, name, inode.ino, stat.S_IFMT(mode) >> 12)
        return inode

    def link(self, ino: int, parent_ino: int, name: bytes) -> Inode:
        """Add a name to an inode, as link(2) does."""
        inode = self.fs.inode(ino)
        parent = self._parent(parent_ino, name)
        if is_past(ino):
            raise FsError(errno.EXDEV)
        if stat.S_ISDIR(inode.mode):
            raise FsError(errno.EPERM)
        if inode.nlink == 0:
            raise FsError(errno.ENOENT)
        if inode.nlink >= LINK_MAX:
            raise FsError(errno.EMLINK)
        if self.fs.find(parent, name) is not None:
            raise FsError(errno.EEXIST)
        self.fs.quotas.check_link(inode, parent)
        inode.nlink += 1
        inode.ctime = time.time_ns()
        self.fs.touch(inode)
        self.fs.add_dentry(parent, name, ino, stat.S_IFMT(inode.mode) >> 12)
        return inode

    def unlink(self, parent_ino: int, name: bytes) -> None:
        """Remove a name of something that is not a directory."""
        parent = self._parent(parent_ino, name)
        key, record, dentry = self._existing(parent, name)
        inode = self._target(dentry)
        if stat.S_ISDIR(inode.mode):
            raise FsError(errno.EISDIR)
        self.fs.remove_dentry(parent, key, record)
        self.fs.drop_link(inode)

    def rmdir(self, parent_ino: int, name: bytes) -> None:
        """Remove an empty directory."""
        parent = self._parent(parent_ino, name)
        key, record, dentry = self._existing(parent, name)
        inode = self._target(dentry)
        self._check_removable_directory(inode)
        self.fs.remove_dentry(parent, key, record)
        parent.nlink -= 1
        self.fs.drop_link(inode, links=inode.nlink)

    @staticmethod
    def _check_removable_directory(inode: Inode) -> None:
        if not stat.S_ISDIR(inode.mode):
            raise FsError(errno.ENOTDIR)
        if inode.count:
            raise FsError(errno.ENOTEMPTY)

    def rename(self, old_parent_ino: int, old_name: bytes, new_parent_ino: int, new_name: bytes, flags: int) -> None:
        """Rename as renameat2(2) does, with RENAME_NOREPLACE or RENAME_EXCHANGE."""
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise FsError(errno.EINVAL)
        old_parent, new_parent = self._parent(old_parent_ino, old_name), self._parent(new_parent_ino, new_name)
        old = self._existing(old_parent, old_name)
        new = self.fs.find(new_parent, new_name)
        moved = self._target(old[2])
        if new is not None and flags == RENAME_NOREPLACE:
            raise FsError(errno.EEXIST)
        if new is not None and new[2].ino == moved.ino:
            return  # two names of one file: POSIX wants nothing done
        if stat.S_ISDIR(moved.mode):
            self._check_no_loop(moved, new_parent)
        if flags == RENAME_EXCHANGE:
            if new is None:
                raise FsError(errno.ENOENT)
            self._exchange(old_parent, old, new_parent, new)
            return
        self.fs.quotas.check_move(moved, old_parent, new_parent)
        if new is not None:
            self._replace(new_parent, new, moved)
        self._move(old_parent, old, new_parent, new_name, moved)

    def _check_no_loop(self, moved: Inode, into: Inode) -> None:
        while into.ino != schema.ROOT_INO:
            if into.ino == moved.ino:
                raise FsError(errno.EINVAL)
            into = self.fs.inode(into.aux)

    def _replace(self, parent: Inode, new: tuple[bytes, bytes, Dentry], moved: Inode) -> None:
        key, record, dentry = new
        victim = self._target(dentry)
        if stat.S_ISDIR(moved.mode):
            self._check_removable_directory(victim)
        elif stat.S_ISDIR(victim.mode):
            raise FsError(errno.EISDIR)
        self.fs.remove_dentry(parent, key, record)
        if stat.S_ISDIR(victim.mode):
            parent.nlink -= 1
            self.fs.drop_link(victim, links=victim.nlink)
        else:
            self.fs.drop_link(victim)

    def _move(
        self, old_parent: Inode, old: tuple[bytes, bytes, Dentry], new_parent: Inode, name: bytes, moved: Inode
    ) -> None:
        key, record, dentry = old
        self.fs.remove_dentry(old_parent, key, record)
        self.fs.add_dentry(new_parent, name, moved.ino, dentry.kind)
        self._note_policies(old_parent, new_parent)
        if stat.S_ISDIR(moved.mode) and old_parent is not new_parent:
            old_parent.nlink -= 1
            new_parent.nlink += 1
            moved.aux = new_parent.ino
        moved.ctime = time.time_ns()
        self.fs.quotas.moved(moved, new_parent)
        self.fs.touch(moved)

    def _exchange(
        self, a_parent: Inode, a: tuple[bytes, bytes, Dentry], b_parent: Inode, b: tuple[bytes, bytes, Dentry]
    ) -> None:
        a_inode, b_inode = self._target(a[2]), self._target(b[2])
        if stat.S_ISDIR(b_inode.mode):
            self._check_no_loop(b_inode, a_parent)
        self.fs.quotas.check_move(a_inode, a_parent, b_parent)
        self.fs.quotas.check_move(b_inode, b_parent, a_parent)
        for parent, entry in ((a_parent, a), (b_parent, b)):
            self.fs.remove_dentry(parent, entry[0], entry[1])
        self.fs.add_dentry(b_parent, b[2].name, a_inode.ino, a[2].kind)
        self.fs.add_dentry(a_parent, a[2].name, b_inode.ino, b[2].kind)
        self._note_policies(a_parent, b_parent)
        for inode, source, into in ((a_inode, a_parent, b_parent), (b_inode, b_parent, a_parent)):
            if stat.S_ISDIR(inode.mode) and source is not into:
                source.nlink -= 1
                into.nlink += 1
                inode.aux = into.ino
            inode.ctime = time.time_ns()
            self.fs.quotas.moved(inode, into)
            self.fs.touch(inode)

    def _note_policies(self, one: Inode, other: Inode) -> None:
        """Note that an inode has moved between two directories, so that another policy may hold for it."""
        if one is not other and self._policies(one) != self._policies(other):
            self.fs.active.unsettles = True

    def _policies(self, inode: Inode) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        with contextlib.suppress(FsError, StoreDamaged):  # no rename fails for them
            while True:
                for name in policy.NAMES:
                    value = None if name in found else self.xattrs.get(inode, name)
                    if value is not None:
                        found[name] = value
                if inode.ino == schema.ROOT_INO:
                    break
                inode = self.fs.inode(inode.aux)
        return found

    def entries(self, ino: int, after: int) -> Iterator[tuple[int, bytes, Inode | Dentry]]:
        """Yield (cookie, name, inode) of what follows the cookie `after` (0: the beginning), "." and ".." included.

        A damaged inode is replaced by its dentry.
        """
        directory = self.directory(ino)
        if not is_past(ino):
            self.fs.names_of(directory)  # proved before anything is shown
        elif ino >= PAST:
            self.fs.pasts.names(directory)
        if after < DOT:
            yield DOT, b".", directory
        if after < DOTDOT:
            yield DOTDOT, b"..", self.fs.inode(directory.aux) if directory.nlink else directory
        if is_past(ino):
            yield from self.fs.pasts.entries(directory, max(after, DOTDOT))
            return
        # A first reply of the kernel's 4 KiB holds some 25 entries; more are merged only when they are asked for.
        for cookie, key, record in self.fs.dentries(directory, max(after, DOTDOT), limit=64):
            dentry = Dentry.unpack(key, record)
            try:
                target: Inode | Dentry = self._target(dentry)
            except RecordDamaged as error:
                log.error("%s", error)
                target = dentry  # one damaged inode must not hide the rest of its directory
            yield cookie, dentry.name, target
