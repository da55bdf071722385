"""The inode of a statfs(2) request, which pyfuse3 drops: in a directory with a quota, df shows the limit.

pyfuse3 gives libfuse a table of functions by `fuse_session_new`. The address of that function in the linkage table of
pyfuse3's module (ELF, 64 bits) is replaced for one call; what is called instead puts a function of ours, which notes
the inode, before the one function of the table that answers statfs. Where this fails, df shows the whole store.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyfuse3

from nnfs.constants import ROOT_INO

log = logging.getLogger(__name__)

FUNCTION = b"fuse_session_new"
STATFS_AT = 24 * 8  # bytes: its place in fuse_lowlevel_ops, whose order libfuse 3 never changes
PT_DYNAMIC = 2
DT_PLTRELSZ, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_JMPREL = 2, 5, 6, 7, 8, 23
RELOCATION, SYMBOL = 24, 24  # bytes of Elf64_Rela and Elf64_Sym

_SESSION_NEW = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
_STATFS = (None, ctypes.c_void_p, ctypes.c_uint64)


class _Noted:
    """The inode of the request that is being answered, and what must stay in memory for that."""

    ino = ROOT_INO
    kept: tuple[Any, ...] = ()


def requested() -> int:
    """Return the inode of the statfs request that has just begun; the root where it is not known."""
    return _Noted.ino


def install() -> bool:
    """Have the next `pyfuse3.init` note the inodes of statfs requests. Return whether it will."""
    try:
        place = _linkage(pyfuse3.__file__ or "", FUNCTION)
        if place is None:
            raise OSError(f"pyfuse3 does not link to {FUNCTION.decode()}")
        _make_writable(place)
    except (OSError, ValueError, StopIteration) as error:
        log.info("df shows no quotas: %s", error)
        return False
    entry = ctypes.c_uint64.from_address(place)
    # The GIL is held: libfuse calls pyfuse3 that way.
    original = ctypes.PYFUNCTYPE(*_SESSION_NEW)(entry.value)

    before = entry.value

    def session_new(args: int, table: int, size: int, data: int) -> Any:
        entry.value = before
        return original(args, _with_note(table, size), size, data)

    entry.value = _address(ctypes.CFUNCTYPE(*_SESSION_NEW)(session_new))
    _Noted.kept = (*_Noted.kept, original)
    return True


def _address(function: Any) -> int:
    """Return the address of a function for C, which stays valid."""
    _Noted.kept = (*_Noted.kept, function)
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _with_note(table: int, size: int) -> Any:
    """Return a copy of pyfuse3's table of functions, in which that for statfs notes the inode."""
    copy = ctypes.create_string_buffer(ctypes.string_at(table, size), size)
    if size < STATFS_AT + 8:
        return copy
    entry = ctypes.c_uint64.from_buffer(copy, STATFS_AT)
    answer = ctypes.PYFUNCTYPE(*_STATFS)(entry.value)

    def noting(request: int, ino: int) -> None:
        _Noted.ino = ino
        answer(request, ino)

    entry.value = _address(ctypes.CFUNCTYPE(*_STATFS)(noting))
    _Noted.kept = (*_Noted.kept, answer, copy)
    return copy


def _u64(address: int) -> int:
    return int(ctypes.c_uint64.from_address(address).value)


def _linkage(file: str, name: bytes) -> int | None:
    """Return the address at which a loaded module keeps the address of a function of another library."""
    if sys.byteorder != "little" or ctypes.sizeof(ctypes.c_void_p) != 8:
        raise OSError("not a machine of 64 bits, little-endian")
    base = next(start for start, offset, path in _mappings() if path == file and offset == 0)
    if ctypes.string_at(base, 5) != b"\x7fELF\x02":
        raise OSError(f"{file} is no ELF module of 64 bits")
    dynamic = dict(_dynamic(base))

    def at(tag: int) -> int:
        value = dynamic.get(tag, 0)
        return value if value >= base else base + value  # the loader may have made it an address

    for table, size in ((DT_JMPREL, DT_PLTRELSZ), (DT_RELA, DT_RELASZ)):
        for place in range(at(table), at(table) + dynamic.get(size, 0), RELOCATION) if table in dynamic else ():
            symbol = _u64(place + 8) >> 32
            text = ctypes.c_uint32.from_address(at(DT_SYMTAB) + symbol * SYMBOL).value
            if symbol and ctypes.string_at(at(DT_STRTAB) + text) == name:
                return base + _u64(place)
    return None


def _mappings() -> Iterator[tuple[int, int, str]]:
    """Yield start, offset in the file, and path of each mapping of this process."""
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6:
            yield int(fields[0].split("-")[0], 16), int(fields[2], 16), fields[5]


def _dynamic(base: int) -> Iterator[tuple[int, int]]:
    """Yield tag and value of each entry of a module's dynamic section."""
    headers = base + _u64(base + 32)
    width, count = ctypes.c_uint16.from_address(base + 54).value, ctypes.c_uint16.from_address(base + 56).value
    for header in range(headers, headers + width * count, width):
        if ctypes.c_uint32.from_address(header).value != PT_DYNAMIC:
            continue
        entry = base + _u64(header + 16)
        while _u64(entry):
            yield _u64(entry), _u64(entry + 8)
            entry += 16


def _make_writable(place: int) -> None:
    """Make an entry of the linkage table writable. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    page = place & ~(mmap.PAGESIZE - 1)
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE):
        raise OSError(ctypes.get_errno(), "the linkage table cannot be changed")
