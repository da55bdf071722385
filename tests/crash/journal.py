"""A process's writes to one file, as `shim.c` recorded them, and the contents that a power cut could leave."""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512
_HEADER = struct.Struct("=IIQQII")
_MAGIC = 0x4D494853
WRITE, FLUSH, TRUNCATE, PUNCH, ACK, OPAQUE = 1, 2, 3, 4, 5, 6
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # modes of fallocate


def build_shim(folder: Path) -> Path:
    """Compile the LD_PRELOAD library."""
    target = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, "-o", target, source, "-ldl", "-lpthread"], check=True)
    return target


HOW = ("before", "after", "torn")


class Control:
    """Says when the shim kills its process, also while that runs."""

    _WORDS = struct.Struct("=7Q")

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(self._WORDS.size))

    @property
    def writes(self) -> int:
        """Writes to the file so far."""
        return int(self._WORDS.unpack(self.path.read_bytes())[0])

    def kill(self, after: int, how: str, tear: int = 500) -> None:
        """SIGKILL at the `after`-th write from now; `tear`: thousandths of it that are done when it is torn."""
        with self.path.open("r+b", buffering=0) as file:
            file.seek(8)
            file.write(struct.pack("=QQQ", self.writes + after, HOW.index(how), tear))

    def fail(self, after: int, code: int, count: int = 1) -> None:
        """`count` writes fail from the `after`-th from now on (0: none); `code`: errno, 0: half of it is written."""
        with self.path.open("r+b", buffering=0) as file:
            file.seek(32)
            file.write(struct.pack("=QQQ", self.writes + after if after else 0, count, code))


def shim_environment(
    shim: Path, file: Path, *, journal: Path | None = None, control: Control | None = None
) -> dict[str, str]:
    """Variables for a process whose writes to `file` are to be seen."""
    env = {"LD_PRELOAD": str(shim), "SHIM_STORE": str(file.parent.resolve() / file.name)}
    if journal is not None:
        env["SHIM_JOURNAL"] = str(journal)
    if control is not None:
        env["SHIM_CONTROL"] = str(control.path)
    return env


@dataclass(frozen=True, slots=True)
class Record:
    """One operation on the file, or (ACK) one step that the workload saw completed; `offset` is then its number."""

    kind: int
    offset: int = 0
    length: int = 0
    flags: int = 0
    data: bytes = b""


def append_ack(fd: int, step: int) -> None:
    """Note in the journal that the workload's `step` was answered. One write: it cannot mix with the shim's."""
    os.write(fd, _HEADER.pack(_MAGIC, ACK, step, 0, 0, 0))


def read_journal(path: Path) -> list[Record]:
    """All records, but for one that is being written. Raises `ValueError` for what cannot be replayed."""
    records, content, at = list[Record](), path.read_bytes(), 0
    while at + _HEADER.size <= len(content):
        magic, kind, offset, length, flags, size = _HEADER.unpack_from(content, at)
        if magic != _MAGIC or kind == OPAQUE:
            raise ValueError(f"record {len(records)} cannot be replayed (kind {kind})")
        at += _HEADER.size + size
        if at <= len(content):
            records.append(Record(kind, offset, length, flags, content[at - size : at]))
    return records


@dataclass(slots=True)
class _Pending:
    """An operation that no flush has covered: its sectors as they were after it, the size of the file after it."""

    sectors: dict[int, bytes]
    size: int
    cuts: bool = False  # shortens the file


class Disk:
    """The file as the page cache has it, and as a disk could have it.

    A disk is sure of what a completed flush covered. Of every later operation it may hold any part, in whole sectors,
    in any order. A sector of an operation is the sector as the page cache had it right after that operation, so a write
    shorter than a sector cannot appear without what was in its sector before.
    """

    def __init__(self, content: bytes) -> None:
        self.cache = bytearray(content)
        self.sure = bytearray(content)
        self.pending: list[_Pending] = []

    def apply(self, record: Record) -> None:
        """One operation of the journal happens."""
        if record.kind == FLUSH:
            self.sure = bytearray(self.cache)
            self.pending.clear()
        elif record.kind == WRITE:
            self._change(record.offset, record.data)
            if record.flags:  # O_DSYNC: this range is sure, nothing else is
                self._make_sure(record.offset, len(record.data))
        elif record.kind == TRUNCATE:
            self._resize(record.offset)
        elif record.kind == PUNCH:
            end = record.offset + record.length
            if record.flags & _PUNCH_HOLE:
                self._change(record.offset, bytes(max(0, min(end, len(self.cache)) - record.offset)))
            elif not record.flags & _KEEP_SIZE and end > len(self.cache):
                self._resize(end)

    def _change(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        if end > len(self.cache):
            self.cache.extend(bytes(end - len(self.cache)))
        self.cache[offset:end] = data
        self.pending.append(_Pending(self._sectors(offset, end), len(self.cache)))

    def _resize(self, size: int) -> None:
        old = len(self.cache)
        del self.cache[size:]
        self.cache.extend(bytes(size - len(self.cache)))
        self.pending.append(_Pending(self._sectors(min(size, old), max(size, old)), size, size < old))

    def _sectors(self, start: int, end: int) -> dict[int, bytes]:
        """The sectors of a range as the page cache has them, zeros behind its end."""
        if start == end:
            return {}
        first, last = start // SECTOR, (end - 1) // SECTOR
        content = bytes(self.cache[first * SECTOR : (last + 1) * SECTOR]).ljust((last + 1 - first) * SECTOR, b"\0")
        return {first + n: content[n * SECTOR : (n + 1) * SECTOR] for n in range(last + 1 - first)}

    def _make_sure(self, offset: int, length: int) -> None:
        covered = self._sectors(offset, offset + length)
        for entry in self.pending:
            for sector in covered:
                entry.sectors.pop(sector, None)
        if len(self.sure) < offset + length:
            self.sure.extend(bytes(offset + length - len(self.sure)))
        for sector, content in covered.items():
            at = sector * SECTOR
            self.sure[at : at + SECTOR] = content[: len(self.sure) - at]

    def image(self, rng: random.Random) -> bytes:
        """One content that a disk could hold now, drawn: operations dropped, reordered, torn."""
        kept = rng.choice((0.0, 0.3, 0.7, 0.9, 1.0))
        drawn = [entry for entry in self.pending if rng.random() < kept]
        if rng.random() < 0.5:
            rng.shuffle(drawn)
        torn = rng.choice((0, 1, 2, len(drawn)))  # so many of the last ones are
        content = bytearray(self.sure)
        for number, entry in enumerate(drawn):
            sectors = entry.sectors
            if number >= len(drawn) - torn:
                share = rng.random()
                sectors = {s: c for s, c in sectors.items() if rng.random() < share}
            self._put(content, sectors, entry)
        return bytes(content)

    @staticmethod
    def _put(content: bytearray, sectors: dict[int, bytes], entry: _Pending) -> None:
        if entry.cuts:
            del content[entry.size :]
        for sector, data in sectors.items():
            at = sector * SECTOR
            data = data[: max(0, entry.size - at)]
            if data:
                if len(content) < at:
                    content.extend(bytes(at - len(content)))
                content[at : at + len(data)] = data


def replay(content: bytes, records: list[Record]) -> Iterator[tuple[int, Disk]]:
    """Yield (number of records that happened, disk) after each record; the disk is one object that goes on changing."""
    disk = Disk(content)
    for number, record in enumerate(records, start=1):
        disk.apply(record)
        yield number, disk
