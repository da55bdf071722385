"""A check of the keys in branch pages of LMDB's trees: a wrong key misleads look-ups.

A record behind a wrong key of a branch page is there for a scan, and not there for a look-up. lmdb's verifier compares
these keys with one another only, so this module compares them with the keys in the pages below.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

from nnfs.store.freepages import HEADER, NO_PAGE, NODE, P_BRANCH, P_LEAF, read_meta

F_SUBDATA = 0x02  # of a node: its value describes a table
_ROOT = 40  # offset of the root's page number in that description


class Subtree(NamedTuple):
    """A page, and the keys that look-ups expect below it: low <= key < high."""

    table: str
    page: int
    low: bytes | None = None
    high: bytes | None = None


def misleading_branch_keys(fd: int) -> Iterator[str]:
    """Yield a line for each page with keys that look-ups do not find there. Other damage is ignored.

    Reads two keys of every leaf page: 80,000 pages a second here. Raises `StoreDamaged` for the meta pages.
    """
    meta = read_meta(fd)
    seen = bytearray(meta.last_page + 1)
    todo = [Subtree("free list", meta.free_root), Subtree("main", meta.main_root)]
    while todo:
        tree = todo.pop()
        if not 2 <= tree.page <= meta.last_page or seen[tree.page]:
            continue
        seen[tree.page] = 1
        page = os.pread(fd, meta.page_size, tree.page * meta.page_size)
        try:
            if not _fits(tree, page):
                yield f"{tree.table}: page {tree.page} holds keys that look-ups seek elsewhere"
            todo += _below(tree, page)
        except struct.error:
            continue


def _offsets(page: bytes) -> list[int]:
    lower = HEADER.unpack_from(page)[3]
    return [offset for (offset,) in struct.iter_unpack("=H", page[HEADER.size : max(HEADER.size, lower & ~1)])]


def _key(page: bytes, offset: int) -> bytes:
    size = NODE.unpack_from(page, offset)[3]
    return page[offset + NODE.size : offset + NODE.size + size]


def _fits(tree: Subtree, page: bytes) -> bool:
    """Return whether the first and the last key of a leaf page lie between the keys of the branch above it."""
    offsets = _offsets(page)
    if HEADER.unpack_from(page)[2] != P_LEAF or not offsets:
        return True
    first, last = (_ordered(tree.table, _key(page, offset)) for offset in (offsets[0], offsets[-1]))
    return not (
        (tree.low is not None and first < _ordered(tree.table, tree.low))
        or (tree.high is not None and last >= _ordered(tree.table, tree.high))
    )


def _ordered(table: str, key: bytes) -> bytes:
    """Return a key in the form that sorts as LMDB does: keys of the free list are integers of this machine."""
    return key[::-1] if table == "free list" and sys.byteorder == "little" else key


def _below(tree: Subtree, page: bytes) -> Iterator[Subtree]:
    flags, offsets = HEADER.unpack_from(page)[2], _offsets(page)
    if flags == P_BRANCH:
        lows = [tree.low, *(_key(page, offset) for offset in offsets[1:])]
        for offset, low, high in zip(offsets, lows, [*lows[1:], tree.high], strict=True):
            below_16, below_32, above, _ = NODE.unpack_from(page, offset)
            yield Subtree(tree.table, below_16 | below_32 << 16 | above << 32, low, high)
    elif flags == P_LEAF and tree.table == "main":
        for offset in offsets:
            if NODE.unpack_from(page, offset)[2] & F_SUBDATA:
                name = _key(page, offset)
                (root,) = struct.unpack_from("=Q", page, offset + NODE.size + len(name) + _ROOT)
                if root != NO_PAGE:
                    yield Subtree(f"table {name.decode(errors='replace')}", root)
