"""Repair of LMDB's two meta pages, one from the other."""

from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import replace
from pathlib import Path

from nnfs.errors import StoreDamaged, StoreTooNew
from nnfs.store.freepages import TXNID, Meta, in_order, newest_records, parse_meta, sound_metas

Writes = list[tuple[int, bytes]]

# Offset and length of what is the same in every meta page of a file: page number (given the page), page flags, magic,
# version, page size, flags of the freeDB and of the main DB.
FIXED = ((0, 8), (10, 2), (16, 4), (20, 4), (40, 4), (44, 2), (92, 2))


def restore_meta(path: Path, *, dry_run: bool = False) -> str:
    """Repair one meta page from the other. Return a message that says what is repaired, "" when nothing is.

    A field that is the same in every meta page is set in a damaged one; if that does not make it a good one, it is
    written anew from the other one. If it was the newer, this goes back by one commit, whose pages nobody has used
    since: see `freepages`. A wrong number of a txn is found by the freeDB. Call it with the store locked and not
    open; the caller then verifies the whole file.
    """
    fd = os.open(path, (os.O_RDONLY if dry_run else os.O_RDWR) | os.O_CLOEXEC)
    try:
        sound = sound_metas(fd)
        if len(sound) == 1:
            what, writes = _other_page(fd, *sound.popitem())
        elif len(sound) == 2 and sound[0].page_size == sound[1].page_size:
            what, writes = _numbers(fd, [sound[0], sound[1]])
        else:
            return ""
        for place, data in [] if dry_run else writes:
            os.pwrite(fd, data, place)
            os.fsync(fd)
        return what
    finally:
        os.close(fd)


def _other_page(fd: int, number: int, meta: Meta) -> tuple[str, Writes]:
    """Return the bytes to write for the meta page that is not the sound one."""
    size, other = meta.page_size, 1 - number
    what = f"meta page {other} of the data file is damaged"
    page, lost = bytearray(os.pread(fd, size, number * size)), bytearray(os.pread(fd, size, other * size))
    struct.pack_into("=Q", page, 0, other)
    wrong = [slice(at, at + length) for at, length in FIXED if page[at : at + length] != lost[at : at + length]]
    if len(wrong) == 1:  # with more faults it is not damage of one field, and the others cannot be trusted either
        lost[wrong[0]] = page[wrong[0]]
        with contextlib.suppress(StoreDamaged, StoreTooNew):
            metas = sorted([(number, meta), (other, parse_meta(bytes(lost), other))])
            if in_order([meta for _, meta in metas], newest_records(fd, [meta for _, meta in metas])):
                return f"{what}: nothing is lost", [(other * size, bytes(lost))]
    struct.pack_into("=Q", page, TXNID, max(0, meta.txnid - 1))
    is_older = lost[TXNID : TXNID + 8] == page[TXNID : TXNID + 8]
    cost = "nothing is lost" if is_older else "if it was the newer one, the last commit is undone"
    return f"{what}, the other one takes its place: {cost}", [(other * size, bytes(page))]


def _numbers(fd: int, metas: list[Meta]) -> tuple[str, Writes]:
    """Return the bytes to write when the txnids of both pages contradict each other."""
    with contextlib.suppress(StoreDamaged):
        newest = newest_records(fd, metas)
        right = [replace(meta, txnid=txnid) for meta, txnid in zip(metas, newest, strict=True)]
        if not in_order(metas, newest) and in_order(right, newest):
            places = [number * meta.page_size + TXNID for number, meta in enumerate(right)]
            numbers = [struct.pack("=Q", meta.txnid) for meta in right]
            what = "a meta page of the data file has a wrong txn number, the list of free pages tells the right one"
            return f"{what}: nothing is lost", list(zip(places, numbers, strict=True))
    return "", []
