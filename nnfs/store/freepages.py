"""An LMDB 0.9 data file read from outside: whether it is sound enough to be opened, and which pages are free.

LMDB files never shrink, so free pages are given back to the filesystem below as holes. The rule for which pages is
LMDB's own (`mdb_page_alloc` and `mdb_find_oldest` in mdb.c of 0.9.36): the freeDB has a record for each txn, with the
pages which that txn freed. A write txn begins with ``oldest = txn->mt_txnid - 1``, the id of the last commit, lowers it
to the ``mr_txnid`` of every reader, and takes records in order of their txn until ``if (oldest <= last) break``. So a
record is free for use exactly when its txn is *older* than the last commit and than every reader. (Pages that the last
commit itself freed are still in the tree of the other meta page, to which a torn write of the newer one falls back.)

A page that LMDB may overwrite at any time holds nothing that anybody reads: as a hole it is as good, and a crash
between punching and the next commit changes nothing. All reading is pread(2), never the map: a file that was cut short
is no SIGBUS here.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby, islice
from operator import add, gt
from pathlib import Path
from typing import Any, NamedTuple

from nnfs.errors import FreeListDamaged, NotAStore, PunchUnsupported, StoreDamaged, StoreError, StoreTooNew

MAGIC = 0xBEEFC0DE
DATA_VERSION = 1
P_BRANCH, P_LEAF, P_OVERFLOW, P_META = 0x01, 0x02, 0x04, 0x08
F_BIGDATA = 0x01
INTEGER_KEYS = 0x08
NO_PAGE = (1 << 64) - 1
MAX_DEPTH = 32  # CURSOR_STACK: LMDB itself goes no deeper

HEADER = struct.Struct("=QHHHH")  # pgno, pad, flags, lower, upper (overflow: number of pages in place of the last two)
_META = struct.Struct("=IIQQ48s48sQQ")  # magic, version, address, mapsize, freeDB, main DB, last page, txnid
_DB = struct.Struct("=IHHQQQQQ")  # pad (freeDB: page size), flags, depth, branch, leaf, overflow pages, entries, root
TXNID = HEADER.size + _META.size - 8  # offset of the last field
NODE = struct.Struct("=HHHH")  # low, high half of the size (branch: of the page number), flags, key size


_CONTRADICTION = "the meta pages of the data file contradict each other; run: nnfs fsck --repair"


@dataclass(frozen=True)
class Meta:
    """The content of a meta page."""

    page_size: int
    last_page: int
    txnid: int
    free_root: int
    main_root: int


class Record(NamedTuple):
    """One record of the freeDB, not decoded yet: recognising an unread overflow record costs one small read."""

    txnid: int
    size: int
    page: int  # the overflow page on which the value begins; 0: the value is in the leaf
    head: bytes  # of the value: all of it, or what is on its first page


class FreeDb:
    """The freeDB of an open data file, as the newest (or another) meta page sees it."""

    def __init__(self, fd: int, meta: Meta | None = None) -> None:
        self.fd = fd
        self.meta = read_meta(fd) if meta is None else meta

    def records(self) -> Iterator[Record]:
        """Return all records, by ascending txnid. Raises `StoreDamaged`."""
        if self.meta.free_root != NO_PAGE:
            yield from self._walk(self.meta.free_root, MAX_DEPTH)

    def pages(self, record: Record) -> array.array[int]:
        """Return the page numbers of a record, descending as LMDB keeps them. Raises `StoreDamaged`."""
        data = record.head
        if record.page:
            data = self._read(record.page * self.meta.page_size + HEADER.size, record.size)
        numbers = array.array("Q", data)
        if len(numbers) == 0 or numbers.pop(0) != len(numbers):
            raise self._damaged(f"record {record.txnid} has a wrong count")
        exist = len(numbers) == 0 or (numbers[0] <= self.meta.last_page and numbers[-1] >= 2)
        if not exist or not all(map(gt, numbers, islice(numbers, 1, None))):
            raise self._damaged(f"record {record.txnid} names pages that do not exist, or not in order")
        return numbers

    def _walk(self, page: int, depth: int) -> Iterator[Record]:
        buffer = self._read(page * self.meta.page_size, self.meta.page_size)
        number, _, flags, lower, _ = HEADER.unpack_from(buffer)
        if number != page or depth == 0 or flags not in (P_BRANCH, P_LEAF) or not HEADER.size <= lower <= len(buffer):
            raise self._damaged(f"page {page} is no page of the freeDB")
        try:
            for (offset,) in struct.iter_unpack("=H", buffer[HEADER.size : lower]):
                low, high, node_flags, key_size = NODE.unpack_from(buffer, offset)
                if flags == P_BRANCH:
                    yield from self._walk(low | high << 16 | node_flags << 32, depth - 1)
                elif key_size == 8:
                    yield self._record(buffer, offset + NODE.size, low | high << 16, node_flags)
                else:
                    raise self._damaged(f"page {page} has a key of {key_size} bytes")
        except struct.error:
            raise self._damaged(f"page {page} points outside of itself") from None

    def _record(self, buffer: bytes, offset: int, size: int, flags: int) -> Record:
        txnid, start = int.from_bytes(buffer[offset : offset + 8], sys.byteorder), offset + 8
        if size < 8 or size % 8:
            raise self._damaged(f"record {txnid} has {size} bytes")
        if not flags & F_BIGDATA:
            if start + size > len(buffer):
                raise self._damaged(f"record {txnid} does not end on its page")
            return Record(txnid, size, 0, buffer[start : start + size])
        (page,) = struct.unpack_from("=Q", buffer, start)
        head = self._read(page * self.meta.page_size, self.meta.page_size)
        number, _, page_flags = struct.unpack_from("=QHH", head)
        (pages,) = struct.unpack_from("=I", head, 12)
        if number != page or page_flags != P_OVERFLOW or pages * self.meta.page_size < size + HEADER.size:
            raise self._damaged(f"page {page} is not the overflow page of record {txnid}")
        return Record(txnid, size, page, head[HEADER.size :])

    def _read(self, offset: int, size: int) -> bytes:
        end = (self.meta.last_page + 1) * self.meta.page_size
        data = os.pread(self.fd, size, offset) if 0 < offset < offset + size <= end else b""
        if len(data) != size:
            raise self._damaged(f"offset {offset} is outside of the file")
        return data

    @staticmethod
    def _damaged(why: str) -> StoreDamaged:
        return FreeListDamaged(f"the list of free pages is damaged: {why}; restore it from a backup")


# --- before the file is opened ----------------------------------------------------------------------------------------


def read_meta(fd: int) -> Meta:
    """Return the newer meta page, chosen as `mdb_env_pick_meta` does. Raises `StoreDamaged`, `StoreTooNew`."""
    first, second = _both_metas(fd)
    return second if first.txnid < second.txnid else first


def _both_metas(fd: int) -> tuple[Meta, Meta]:
    try:
        first = parse_meta(os.pread(fd, 1 << 12, 0), 0)
        second = parse_meta(os.pread(fd, 1 << 12, first.page_size), 1)
    except StoreTooNew:
        if sound_metas(fd):  # no other engine writes one page like that, and one like this
            raise StoreDamaged("a meta page of the data file has a wrong version; run: nnfs fsck --repair") from None
        raise
    if first.page_size != second.page_size:
        raise StoreDamaged(_CONTRADICTION)
    return first, second


def sound_metas(fd: int) -> dict[int, Meta]:
    """Return by number the meta pages that are sound by themselves; the second is searched wherever it may begin."""
    sound: dict[int, Meta] = {}
    for number in (0, 1):
        for shift in range(9, 16) if number else (0,):
            with contextlib.suppress(StoreDamaged, StoreTooNew):
                meta = parse_meta(os.pread(fd, 1 << 12, number << shift), number)
                if not number or meta.page_size == 1 << shift:
                    sound[number] = meta
    return sound


def in_order(metas: Sequence[Meta], newest: Sequence[int]) -> bool:
    """Return whether the numbers of the last two txns fit: with a damaged one the older tree would pass for the newer.

    Txn n goes to page n % 2 after txn n - 1; `newest` are the last records of both freeDBs: a txn leaves the pages that
    the one before it has freed.
    """
    first, second = metas
    step = second.txnid - first.txnid
    if first.txnid % 2 or (step != 0 and second.txnid % 2 == 0) or abs(step) > 1 or (step == 0 and first.txnid):
        return False
    return newest[0] <= newest[1] if step > 0 else newest[0] >= newest[1]


def newest_records(fd: int, metas: Sequence[Meta]) -> list[int]:
    """Return the last txnid in the freeDB of each meta page. Raises `StoreDamaged`."""
    return [max((record.txnid for record in FreeDb(fd, meta).records()), default=0) for meta in metas]


def parse_meta(page: bytes, number: int) -> Meta:
    """Return the content of one meta page. Raises `StoreDamaged`, `StoreTooNew`."""
    if len(page) < HEADER.size + _META.size:
        raise StoreDamaged(f"the data file ends within meta page {number}; restore it from a backup")
    magics = [struct.unpack_from("=I", page, offset)[0] == MAGIC for offset in (16, 24)]  # 0.9; 1.0 has longer headers
    found, _, flags, _, _ = HEADER.unpack_from(page)
    magic, version, _, _, free_db, main_db, last_page, txnid = _META.unpack_from(page, HEADER.size)
    if magics[1] or (magics[0] and version > DATA_VERSION and flags & P_META):
        raise StoreTooNew("the data file is of a later LMDB format than 0.9; use a newer nnfs")
    page_size, free_flags, _, _, _, _, _, root = _DB.unpack(free_db)
    _, main_flags, _, _, _, _, _, main_root = _DB.unpack(main_db)
    plausible = page_size & (page_size - 1) == 0 and 512 <= page_size <= 1 << 15
    plausible = plausible and (free_flags, main_flags) == (INTEGER_KEYS, 0)
    if magic != MAGIC or version != DATA_VERSION or not flags & P_META or found != number or not plausible:
        raise StoreDamaged(f"meta page {number} of the data file is damaged; run: nnfs fsck --repair")
    if last_page < 1 or any(page != NO_PAGE and not 2 <= page <= last_page for page in (root, main_root)):
        raise StoreDamaged(f"meta page {number} of the data file points outside of it; run: nnfs fsck --repair")
    return Meta(page_size, last_page, txnid, root, main_root)


def check_data_file(path: Path) -> Meta:
    """Check before LMDB maps a data file that it is one of LMDB 0.9 and not cut short, which would be a SIGBUS.

    Raises `NotAStore`, `StoreTooNew`, `StoreDamaged`.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotAStore(f"there is no {path}; nnfs mkfs makes a store in an empty directory") from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    try:
        if not _has_magic(os.pread(fd, 1 << 17, 0)):
            raise NotAStore(f"{path} is not a data file of nnfs (LMDB 0.9); remove it, or give another directory")
        metas = _both_metas(fd)
        with contextlib.suppress(FreeListDamaged):  # costs no data, and the length may be right
            if not in_order(metas, newest_records(fd, metas)):
                raise StoreDamaged(_CONTRADICTION)
        free_db = FreeDb(fd)
        _check_length(free_db, os.fstat(fd).st_size)
        return free_db.meta
    except (StoreDamaged, StoreTooNew) as error:
        raise type(error)(f"{path}: {error}") from None
    finally:
        os.close(fd)


