"""Gives what was extracted its owner, mode, attributes, ACLs and times: as root all, without root as tar does."""

from __future__ import annotations

import functools
import grp
import os
import pwd
import stat
import time
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes as unquote

from nnfs.cli.tar import acltext, member
from nnfs.cli.tar.export import OWN_XATTRS, VIRTUAL
from nnfs.cli.tar.member import SECOND, Member
from nnfs.constants import TIMES

_ACLS = {member.ACCESS: "system.posix_acl_access", member.DEFAULT: "system.posix_acl_default"}
_ENCODED = b"LIBARCHIVE.xattr."  # bsdtar writes each attribute twice


@dataclass(frozen=True)
class Rights:
    """The rights of the user who extracts. `umask` holds without root; `numeric`: names of owners do not count."""

    root: bool
    umask: int
    numeric: bool

    def owner(self, one: Member) -> tuple[int, int]:
        """Return the numbers of a member's user and group on this machine."""
        user = None if self.numeric else _uid(one.user)
        group = None if self.numeric else _gid(one.group)
        return one.uid if user is None else user, one.gid if group is None else group

    def mode(self, one: Member) -> int:
        """Return the permissions that a member gets."""
        return one.mode & 0o7777 if self.root else one.mode & 0o777 & ~self.umask

    def apply(self, one: Member, where: int | bytes, inherited: bool) -> list[str]:
        """Set everything on a descriptor, or on a path whose last link is not followed. Return what could not be set.

        `inherited`: the directory has a default ACL, so there may be an ACL that the member does not have.
        """
        is_link = one.kind == member.SYMLINK
        follow = isinstance(where, int)
        if self.root:
            os.chown(where, *self.owner(one), follow_symlinks=follow)
        if not is_link:
            os.chmod(where, self.mode(one))
        faults = [fault for name, value in self._xattrs(one) if (fault := _set(where, name, value, follow))]
        faults += [] if is_link else self._acls(one, where, follow, inherited)
        return faults + _set_times(one, where, follow)

    def _xattrs(self, one: Member) -> list[tuple[bytes, bytes]]:
        return [
            (name, value)
            for name, value in _decoded(one).items()
            if (self.root or name.startswith(b"user."))
            and (name in OWN_XATTRS or not name.startswith(VIRTUAL))
            and not name.startswith((b"system.posix_acl_", b"security.selinux"))
        ]

    def _acls(self, one: Member, where: int | bytes, follow: bool, inherited: bool) -> list[str]:
        faults = []
        for key, name in _ACLS.items():
            if key in one.records:
                try:
                    value = acltext.value_of(one.records[key], self._user, self._group)
                except ValueError as error:
                    faults.append(str(error))
                    continue
                faults += [fault for fault in [_set(where, os.fsencode(name), value, follow)] if fault]
            elif inherited and (key == member.ACCESS or one.kind == member.DIRECTORY):
                os.removexattr(where, name, follow_symlinks=follow)
        return faults

    def _user(self, name: bytes) -> int | None:
        return None if self.numeric else _uid(name)

    def _group(self, name: bytes) -> int | None:
        return None if self.numeric else _gid(name)


def _decoded(one: Member) -> dict[bytes, bytes]:
    """Return the attributes of a member. GNU tar quotes two characters of a name, bsdtar many."""
    if any(key.startswith(_ENCODED) for key in one.records):
        start = len(member.XATTR)
        return {unquote(key[start:]): value for key, value in one.records.items() if key.startswith(member.XATTR)}
    return one.xattrs


def _set(where: int | bytes, name: bytes, value: bytes, follow: bool) -> str:
    """Set an attribute. Return why it could not be set, "" if it was."""
    try:
        os.setxattr(where, name, value, follow_symlinks=follow)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        return f"the attribute {name.decode(errors='backslashreplace')} could not be set: {why}"
    return ""


def _set_times(one: Member, where: int | bytes, follow: bool) -> list[str]:
    """Set atime and mtime, now for what the member has not. Return which of them the filesystem cannot keep."""
    now = time.time_ns()
    wanted = {"atime": now if one.atime is None else one.atime, "mtime": one.mtime}
    faults = [
        f"its {name} could not be set: {ns // SECOND} s since 1970 is not within the years 1678 to 2261"
        for name, ns in wanted.items()
        if ns not in TIMES
    ]
    atime, mtime = (ns if ns in TIMES else now for ns in wanted.values())
    os.utime(where, ns=(atime, mtime), follow_symlinks=follow)
    return faults


def has_default_acl(folder: int) -> bool:
    """Return whether what is made in a directory inherits an ACL."""
    try:
        return bool(os.getxattr(folder, _ACLS[member.DEFAULT]))
    except OSError:
        return False


def is_directory(name: bytes, folder: int) -> bool:
    """Return whether a name is that of a directory."""
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


@functools.lru_cache
def _uid(name: bytes) -> int | None:
    try:
        return pwd.getpwnam(os.fsdecode(name)).pw_uid if name else None
    except (KeyError, ValueError):
        return None


@functools.lru_cache
def _gid(name: bytes) -> int | None:
    try:
        return grp.getgrnam(os.fsdecode(name)).gr_gid if name else None
    except (KeyError, ValueError):
        return None
