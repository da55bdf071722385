"""Which byte of data.mdb is what: a walk through LMDB 0.9's pages that never asks the engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

PAGE = 4096
_HEADER = Struct("=QHHHH")  # number, pad, flags, lower, upper (of an overflow page: the last two are its length)
_NODE = Struct("=HHHH")  # of a leaf: size low, size high, flags, key size; of a branch the first three are the child
_DB = Struct("=IHHQQQQQ")  # pad, flags, depth, branch, leaf, overflow pages, entries, root
_META_DBS, _META_TXN = 40, 144  # offsets in a meta page: free list and main table, number of the last txn
BRANCH, LEAF, OVERFLOW = 1, 2, 4
BIG, SUB = 1, 2  # node flags
NO_PAGE = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Span:
    """A run of bytes in the file.

    `what` is page header, page pointers, branch node, node header, key, record, overflow header, meta or free page;
    `table` is the table that it belongs to.
    """

    what: str
    table: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Found:
    """One record: its table and key, and where its bytes lie."""

    table: str
    key: bytes
    start: int
    end: int


class Walk:
    """All pages of an environment, classified."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.spans: list[Span] = []
        self.records: list[Found] = []
        self._used = {0, 1}
        metas = [int.from_bytes(content[n * PAGE + _META_TXN :][:8], "little") for n in (0, 1)]
        self.live_meta = metas.index(max(metas))
        for n in (0, 1):
            self.spans.append(Span("meta" if n == self.live_meta else "old meta", "", n * PAGE, n * PAGE + 152))
        at = self.live_meta * PAGE + _META_DBS
        self._tree("free list", _DB.unpack_from(content, at)[-1])
        self._tree("main", _DB.unpack_from(content, at + _DB.size)[-1])
        for record in [r for r in self.records if r.table == "main" and self._is_table(r)]:
            self.records.remove(record)
            self.spans.append(Span("table descriptor", record.key.decode(), record.start, record.end))
            self._tree(record.key.decode(), _DB.unpack_from(content, record.start)[-1])
        for number in range(len(content) // PAGE):
            if number not in self._used:
                self.spans.append(Span("free page", "", number * PAGE, (number + 1) * PAGE))

    def _is_table(self, record: Found) -> bool:
        return record.end - record.start == _DB.size and not record.key.startswith(b"nnfs.")

    def _tree(self, table: str, root: int) -> None:
        if root != NO_PAGE:
            self._page(table, root)

    def _page(self, table: str, number: int) -> None:
        at = number * PAGE
        self._used.add(number)
        _, _, flags, lower, _ = _HEADER.unpack_from(self.content, at)
        kind = "branch" if flags & BRANCH else "leaf"
        self.spans.append(Span(f"{kind} header", table, at, at + _HEADER.size))
        self.spans.append(Span(f"{kind} pointers", table, at + _HEADER.size, at + lower))
        for position in range(_HEADER.size, lower, 2):
            node = at + int.from_bytes(self.content[at + position : at + position + 2], "little")
            if kind == "branch":
                self._branch_node(table, node)
            else:
                self._leaf_node(table, node)

    def _branch_node(self, table: str, node: int) -> None:
        low, high, top, key_size = _NODE.unpack_from(self.content, node)
        self.spans.append(Span("branch node", table, node, node + _NODE.size + key_size))
        self._page(table, low | high << 16 | top << 32)

    def _leaf_node(self, table: str, node: int) -> None:
        low, high, flags, key_size = _NODE.unpack_from(self.content, node)
        size, start = low | high << 16, node + _NODE.size + key_size
        self.spans.append(Span("node header", table, node, node + _NODE.size))
        self.spans.append(Span("key", table, node + _NODE.size, start))
        key = self.content[node + _NODE.size : start]
        if flags & BIG:
            page = int.from_bytes(self.content[start : start + 8], "little")
            self.spans.append(Span("overflow number", table, start, start + 8))
            self.spans.append(Span("overflow header", table, page * PAGE, page * PAGE + _HEADER.size))
            self._used.update(range(page, page + (_HEADER.size + size + PAGE - 1) // PAGE))
            start = page * PAGE + _HEADER.size
        self.spans.append(Span("record", table, start, start + size))
        self.records.append(Found(table, key, start, start + size))

    def classes(self) -> dict[tuple[str, str], list[Span]]:
        """Spans by (what, table); empty ones left out."""
        found: dict[tuple[str, str], list[Span]] = {}
        for span in self.spans:
            if span.end > span.start:
                found.setdefault((span.what, span.table), []).append(span)
        return found

    def of(self, table: str) -> Iterator[Found]:
        """The records of one table."""
        return (record for record in self.records if record.table == table)
