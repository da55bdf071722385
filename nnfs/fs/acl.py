"""POSIX ACLs as the kernel keeps them in `system.posix_acl_access` and `system.posix_acl_default`.

The value is a version (2, le32) and entries of tag, permissions (le16 each) and uid or gid (le32). The meaning of an
ACL, how it and the mode follow each other, and how it is inherited are as in the kernel's `posix_acl.c`; FUSE leaves
the inheriting to us.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
VERSION = 2
NO_ID = 0xFFFFFFFF

_ENTRY = struct.Struct("<HHI")
_VERSION = struct.pack("<I", VERSION)


class Entry(NamedTuple):
    """Permissions of one user, group or class."""

    tag: int
    perm: int
    id: int = NO_ID


def parse(value: bytes) -> tuple[Entry, ...]:
    """Parse and check an ACL; no entries at all (which removes an ACL) are allowed. Raises `ValueError`."""
    if len(value) % _ENTRY.size != len(_VERSION) or not value.startswith(_VERSION):
        raise ValueError("not an ACL of version 2")
    read = (Entry(*fields) for fields in _ENTRY.iter_unpack(value[len(_VERSION) :]))
    entries = tuple(entry if entry.tag in (USER, GROUP) else entry._replace(id=NO_ID) for entry in read)
    if entries:
        _check(entries)
    return entries


def _check(entries: Sequence[Entry]) -> None:
    """Check entries as `posix_acl_valid` does: owner, users, group, groups, mask (if any is named), others."""
    tags = [entry.tag for entry in entries]
    named = tags.count(USER) + tags.count(GROUP)
    masked = tags.count(MASK)
    order = [USER_OBJ, *[USER] * tags.count(USER), GROUP_OBJ, *[GROUP] * tags.count(GROUP), *[MASK] * masked, OTHER]
    if tags != order or masked > 1 or (named and not masked):
        raise ValueError("an ACL needs owner, group and others once, in order, and a mask when anybody is named")
    if any(entry.perm & ~0o7 or (entry.id == NO_ID and entry.tag in (USER, GROUP)) for entry in entries):
        raise ValueError("an ACL entry with unknown permissions or nobody's id")


def pack(entries: Iterable[Entry]) -> bytes:
    """Return the value of the extended attribute that holds an ACL."""
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries)


def is_equiv_mode(entries: Iterable[Entry]) -> bool:
    """Return whether nine permission bits say as much as an ACL."""
    return all(entry.tag in (USER_OBJ, GROUP_OBJ, OTHER) for entry in entries)


def acl_to_mode(entries: Iterable[Entry], mode: int) -> int:
    """Return a mode with the permission bits of an access ACL: the group's are those of the mask, if there is one."""
    perms = {entry.tag: entry.perm for entry in entries}
    if not perms:
        return mode
    return mode & ~0o777 | perms[USER_OBJ] << 6 | perms.get(MASK, perms[GROUP_OBJ]) << 3 | perms[OTHER]


def mode_to_acl(entries: Iterable[Entry], mode: int) -> tuple[Entry, ...]:
    """Return an access ACL after chmod(2): owner, others and the mask (else the group) follow the mode."""
    entries = tuple(entries)
    group = _group_class(entries)
    perms = {USER_OBJ: mode >> 6 & 0o7, group: mode >> 3 & 0o7, OTHER: mode & 0o7}
    return tuple(entry._replace(perm=perms.get(entry.tag, entry.perm)) for entry in entries)


def inherit(default: bytes, mode: int, is_dir: bool) -> tuple[int, bytes | None, bytes | None]:
    """Return the mode, access ACL and default ACL that a new file or directory gets from its directory's default ACL.

    As `posix_acl_create`: the mode that was asked for and the ACL limit each other, the umask plays no part. An access
    ACL that the mode says already is not returned. Not for symbolic links. Raises `ValueError`.
    """
    entries = parse(default)
    if not entries:
        return mode, None, None
    asked = {USER_OBJ: mode >> 6, _group_class(entries): mode >> 3, OTHER: mode}
    access = tuple(entry._replace(perm=entry.perm & asked.get(entry.tag, 0o7)) for entry in entries)
    return acl_to_mode(access, mode), None if is_equiv_mode(access) else pack(access), default if is_dir else None


def _group_class(entries: Iterable[Entry]) -> int:
    return MASK if any(entry.tag == MASK for entry in entries) else GROUP_OBJ
