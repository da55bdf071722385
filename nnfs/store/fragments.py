"""Cutting payloads into values that fill LMDB's pages."""

from __future__ import annotations

from nnfs.store import schema

PAGE, PAGE_HEADER = 4096, 16  # bytes of LMDB
FRAGMENT_OVERHEAD = 20  # bytes of a leaf page that a fragment needs beside its data: node header, key, page pointer
EXTENT_OVERHEAD = 28  # the same for an extent, whose node holds a page number in place of the data
_PAGE_ROOM = PAGE - PAGE_HEADER
_FRAGMENT_MIN = 64


def cut_payload(number: int, payload: bytes, room: int) -> tuple[list[tuple[bytes, bytes]], int]:
    """Cut stored bytes into an extent that fills whole pages of its own, and fragments that fill up leaf pages.

    One value per chunk would waste half a page each (5 % of a 40 KiB payload); fragments alone would cost 65 calls for
    128 KiB, each giving up the GIL. `room` is the number of bytes left in the last leaf page. Returns the (key, bytes)
    items and the room left after them, an estimate on which only the fill of pages depends.
    """
    items: list[tuple[bytes, bytes]] = []
    start = 0
    pages = (len(payload) + PAGE_HEADER) // PAGE
    if pages:
        start = pages * PAGE - PAGE_HEADER
        items.append((schema.FRAGMENT_KEY.pack(number, 0), payload[:start]))
        room -= EXTENT_OVERHEAD
    while start < len(payload):
        if room < _FRAGMENT_MIN + FRAGMENT_OVERHEAD:
            room = _PAGE_ROOM
        size = min(schema.FRAGMENT_MAX, (room - FRAGMENT_OVERHEAD) & ~1, len(payload) - start)
        items.append((schema.FRAGMENT_KEY.pack(number, len(items)), payload[start : start + size]))
        room -= FRAGMENT_OVERHEAD + size + (size & 1)
        start += size
    return items, room
