"""Writes a tree of a mount into an archive. Content is read once; holes are not read, the daemon knows them."""

from __future__ import annotations

import errno
import functools
import grp
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path

from nnfs.cli.tar import acltext, member, walk
from nnfs.cli.tar.fingerprint import Passing
from nnfs.cli.tar.member import Extents, Member
from nnfs.cli.tar.output import Output
from nnfs.cli.tar.report import Report
from nnfs.cli.tar.walk import Found
from nnfs.constants import MODEL_XATTR, POLICY_XATTR, VIRTUAL_XATTRS
from nnfs.errors import NnfsError
from nnfs.proof import MAX_CHUNKS

PIECE = 1 << 20  # bytes that are read at a time; a smaller file is read before its header is written
TRIES = 4  # while a file changes

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ACLS = {b"system.posix_acl_access": member.ACCESS, b"system.posix_acl_default": member.DEFAULT}
OWN_XATTRS = (os.fsencode(POLICY_XATTR), os.fsencode(MODEL_XATTR))
VIRTUAL = os.fsencode(VIRTUAL_XATTRS)
_FINGERPRINT = VIRTUAL_XATTRS + "fingerprint"
_KINDS = {
    stat.S_IFREG: member.FILE, stat.S_IFLNK: member.SYMLINK, stat.S_IFCHR: member.CHAR, stat.S_IFBLK: member.DEVICE,
    stat.S_IFDIR: member.DIRECTORY, stat.S_IFIFO: member.FIFO,
}  # fmt: skip

Ask = Callable[[int], Extents]  # the extents of an inode


