"""Extended attributes and attribute changes: ACLs and mode bits are two views of one thing and change together."""

from __future__ import annotations

import errno
import os
import stat
import time

from nnfs.constants import VIRTUAL_XATTRS
from nnfs.errors import FsError, RecordDamaged, UsageError
from nnfs.fs import acl, policy
from nnfs.fs.filesystem import Filesystem
from nnfs.store import schema, sealing
from nnfs.store.moments import PAST
from nnfs.store.schema import Inode

ACL_ACCESS = b"system.posix_acl_access"
ACL_DEFAULT = b"system.posix_acl_default"
VIRTUAL = os.fsencode(VIRTUAL_XATTRS)
_NAMESPACES = (b"user.", b"trusted.", b"security.", b"system.posix_acl_")


class Xattrs:
    """Stored attributes of inodes. Computed ones (`user.nnfs.*`) belong to the mount and never come here."""

    def __init__(self, fs: Filesystem) -> None:
        self.fs = fs

    def get(self, inode: Inode, name: bytes) -> bytes | None:
        """Return a value, or None when the inode provably lacks it."""
        if not inode.xattrs:
            return None  # the kernel asks for security.capability all the time: this answers it at once
        if inode.ino >= PAST:
            return self.fs.pasts.xattr(inode, name)
        record = self._record(inode, name)
        if record is None:
            return None
        return schema.unpack_xattr(schema.KEY.pack(inode.ino) + name, record)

    def _record(self, inode: Inode, name: bytes) -> bytes | None:
        """Return the sealed record of an inode that has attributes, None when it provably lacks this one."""
        for epoch in (self.fs.active, self.fs.frozen):
            if epoch is not None:
                names = epoch.xattrs.get(inode.ino)
                if names is not None and name in names:
                    return names[name]
        record = self.fs.snapshot.get("xattr", schema.KEY.pack(inode.ino) + name)
        if record is None:
            for _ in self.fs.proved_records(inode.ino, "xattr"):  # raises at its end
                pass
        return record

    def names(self, inode: Inode) -> list[bytes]:
        """Return the names of all stored attributes, sorted."""
        if not inode.xattrs:
            return []
        if inode.ino >= PAST:
            return self.fs.pasts.xattrs(inode)
        names = {key[8:]: True for key, _ in self.fs.proved_records(inode.ino, "xattr")}
        for epoch in (self.fs.frozen, self.fs.active):
            if epoch is not None:
                names.update((name, record is not None) for name, record in epoch.xattrs.get(inode.ino, {}).items())
        return sorted(name for name, present in names.items() if present)

    def put(self, inode: Inode, name: bytes, value: bytes | None) -> None:
        """Store a value (None removes it), without the meanings that `set` knows."""
        key = schema.KEY.pack(inode.ino) + name
        old = self._record(inode, name) if inode.xattrs else None
        new = None if value is None else schema.pack_xattr(key, value, self.fs.active.commit)
        self.fs.active.xattrs.setdefault(inode.ino, {})[name] = new
        self.fs.active.xattr_bytes += len(new or b"") + len(key)
        change = (sealing.checksum_of(new) if new else 0) - (sealing.checksum_of(old) if old else 0)
        inode.xattrs = (inode.xattrs + change) % (1 << 64)
        inode.ctime = time.time_ns()
        self.fs.touch(inode)

    def set(self, inode: Inode, name: bytes, value: bytes, *, keep_setgid: bool = True) -> None:
        """Set an attribute as setxattr(2). An access ACL changes the mode, and is stored only if it says more.

        Raises `FsError`: EOPNOTSUPP for unknown namespaces, EPERM for computed names, EINVAL for a malformed ACL.
        """
        if name in policy.NAMES:
            self._check_policy(inode, name, value)
        elif name.startswith(VIRTUAL):
            raise FsError(errno.EPERM)
        if not name.startswith(_NAMESPACES):
            raise FsError(errno.EOPNOTSUPP)
        if name in _NAMESPACES:
            raise FsError(errno.EINVAL)  # nothing behind the dot
        if name == ACL_DEFAULT and not stat.S_ISDIR(inode.mode):
            raise FsError(errno.EACCES)
        if name in (ACL_ACCESS, ACL_DEFAULT):
            try:
                entries = acl.parse(value)
            except ValueError as error:
                raise FsError(errno.EINVAL) from error
            self.get(inode, name)  # if this fails, it fails before anything is changed
            if name == ACL_ACCESS:
                mode = acl.acl_to_mode(entries, inode.mode)
                inode.mode = mode if keep_setgid else mode & ~stat.S_ISGID
            if not entries or (name == ACL_ACCESS and acl.is_equiv_mode(entries)):
                self._drop(inode, name)
                return
        self.put(inode, name, value)

    def _check_policy(self, inode: Inode, name: bytes, value: bytes) -> None:
        if not stat.S_ISDIR(inode.mode) and not stat.S_ISREG(inode.mode):
            raise FsError(errno.EPERM)
        try:
            policy.check(name, value)
        except UsageError as error:
            raise FsError(errno.EINVAL) from error
        if not self._has(inode, name, value):
            self.fs.active.unsettles = True

    def _has(self, inode: Inode, name: bytes, value: bytes) -> bool:
        """Return whether an attribute has this value already. A damaged attribute has not."""
        try:
            record = self._record(inode, name) if inode.xattrs else None
            return record is not None and schema.unpack_xattr(schema.KEY.pack(inode.ino) + name, record) == value
        except RecordDamaged:
            return False

    def remove(self, inode: Inode, name: bytes) -> None:
        """Remove an attribute as removexattr(2). Raises `FsError(ENODATA)`, but not for ACLs, which may be missing."""
        if name in policy.NAMES:
            self.fs.active.unsettles = True
        elif name.startswith(VIRTUAL):
            raise FsError(errno.EPERM)
        if name in (ACL_ACCESS, ACL_DEFAULT):
            self._drop(inode, name)
            return
        if self.get(inode, name) is None:
            raise FsError(errno.ENODATA)
        self.put(inode, name, None)

    def _drop(self, inode: Inode, name: bytes) -> None:
        if self.get(inode, name) is not None:
            self.put(inode, name, None)
        inode.ctime = time.time_ns()
        self.fs.touch(inode)

    def chmod(self, inode: Inode, mode: int) -> None:
        """Change the permission bits, and the ACL with them."""
        access = self.get(inode, ACL_ACCESS)  # first: it may fail
        inode.mode = stat.S_IFMT(inode.mode) | (mode & 0o7777)
        if access is not None:
            self.put(inode, ACL_ACCESS, acl.pack(acl.mode_to_acl(acl.parse(access), inode.mode)))
