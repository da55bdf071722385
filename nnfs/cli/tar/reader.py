"""Reads archives: ustar, PAX, GNU tar's formats and theirs before it, files with holes in all four forms.

Nothing in an archive is trusted: numbers are checked, and what is kept in memory has a bound. A fault is
`ArchiveDamaged`, with the place.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator

from nnfs.cli.tar import member
from nnfs.cli.tar.member import BLOCK, HEADER, SECOND, Extents, Member
from nnfs.errors import ArchiveDamaged

MAX_RECORDS = 64 << 20  # bytes of one extended header, and of the map of a file with holes
MAX_SIZE, MAX_ID = 2**63 - 1, 2**32 - 2
_BUFFER = 1 << 20
_DRAIN = 16 << 20  # bytes after the end that are read, so that who writes the stream can end

_OLD_FILE, _CONTIGUOUS, _OLD_SPARSE, _DUMP, _LABEL = b"\0", b"7", b"S", b"D", b"V"
_LONG_NAME, _LONG_LINK, _OLD_EXTENDED = b"L", b"K", b"X"
_MAP_0 = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")  # these come again and again
_PAIR = struct.Struct("12s12s")
_PACKED = {b"\x1f\x8b": "zcat", b"\xfd7zXZ": "xzcat", b"\x28\xb5\x2f\xfd": "zstdcat", b"BZh": "bzcat"}

Records = dict[bytes, bytes]


class Reader:
    """Yields the members of a stream; `read` has the content of the one that came last."""

    def __init__(self, descriptor: int, done: Callable[[int], None]) -> None:
        self._descriptor, self._done = descriptor, done
        self._buffer = b""
        self._left = self._padding = 0  # of the content of the last member
        self._globals: Records = {}
        self.position = 0

    def members(self) -> Iterator[Member]:
        """Yield the members in order."""
        while (one := self._next()) is not None:
            yield one

    def read(self, limit: int) -> bytes:
        """Return content of the last member, b"" at its end."""
        data = self._exactly(min(limit, self._left))
        self._left -= len(data)
        return data

    def _some(self, limit: int) -> bytes:
        if not self._buffer:
            self._buffer = os.read(self._descriptor, _BUFFER)
            self._done(len(self._buffer))
        data, self._buffer = self._buffer[:limit], self._buffer[limit:]
        self.position += len(data)
        return data

    def _exactly(self, size: int) -> bytes:
        parts, left = [], size
        while left:
            data = self._some(left)
            if not data:
                raise ArchiveDamaged(f"it is cut off at byte {self.position}, in the middle of a member")
            parts.append(data)
            left -= len(data)
        return b"".join(parts)

    def _bounded(self, size: int, limit: int = MAX_RECORDS) -> bytes:
        if size > limit:
            raise self._wrong(f"{size} bytes of headers")
        data = self._exactly(size)
        self._exactly(-size % BLOCK)
        return data

    def _wrong(self, why: str) -> ArchiveDamaged:
        return ArchiveDamaged(f"before byte {self.position}: {why}")

    def _header(self) -> bytes | None:
        """Return the next header, None at the end of the archive."""
        left = self._left + self._padding
        self._left = self._padding = 0
        while left:
            left -= len(self._exactly(min(left, _BUFFER)))
        first = self._some(1)
        if not first:
            if not self.position:
                raise ArchiveDamaged("it is empty")
            raise ArchiveDamaged(f"it is cut off at byte {self.position}: the end mark is missing")
        block = first + self._exactly(BLOCK - 1)
        if not any(block):
            drained = 0
            while drained < _DRAIN and (data := self._some(_BUFFER)):
                drained += len(data)
            return None
        plain = block[:148] + b" " * 8 + block[156:]
        sums = sum(plain), sum(byte - 256 if byte > 127 else byte for byte in plain)  # old programs had signed bytes
        if self._number(block[148:156]) not in sums:
            raise self._wrong(self._no_header(block))
        return block

    def _no_header(self, block: bytes) -> str:
        if self.position > BLOCK:
            return "a damaged header; what comes behind it is not used"
        packed = next((program for magic, program in _PACKED.items() if block.startswith(magic)), "")
        return f"a compressed archive: {packed} TAR | nnfs import - PATH" if packed else "this is no tar archive"

    def _number(self, field: bytes, largest: int = MAX_SIZE) -> int:
        """Return a number of a header: octal, or binary if it has more digits than that."""
        if field[:1] in (b"\x80", b"\xff"):
            number = int.from_bytes(field, "big", signed=True) if field[0] == 0xFF else int.from_bytes(field[1:], "big")
        else:
            text = field.split(b"\0")[0].strip()
            try:
                number = int(text or b"0", 8)
            except ValueError:
                number = -1
        if not -MAX_SIZE <= number <= largest:
            raise self._wrong(f"a number is out of range: {number}")
        return number

    def _decimal(self, text: bytes, largest: int = MAX_SIZE) -> int:
        if not text.isdigit() or len(text) > 20 or int(text) > largest:
            raise self._wrong(f"no number in its range: {text[:40]!r}")
        return int(text)

    def _next(self) -> Member | None:
        own: Records = {}
        pairs: list[bytes] = []
        while True:
            block = self._header()
            if block is None:
                if own:
                    raise self._wrong("headers without a member")
                return None
            kind = block[156:157]
            size = self._number(block[124:136])
            if size < 0:
                raise self._wrong(f"a size of {size}")
            if kind in (member.EXTENDED, _OLD_EXTENDED, member.GLOBAL):
                found = self._records(self._bounded(size), pairs)
                (self._globals if kind == member.GLOBAL else own).update(found)
            elif kind in (_LONG_NAME, _LONG_LINK):
                text = self._bounded(size).split(b"\0")[0]
                own.setdefault(b"path" if kind == _LONG_NAME else b"linkpath", text)
            elif kind == _LABEL:
                self._left, self._padding = size, -size % BLOCK
            else:
                return self._member(block, {**self._globals, **own}, pairs)

    def _records(self, data: bytes, pairs: list[bytes]) -> Records:
        """Return the records of an extended header; those that repeat come into `pairs`."""
        found: Records = {}
        place = 0
        while place < len(data):
            space = data.find(b" ", place, place + 21)
            length = self._decimal(data[place:space], len(data) - place) if space > 0 else 0
            end = place + length
            key, equals, value = data[space + 1 : end - 1].partition(b"=")
            if end <= space + 1 or not equals or data[end - 1 : end] != b"\n":
                raise self._wrong("a record of an extended header is damaged")
            if key in _MAP_0:
                pairs.append(value)
            elif value or key.startswith(member.XATTR):
                found[key] = value
            place = end
        return found

    def _member(self, block: bytes, records: Records, pairs: list[bytes]) -> Member:
        fields = HEADER.unpack(block)
        name, link, user, group = (fields[place].split(b"\0")[0] for place in (0, 8, 11, 12))
        prefix = fields[15].split(b"\0")[0] if fields[9] == b"ustar\0" else b""
        name = records.get(b"GNU.sparse.name", records.get(b"path", b"/".join(filter(None, [prefix, name]))))
        kind = {_OLD_FILE: member.FILE, _CONTIGUOUS: member.FILE, _DUMP: member.DIRECTORY}.get(fields[7], fields[7])
        if kind == member.FILE and name.endswith(b"/"):
            kind = member.DIRECTORY
        stored = self._decimal(records[b"size"]) if b"size" in records else self._number(fields[4])
        self._left, self._padding = stored, -stored % BLOCK
        one = Member(
            name, kind, mode=self._number(fields[1]) & 0o7777, stored=stored, size=stored,
            link=records.get(b"linkpath", link), user=records.get(b"uname", user), group=records.get(b"gname", group),
            uid=self._decimal(records[b"uid"], MAX_ID) if b"uid" in records else self._number(fields[2], MAX_ID),
            gid=self._decimal(records[b"gid"], MAX_ID) if b"gid" in records else self._number(fields[3], MAX_ID),
            mtime=self._time(records[b"mtime"]) if b"mtime" in records else self._number(fields[5]) * SECOND,
            atime=self._time(records[b"atime"]) if b"atime" in records else None,
            records=records,
        )  # fmt: skip
        if kind in (member.CHAR, member.DEVICE):
            one.device = self._number(fields[13]), self._number(fields[14])
        if one.uid < 0 or one.gid < 0:
            raise self._wrong("an owner with a negative number")
        self._find_holes(one, block, pairs)
        return one

    def _time(self, text: bytes) -> int:
        whole, _, fraction = text.removeprefix(b"-").partition(b".")
        time = self._decimal(whole) * SECOND + self._decimal((fraction + b"0" * 9)[:9])
        return -time if text.startswith(b"-") else time

    def _find_holes(self, one: Member, block: bytes, pairs: list[bytes]) -> None:
        """Read the map of a file with holes, and check it."""
        numbers: list[int]
        if one.records.get(b"GNU.sparse.major") == b"1":
            one.size = self._decimal(one.records.get(b"GNU.sparse.realsize", b""))
            numbers = self._map_1()
        elif b"GNU.sparse.map" in one.records or pairs:
            one.size = self._decimal(one.records.get(b"GNU.sparse.size", b""))
            texts = one.records[b"GNU.sparse.map"].split(b",") if b"GNU.sparse.map" in one.records else pairs
            numbers = [self._decimal(text) for text in texts]
        elif one.kind == _OLD_SPARSE:
            one.kind, one.size = member.FILE, self._number(block[483:495])
            numbers = self._old_map(block)
        else:
            return
        one.stored = self._left
        one.extents = self._checked(numbers, one)

    def _checked(self, numbers: list[int], one: Member) -> Extents:
        extents = list(zip(numbers[::2], numbers[1::2], strict=False))
        end = 0
        for offset, length in extents:
            if offset < end or length < 0 or offset + length > one.size:
                raise self._wrong("the map of a file with holes is damaged")
            end = offset + length
        if len(numbers) % 2 or sum(length for _, length in extents) != one.stored or one.kind != member.FILE:
            raise self._wrong("the map of a file with holes does not fit its content")
        return extents

    def _map_1(self) -> list[int]:
        """Return the map that stands before the content, in lines."""
        text = self.read(BLOCK)
        lines = text.split(b"\n")
        wanted = self._decimal(lines[0], MAX_RECORDS) * 2 + 1
        parts = [text]
        count = text.count(b"\n")
        while count < wanted:
            more = self.read(BLOCK)
            count += more.count(b"\n")
            if not more or len(parts) * BLOCK > MAX_RECORDS:
                raise self._wrong("the map of a file with holes has no end")
            parts.append(more)
        return [self._decimal(line) for line in b"".join(parts).split(b"\n")[1:wanted]]

    def _old_map(self, block: bytes) -> list[int]:
        """Return the map of GNU tar's first form, in the header and blocks behind it."""
        numbers: list[int] = []
        area, more = block[386:482], block[482]
        while True:
            for offset, length in _PAIR.iter_unpack(area):
                if any(offset.strip(b"\0 ")) or any(length.strip(b"\0 ")):
                    numbers += [self._number(offset), self._number(length)]
            if not more:
                return numbers
            if len(numbers) > MAX_RECORDS // BLOCK:
                raise self._wrong("the map of a file with holes has no end")
            extension = self._exactly(BLOCK)
            area, more = extension[:504], extension[504]