class Exporter:
    """Writes the members of one tree. `ask` tells the extents of a file, `done` is told the bytes that are through."""

    def __init__(self, out: Output, chunk_size: int, ask: Ask, done: Callable[[int], None]) -> None:
        self._out, self._chunk_size, self._ask, self._done = out, chunk_size, ask, done
        self._links: dict[tuple[int, int], bytes] = {}  # names of files with several, by device and inode
        target = os.fstat(out.descriptor)
        self._target = target.st_dev, target.st_ino
        self.report = Report()

    def run(self, top: Path) -> Report:
        """Write a directory and all below it, or one file, and the end of the archive."""
        walk.allow_depth()
        where = os.fsencode(top)
        status = os.lstat(where)
        if stat.S_ISDIR(status.st_mode):
            folder = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._pass(Found(b".", folder, b".", status))
            found = walk.walk(folder, self.report)
        else:
            folder = os.open(os.path.dirname(where), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            name = os.path.basename(where)
            found = iter([Found(name, folder, name, status)])
        try:
            for one in found:
                self._pass(one)
        finally:
            os.close(folder)
        self._out.end()
        self.report.archive_bytes = self._out.position
        return self.report

    def _pass(self, found: Found) -> None:
        """Write a member, or note why not. Raises only what the archive itself meets."""
        before = self._out.position
        try:
            self._write(found)
        except (OSError, NnfsError) as error:
            if self._out.failed or not self._out.take_back(before):
                raise
            if isinstance(error, FileNotFoundError):
                self.report.skip(found.path, "it was removed meanwhile")
            else:
                self.report.fail(found.path, error)

    def _write(self, found: Found) -> None:
        status = found.status
        kind = stat.S_IFMT(status.st_mode)
        if (status.st_dev, status.st_ino) == self._target:
            self.report.skip(found.path, "it is the archive itself")
            return
        if kind not in _KINDS:
            self.report.skip(found.path, "archives have no sockets")
            return
        one = described(found, _KINDS[kind])
        key = status.st_dev, status.st_ino
        if key in self._links:
            one.kind, one.link = member.HARD_LINK, self._links[key]
            self._out.write(member.encode(one))
            self.report.hard_links += 1
            return
        if kind == stat.S_IFREG:
            self._file(found, one)
        else:
            one.link = os.readlink(found.name, dir_fd=found.folder) if kind == stat.S_IFLNK else b""
            add_attributes(one, found.by_descriptor)
            self._out.write(member.encode(one))
            is_directory = kind == stat.S_IFDIR
            self.report.directories += is_directory
            self.report.others += not is_directory
        if status.st_nlink > 1 and kind != stat.S_IFDIR:
            self._links[key] = one.name

    def _file(self, found: Found, one: Member) -> None:
        """Write a file. One that is changed meanwhile is written again, as long as that can be taken back."""
        descriptor = walk.quietly_open(found.name, _READ, found.folder)
        before = self._out.position
        try:
            for attempt in range(TRIES):
                one = described(Found(found.path, found.folder, found.name, os.fstat(descriptor)), member.FILE)
                add_attributes(one, descriptor)
                self._holes(one, descriptor)
                if attempt < TRIES - 1:
                    self._prove(one, descriptor)
                if self._content(one, descriptor):
                    break
                if not self._out.take_back(before):
                    self.report.fail(found.path, "it was changed while it was read, and the archive is a stream")
                    break
                os.fsync(descriptor)  # what the kernel alone has cannot be in the fingerprint
            if member.FINGERPRINT not in one.records and one.size <= MAX_CHUNKS * self._chunk_size:
                self.report.fail(found.path, "it was changed while it was read, and has no fingerprint")
        finally:
            os.close(descriptor)
        self.report.files += 1
        self.report.plain_bytes += one.size

    def _holes(self, one: Member, descriptor: int) -> None:
        """Find out where a file has content, if it has holes."""
        status = os.fstat(descriptor)
        if not one.size or (one.size <= self._chunk_size and status.st_blocks):
            return
        extents = self._ask(status.st_ino) if status.st_blocks else []
        extents = [(offset, min(length, one.size - offset)) for offset, length in extents if offset < one.size]
        if sum(length for _, length in extents) == one.size:
            return
        if not extents or sum(extents[-1]) < one.size:
            extents.append((one.size, 0))  # GNU tar marks the end of a file that ends with a hole so
        one.extents = extents

    def _prove(self, one: Member, descriptor: int) -> None:
        if one.size <= MAX_CHUNKS * self._chunk_size:
            one.records[member.FINGERPRINT] = os.getxattr(descriptor, _FINGERPRINT)
            one.records[member.CHUNK_SIZE] = b"%d" % self._chunk_size

    def _content(self, one: Member, descriptor: int) -> bool:
        """Write headers and content of a file. Return whether the content has the fingerprint, if there is one."""
        start = self._out.position
        extents = [(0, one.size)] if one.extents is None else one.extents
        one.stored = sum(length for _, length in extents)
        small = os.pread(descriptor, one.stored, 0) if one.extents is None and one.size <= PIECE else None
        self._out.write(member.encode(one))
        end = self._out.position + sum(length for _, length in extents)
        passing = Passing(self._chunk_size, one.size) if member.FINGERPRINT in one.records else None
        try:
            is_whole = self._copy(one, descriptor, extents, passing, small)
        except OSError as error:
            if self._out.failed or self._out.take_back(start):
                raise
            self.report.fail(one.name, error)  # a stream gets zeros in its place, which have another fingerprint
            is_whole = True
            passing = None
        self._fill(end)
        self._out.pad()
        fits = passing is None or passing.digest().hex().encode() == one.records[member.FINGERPRINT]
        return is_whole and fits

    def _copy(
        self, one: Member, descriptor: int, extents: Extents, passing: Passing | None, small: bytes | None
    ) -> bool:
        """Copy the content of a file into the archive. Return False for a file that ends before its size."""
        position = 0
        for offset, length in extents:
            if passing is not None:
                passing.skip(offset - position)
            self._done(offset - position)
            position = offset
            while position < offset + length:
                wanted = min(PIECE, offset + length - position)
                data = os.pread(descriptor, wanted, position) if small is None else small
                if not data:
                    return False
                self._out.write(data)
                if passing is not None:
                    passing.update(data)
                self._done(len(data))
                position += len(data)
        return True

    def _fill(self, end: int) -> None:
        while self._out.position < end:
            self._out.write(bytes(min(PIECE, end - self._out.position)))


def described(found: Found, kind: bytes) -> Member:
    """Return the member for something that was found, without attributes and content."""
    status = found.status
    return Member(
        name=found.path + (b"/" if kind == member.DIRECTORY else b""),
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        user=_user(status.st_uid),
        group=_group(status.st_gid),
        size=status.st_size if kind == member.FILE else 0,
        mtime=status.st_mtime_ns,
        atime=status.st_atime_ns,
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if kind in (member.CHAR, member.DEVICE) else (0, 0),
    )


def add_attributes(one: Member, where: int | bytes) -> None:
    """Add extended attributes and ACLs, as records."""
    xattrs = {}
    follow = isinstance(where, int)
    for text in os.listxattr(where, follow_symlinks=follow):
        name = os.fsencode(text)
        if name.startswith(VIRTUAL) and name not in OWN_XATTRS:
            continue
        try:
            value = os.getxattr(where, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno == errno.ENODATA:
                continue  # it was removed meanwhile
            raise
        if name in _ACLS:
            one.records[_ACLS[name]] = acltext.text_of(value)
        else:
            xattrs[name] = value
    one.xattrs = xattrs


@functools.lru_cache
def _user(number: int) -> bytes:
    try:
        return os.fsencode(pwd.getpwuid(number).pw_name)
    except KeyError:
        return b""


@functools.lru_cache
def _group(number: int) -> bytes:
    try:
        return os.fsencode(grp.getgrgid(number).gr_name)
    except KeyError:
        return b""
