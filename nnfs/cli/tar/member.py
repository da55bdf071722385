"""Members of an archive, and their headers: ustar, with all that does not fit there as records of PAX.

A name, a target of a link and a value of an attribute are bytes. Extended attributes are the records
`SCHILY.xattr.NAME`, with `%` and `=` in a name as `%25` and `%3D` (so GNU tar does), ACLs `SCHILY.acl.access` and
`SCHILY.acl.default` as text. `NNFS.fingerprint` is a file's fingerprint in hexadecimal, `NNFS.chunk_size` the size of
the chunks that it was made with. A file with holes has the form "1.0" of GNU tar.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCK = 512
RECORD = 20 * BLOCK  # an archive is a multiple of this
SECOND = 10**9

FILE, HARD_LINK, SYMLINK, CHAR, DEVICE, DIRECTORY, FIFO = (bytes([code]) for code in b"0123456")
EXTENDED, GLOBAL = b"x", b"g"

XATTR, ACCESS, DEFAULT = b"SCHILY.xattr.", b"SCHILY.acl.access", b"SCHILY.acl.default"
FINGERPRINT, CHUNK_SIZE = b"NNFS.fingerprint", b"NNFS.chunk_size"

HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")
NAME_MAX, PREFIX_MAX = 100, 155
_MAX_7, _MAX_11 = 8**7 - 1, 8**11 - 1  # what octal fields hold

Extents = Sequence[tuple[int, int]]  # (offset, length) of what is no hole


@dataclass
class Member:
    """A member of an archive. `size` is that of the file, `stored` that of what the archive has of it."""

    name: bytes
    kind: bytes = FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    user: bytes = b""
    group: bytes = b""
    size: int = 0
    mtime: int = 0  # ns
    atime: int | None = None  # ns
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    records: dict[bytes, bytes] = field(default_factory=dict)
    stored: int = 0
    extents: Extents | None = None  # of a file with holes

    @property
    def xattrs(self) -> dict[bytes, bytes]:
        """Return the extended attributes by name."""
        return {
            key.removeprefix(XATTR).replace(b"%3D", b"=").replace(b"%25", b"%"): value
            for key, value in self.records.items()
            if key.startswith(XATTR)
        }

    @xattrs.setter
    def xattrs(self, values: dict[bytes, bytes]) -> None:
        for name, value in values.items():
            self.records[XATTR + name.replace(b"%", b"%25").replace(b"=", b"%3D")] = value


def encode(member: Member) -> bytes:
    """Return the headers of a member, with the map of a file with holes, which the content follows."""
    records: dict[bytes, bytes] = {}
    name, prefix = _split(member.name)
    if member.extents is not None:
        table = sparse_map(member.extents)
        member.stored = len(table) + sum(length for _, length in member.extents)
    else:
        table = b""
        if prefix is None:
            name, prefix = member.name[:NAME_MAX], b""
            records[b"path"] = member.name
    if len(member.link) > NAME_MAX:
        records[b"linkpath"] = member.link
    if member.stored > _MAX_11:
        records[b"size"] = b"%d" % member.stored
    if member.extents is not None:
        folder, _, last = member.name.rpartition(b"/")
        name, prefix = b"/".join([*filter(None, [folder]), b"GNUSparseFile.0", last])[:NAME_MAX], b""
        records[b"GNU.sparse.major"], records[b"GNU.sparse.minor"] = b"1", b"0"
        records[b"GNU.sparse.name"], records[b"GNU.sparse.realsize"] = member.name, b"%d" % member.size
    for key, number in ((b"uid", member.uid), (b"gid", member.gid)):
        if number > _MAX_7:
            records[key] = b"%d" % number
    records |= {key: text for key, text in ((b"uname", member.user), (b"gname", member.group)) if len(text) > 31}
    if member.mtime % SECOND or not 0 <= member.mtime // SECOND <= _MAX_11:
        records[b"mtime"] = seconds(member.mtime)
    if member.atime is not None:
        records[b"atime"] = seconds(member.atime)
    if not all(_is_text(text) for text in records.values()):
        records = {b"hdrcharset": b"BINARY", **records}  # else libarchive takes it for an error
    extended = b"".join(record(key, value) for key, value in {**records, **member.records}.items())
    return _extension(member, extended) + _ustar(member, name, prefix or b"") + table


def _extension(member: Member, records: bytes) -> bytes:
    if not records:
        return b""
    last = member.name.rstrip(b"/").rpartition(b"/")[2]
    head = Member(b"PaxHeaders/" + last[:80], EXTENDED, stored=len(records))
    return _ustar(head, head.name, b"") + padded(records)


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _split(path: bytes) -> tuple[bytes, bytes | None]:
    """Return (name, prefix) of a path, prefix None if it does not fit."""
    if len(path) <= NAME_MAX:
        return path, b""
    place = path.find(b"/", len(path) - NAME_MAX - 1, min(PREFIX_MAX + 1, len(path) - 1))
    return (path[place + 1 :], path[:place]) if place > 0 else (b"", None)


def _ustar(member: Member, name: bytes, prefix: bytes) -> bytes:
    def octal(number: int, digits: int) -> bytes:
        return b"%0*o" % (digits, number if 0 <= number < 8**digits else 0)

    seconds_ = min(max(member.mtime // SECOND, 0), _MAX_11)
    fields = [
        name, octal(member.mode, 7), octal(member.uid, 7), octal(member.gid, 7),
        octal(min(member.stored, _MAX_11), 11), octal(seconds_, 11), b" " * 8, member.kind, member.link[:NAME_MAX],
        b"ustar\0", b"00", member.user[:31], member.group[:31],
        octal(member.device[0], 7), octal(member.device[1], 7), prefix,
    ]  # fmt: skip
    block = HEADER.pack(*fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def record(key: bytes, value: bytes) -> bytes:
    """Return a record of PAX; its length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def seconds(time: int) -> bytes:
    """Return a time in nanoseconds as decimal seconds."""
    whole, rest = divmod(abs(time), SECOND)
    return b"%s%d%s" % (b"-" if time < 0 else b"", whole, (b".%09d" % rest).rstrip(b"0") if rest else b"")


def sparse_map(extents: Extents) -> bytes:
    """Return the map before the content of a file with holes."""
    lines = [b"%d\n" % len(extents), *(b"%d\n%d\n" % extent for extent in extents)]
    return padded(b"".join(lines))


def padded(data: bytes) -> bytes:
    """Return bytes filled with zeros to whole blocks."""
    return data + bytes(-len(data) % BLOCK)
