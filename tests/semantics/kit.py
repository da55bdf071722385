"""Small tools for the semantics tests: system calls that Python lacks, other users, ACLs as the kernel reads them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tests.harness import libc

T = TypeVar("T")
AT_FDCWD = -100
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
ALICE, BOB, CREW = 12001, 12002, 12100  # numbers that no machine gives to a person
CHUNK = 16384  # of the module's mount
NS = 10**9

libc.telldir.restype = ctypes.c_long
libc.telldir.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
libc.opendir.restype = ctypes.c_void_p
libc.opendir.argtypes = [ctypes.c_char_p]
libc.closedir.argtypes = [ctypes.c_void_p]
libc.rewinddir.argtypes = [ctypes.c_void_p]
libc.readdir.restype = ctypes.c_void_p
libc.readdir.argtypes = [ctypes.c_void_p]
libc.mknod.argtypes = [ctypes.c_char_p, ctypes.c_uint, ctypes.c_ulong]
libc.utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int]


def checked(code: int) -> int:
    """OSError when a call through ctypes failed."""
    if code == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return code


def make(path: Path, kind: str) -> int:
    """Make a file, dir, symlink or fifo; return its inode number."""
    if kind == "file":
        path.write_bytes(b"content of " + path.name.encode())
    elif kind == "dir":
        path.mkdir()
    elif kind == "symlink":
        path.symlink_to("t")
    else:
        os.mkfifo(path)
    return path.lstat().st_ino


@contextlib.contextmanager
def fails(*codes: int) -> Iterator[None]:
    """The block raises OSError with one of *codes*."""
    names = "/".join(errno.errorcode[c] for c in codes)
    try:
        yield
    except OSError as e:
        assert e.errno in codes, f"{errno.errorcode.get(e.errno or 0, e.errno)}, not {names}"
    else:
        raise AssertionError(f"succeeded, expected {names}")


def renameat2(old: Path | bytes, new: Path | bytes, flags: int) -> None:
    """renameat2(2) on whole paths."""
    checked(libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def utimensat(path: Path, atime: tuple[int, int], mtime: tuple[int, int], follow: bool = True) -> None:
    """utimensat(2) with raw (seconds, nanoseconds), so that UTIME_NOW and UTIME_OMIT can be given."""
    times = (ctypes.c_long * 4)(*atime, *mtime)
    checked(libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0 if follow else 0x100))


UTIME_NOW, UTIME_OMIT = (0, (1 << 30) - 1), (0, (1 << 30) - 2)


class Dir:
    """opendir(3) with its cookies."""

    def __init__(self, path: Path) -> None:
        self._dir = libc.opendir(os.fsencode(path))
        if not self._dir:
            checked(-1)

    def read(self) -> bytes | None:
        """The next name, None at the end."""
        ctypes.set_errno(0)
        entry = libc.readdir(self._dir)
        if not entry:
            if ctypes.get_errno():
                checked(-1)
            return None
        return ctypes.string_at(entry + 19)  # struct dirent: ino 8, off 8, reclen 2, type 1, name

    def rest(self) -> list[bytes]:
        """All further names without the two dots."""
        return [name for name in iter(self.read, None) if name not in (b".", b"..")]

    def tell(self) -> int:
        """telldir(3)."""
        return int(libc.telldir(self._dir))

    def seek(self, cookie: int) -> None:
        """seekdir(3)."""
        libc.seekdir(self._dir, cookie)

    def rewind(self) -> None:
        """rewinddir(3)."""
        libc.rewinddir(self._dir)

    def __enter__(self) -> Dir:
        return self

    def __exit__(self, *_: object) -> None:
        libc.closedir(self._dir)


def in_child(run: Callable[[], T]) -> T:
    """Run in a forked child; its result or exception comes back."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            try:
                answer: tuple[bool, object] = (True, run())
            except BaseException as e:  # noqa: BLE001 - handed to the parent, whatever it is
                answer = (False, e)
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(answer, pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0, "the child died"
    fine, value = pickle.loads(data)
    if not fine:
        raise value
    return value  # type: ignore[no-any-return]


def as_user(uid: int, run: Callable[[], T], gid: int | None = None, groups: tuple[int, ...] = ()) -> T:
    """Run in a child that has become *uid* for good, without any capability."""

    def become() -> T:
        os.setgroups(groups)
        os.setgid(uid if gid is None else gid)
        os.setuid(uid)
        return run()

    return in_child(become)


def acl(
    user: int,
    group: int,
    other: int,
    mask: int | None = None,
    users: dict[int, int] | None = None,
    groups: dict[int, int] | None = None,
) -> bytes:
    """The value of system.posix_acl_*: version 2, entries of tag, permissions, id, sorted as the kernel wants."""
    entries = [(0x01, user, 0xFFFFFFFF)]
    entries += [(0x02, perm, uid) for uid, perm in sorted((users or {}).items())]
    entries += [(0x04, group, 0xFFFFFFFF)]
    entries += [(0x08, perm, gid) for gid, perm in sorted((groups or {}).items())]
    if mask is not None:
        entries += [(0x10, mask, 0xFFFFFFFF)]
    entries += [(0x20, other, 0xFFFFFFFF)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def capability() -> bytes:
    """security.capability, revision 2: cap_net_bind_service permitted and effective."""
    return struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


def mode(path: Path | int) -> int:
    """The permission bits."""
    return (os.fstat(path) if isinstance(path, int) else os.lstat(path)).st_mode & 0o7777


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes that tell every offset of a file from its neighbours and from those one chunk away."""
    words = (seed * 2654435761 + i * 40503 for i in range(size // 4 + 1))
    return b"".join(struct.pack("<I", w & 0xFFFFFFFF) for w in words)[:size]


def pwrite(path: Path, data: bytes, offset: int) -> None:
    """Write into an existing file."""
    fd = os.open(path, os.O_WRONLY)
    try:
        assert os.pwrite(fd, data, offset) == len(data)
    finally:
        os.close(fd)


def owned(path: Path, uid: int, gid: int, bits: int) -> Path:
    """A file with this owner and mode."""
    path.write_bytes(b"content of some length")
    os.chown(path, uid, gid)
    os.chmod(path, bits)
    return path


def can(uid: int, path: Path, groups: tuple[int, ...] = ()) -> str:
    """Return the access that *uid* really has to a file: some of "rw"."""

    def run() -> str:
        found = ""
        for letter, flag, bit in (("r", os.O_RDONLY, os.R_OK), ("w", os.O_WRONLY, os.W_OK)):
            try:
                os.close(os.open(path, flag))
            except PermissionError:
                assert not os.access(path, bit)
            else:
                assert os.access(path, bit)
                found += letter
        return found

    return as_user(uid, run, groups=groups)