def _has_magic(start: bytes) -> bool:
    """Return whether either place of a meta page has LMDB's magic number: one of the pages may be lost."""
    places = [16, 24, *(16 + (1 << shift) for shift in range(9, 16))]
    return any(start[place : place + 4] == MAGIC.to_bytes(4, sys.byteorder) for place in places)


def _check_length(free_db: FreeDb, size: int) -> None:
    """Check that only free pages lie beyond the file's end: LMDB does not write a page that one txn takes and frees."""
    whole, last = size // free_db.meta.page_size, free_db.meta.last_page
    if whole > last:
        return
    beyond = sum(sum(page >= whole for page in free_db.pages(record)) for record in free_db.records())
    if beyond != last + 1 - whole:
        lost = (last + 1) * free_db.meta.page_size - size
        raise StoreDamaged(f"the data file was cut short ({lost} bytes are missing); restore it from a backup")


# --- giving pages back ------------------------------------------------------------------------------------------------


def oldest_reader(env: Any) -> int | None:
    """Return the txnid of the oldest reader of an environment."""
    lines = [line.split() for line in env.readers().splitlines()]
    ids = [int(words[2]) for words in lines if len(words) == 3 and words[0].isdecimal() and words[2].isdecimal()]
    return min(ids, default=None)


def reusable(free_db: FreeDb, oldest: int | None) -> Iterator[Record]:
    """Return the records whose pages LMDB may use in its next txn, in the order in which it takes them."""
    limit = free_db.meta.txnid if oldest is None else min(free_db.meta.txnid, oldest)
    for record in free_db.records():
        if record.txnid >= limit:
            return
        yield record


