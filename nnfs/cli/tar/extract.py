"""Extracts an archive into a directory. A name appears when its content is whole and has its fingerprint."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable

from nnfs.cli.tar import member
from nnfs.cli.tar.fingerprint import Passing
from nnfs.cli.tar.folders import Folders, Parts, parts_of
from nnfs.cli.tar.member import Member
from nnfs.cli.tar.reader import Reader
from nnfs.cli.tar.report import Report
from nnfs.cli.tar.restore import Rights, has_default_acl, is_directory
from nnfs.errors import ArchiveDamaged, OutOfSpace
from nnfs.proof import MAX_CHUNKS

PIECE = 1 << 20
WRONG = "its content does not have the fingerprint of the archive"
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK_SIZES = range(1 << 9, (1 << 24) + 1)


class Importer:
    """Extracts the members of one archive below the directory `top`."""

    def __init__(self, reader: Reader, top: int, rights: Rights) -> None:
        self._reader, self._rights = reader, rights
        self._folders = Folders(top, 0o777 & ~rights.umask)
        self._directories: dict[Parts, tuple[Member, bool]] = {}
        self._refused: set[Parts] = set()
        self._make: dict[bytes, Callable[[Member, Parts], bool]] = {
            member.FILE: self._file, member.HARD_LINK: self._hard_link, member.DIRECTORY: self._directory,
            **dict.fromkeys((member.SYMLINK, member.CHAR, member.DEVICE, member.FIFO), self._other),
        }  # fmt: skip
        self.report = Report()

    def run(self) -> Report:
        """Extract everything. Faults of a member are noted; a full disk is raised."""
        try:
            try:
                for one in self._reader.members():
                    self._pass(one)
            except ArchiveDamaged as error:
                self.report.fail(b"the archive", error)
            self._finish()
        finally:
            self._folders.forget()
        self.report.archive_bytes = self._reader.position
        return self.report

    def _pass(self, one: Member) -> None:
        try:
            make = self._make.get(one.kind)
            if make is None:
                self.report.skip(one.name, f"members of the kind {one.kind!r} are not known")
                return
            parts = parts_of(one.name)
            self._refused.add(parts)  # a link to it must not find what had the name before
            if make(one, parts):
                self._refused.discard(parts)
                if one.kind != member.DIRECTORY:
                    self._directories.pop(parts, None)  # an empty one that has just been replaced
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OutOfSpace(
                    f"no space left for {os.fsdecode(one.name)!r}: what came before it is there"
                ) from error
            if error.errno == errno.EROFS:
                raise
            self.report.fail(one.name, error)
        except (OverflowError, ValueError) as error:
            self.report.fail(one.name, f"a value of its header is out of range: {error}")

    def _file(self, one: Member, parts: Parts) -> bool:
        folder, name = self._place_of(parts)
        passing, fault = self._prover(one)
        partial = _partial()
        descriptor = os.open(partial, _NEW, 0o600, dir_fd=folder)
        try:
            try:
                if not fault:
                    self._content(one, descriptor, passing)
                if passing is not None and passing.digest().hex().encode() != one.records[member.FINGERPRINT]:
                    fault = WRONG
                if not fault:
                    self._note(one, self._rights.apply(one, descriptor, has_default_acl(folder)))
            finally:
                os.close(descriptor)  # writes back, and tells if that fails
            if fault:
                os.unlink(partial, dir_fd=folder)
                self.report.fail(one.name, fault, ArchiveDamaged.exit_code)
                return False
            self._name(partial, name, folder)
        except BaseException:
            _remove(partial, folder)
            raise
        self.report.files += 1
        self.report.plain_bytes += one.size
        return True

    def _prover(self, one: Member) -> tuple[Passing | None, str]:
        """Return what computes the fingerprint, None if the archive has none, and why it cannot be computed."""
        if member.FINGERPRINT not in one.records:
            return None, ""
        text = one.records.get(member.CHUNK_SIZE, b"")
        size = int(text) if text.isdigit() and len(text) < 10 else 0
        if size not in _CHUNK_SIZES or size & (size - 1) or one.size > MAX_CHUNKS * size:
            return None, "its fingerprint cannot be checked: no such size of chunks"
        return Passing(size, one.size), ""

    def _content(self, one: Member, descriptor: int, passing: Passing | None) -> None:
        extents = [(0, one.size)] if one.extents is None else one.extents
        position = 0
        for offset, length in extents:
            if passing is not None:
                passing.skip(offset - position)
            position, end = offset, offset + length
            while position < end:
                data = self._reader.read(min(PIECE, end - position))
                if passing is not None:
                    passing.update(data)
                _write(descriptor, data, position)
                position += len(data)
        if passing is not None:
            passing.skip(one.size - position)
        os.ftruncate(descriptor, one.size)

    def _hard_link(self, one: Member, parts: Parts) -> bool:
        source = parts_of(one.link)
        if source in self._refused or not source:
            self.report.fail(one.name, f"it is a link to {os.fsdecode(one.link)!r}, which was not extracted")
            return False
        there = os.dup(self._folders.open(source[:-1], make=False))
        try:
            folder, name = self._place_of(parts)
            partial = _partial()
            os.link(source[-1], partial, src_dir_fd=there, dst_dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(there)
        try:
            self._name(partial, name, folder)
        finally:
            _remove(partial, folder)  # rename(2) leaves two names of one file as they are
        self.report.hard_links += 1
        return True

    def _directory(self, one: Member, parts: Parts) -> bool:
        inherited = False
        if parts:
            folder, name = self._place_of(parts)
            if not is_directory(name, folder):
                _remove(name, folder)
                os.mkdir(name, 0o700, dir_fd=folder)
            inherited = has_default_acl(folder)
        self._directories[parts] = one, inherited
        self.report.directories += 1
        return True

    def _other(self, one: Member, parts: Parts) -> bool:
        """Make a symbolic link, a device or a fifo."""
        if one.kind in (member.CHAR, member.DEVICE) and not self._rights.root:
            self.report.skip(one.name, "only root makes devices")
            return False
        folder, name = self._place_of(parts)
        partial = _partial()
        try:
            if one.kind == member.SYMLINK:
                os.symlink(one.link, partial, dir_fd=folder)
            else:
                kind = {member.CHAR: 0o020000, member.DEVICE: 0o060000, member.FIFO: 0o010000}[one.kind]
                os.mknod(partial, kind | 0o600, os.makedev(*one.device), dir_fd=folder)
            path = b"/proc/self/fd/%d/%s" % (folder, partial)
            self._note(one, self._rights.apply(one, path, has_default_acl(folder)))
            self._name(partial, name, folder)
        except BaseException:
            _remove(partial, folder)
            raise
        self.report.others += 1
        return True

    def _place_of(self, parts: Parts) -> tuple[int, bytes]:
        if not parts:
            raise OSError(errno.EISDIR, "refused: its name is that of the directory itself")
        return self._folders.open(parts[:-1]), parts[-1]

    def _name(self, partial: bytes, name: bytes, folder: int) -> None:
        """Give a new file its name; the one that has it goes, as long as that is no directory with content."""
        try:
            os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
        except IsADirectoryError:
            os.rmdir(name, dir_fd=folder)
            os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)

    def _note(self, one: Member, faults: list[str]) -> None:
        for fault in faults:
            self.report.fail(one.name, fault)

    def _finish(self) -> None:
        """Give directories what their content would have changed: deepest first."""
        for parts, (one, inherited) in sorted(self._directories.items(), key=lambda item: (-len(item[0]), item[0])):
            try:
                self._note(one, self._rights.apply(one, self._folders.open(parts, make=False), inherited))
            except OSError as error:
                self.report.fail(one.name, error)
            except (OverflowError, ValueError) as error:
                self.report.fail(one.name, f"a value of its header is out of range: {error}")


def _partial() -> bytes:
    return b".nnfs-import-%s" % secrets.token_hex(8).encode()


def _remove(name: bytes, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass


def _write(descriptor: int, data: bytes, position: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], position + done)