def runs(descending: Sequence[int]) -> list[tuple[int, int]]:
    """Return descending page numbers as ascending runs (first page, number of pages)."""
    found, end = [], len(descending)
    for _, group in groupby(map(add, reversed(descending), count(0, -1))):  # constant within a run
        length = sum(1 for _ in group)
        found.append((descending[end - 1], length))
        end -= length
    return found


def give_back(env: Any, path: Path, *, keep: int, budget: int, seen: dict[int, int] | None = None) -> int:
    """Punch free pages out of the data file of an open environment. Return the bytes given back.

    No write txn may be open meanwhile, in any process: LMDB could take a page that is about to be punched. The `keep`
    pages which LMDB takes first (the lowest of the oldest records) stay. At most `budget` holes are punched; call again
    for the rest. `seen` remembers, from call to call, which records have nothing left to give.

    Raises `PunchUnsupported`, `StoreDamaged`.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        free_db, before = FreeDb(fd), os.fstat(fd).st_blocks
        done = {} if seen is None else dict(seen)
        if seen is not None:
            seen.clear()
        for record in reusable(free_db, oldest_reader(env)):
            mark = hash((record.size, record.page, record.head))
            if keep <= 0 and done.get(record.txnid) == mark:
                pass
            elif budget <= 0:
                continue
            else:
                kept = min(keep, record.size // 8 - 1)
                keep -= kept
                budget -= _punch(fd, _without(runs(free_db.pages(record)), kept), free_db.meta.page_size, budget)
                if kept or budget <= 0:
                    continue
            if seen is not None:
                seen[record.txnid] = mark
        beyond = free_db.meta.last_page + 1  # written by a commit that failed
        behind = -(-os.fstat(fd).st_size // free_db.meta.page_size) - beyond
        if behind > 0 and budget > 0:
            _punch(fd, iter([(beyond, behind)]), free_db.meta.page_size, 1)
        return max(0, before - os.fstat(fd).st_blocks) * 512
    finally:
        os.close(fd)


def _without(extents: list[tuple[int, int]], kept: int) -> Iterator[tuple[int, int]]:
    for start, length in extents:
        if kept < length:
            yield start + kept, length - kept
        kept = max(0, kept - length)


def _punch(fd: int, extents: Iterator[tuple[int, int]], page_size: int, budget: int) -> int:
    """Punch the parts that are no holes yet, `budget` times at most. Return how often."""
    punched, data = 0, 0  # `data`: no data lies between the last extent and here
    for start, length in extents:
        offset, end = start * page_size, (start + length) * page_size
        if data <= offset:
            data = next_data(fd, offset)
        if data >= end:
            continue
        if punched == budget:
            break
        punch(fd, offset, end - offset)
        punched += 1
        data = end
    return punched


def next_data(fd: int, offset: int) -> int:
    """Return where the next data of a file begins, at or after an offset: lseek(2)."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return 1 << 62  # a hole up to the end of the file
        raise


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
KEEP_SIZE, PUNCH_HOLE = 1, 2


def allocate(fd: int, offset: int, length: int) -> None:
    """Make the filesystem below allocate the blocks of a range. Raises `OSError`: zeros are never written instead."""
    fallocate(fd, 0, offset, length)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Call fallocate(2). Raises `OSError`."""
    while _libc.fallocate(fd, mode, offset, length) < 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def punch(fd: int, offset: int, length: int) -> None:
    """Turn a range into a hole. Raises `PunchUnsupported`, `StoreError`."""
    try:
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            why = "the filesystem below the store cannot punch holes: space comes back only inside"
            raise PunchUnsupported(why) from None
        failure = StoreError(f"cannot give free pages back: {error.strerror}")
        failure.errno = error.errno or errno.EIO
        raise failure from None
