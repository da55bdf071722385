"""The answer of `nnfs snapshot diff`: what has changed between two snapshots, or since one.

Only inodes that have changed are looked at: they have kept records, or higher numbers than the earlier snapshot knows.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nnfs.fs.metadata import PASSING
from nnfs.fs.pastpaths import path_in
from nnfs.store import schema
from nnfs.store.moments import INO_MASK, PAST, Moment, Past
from nnfs.store.schema import Dentry, Inode
from nnfs.store.txn import Snapshot

TIMES = ("mtime", "ctime")
DERIVED = (*PASSING, "flags", "count", "proof", "nlink", "size", "target", *TIMES)
ATTRIBUTES = tuple(name for name in Inode.__slots__ if name not in DERIVED)  # mode, owner, xattrs, device

Names = dict[int, tuple[int, bytes]]  # inode to a directory and its name there


@dataclass(slots=True)
class _Changes:
    """The names that the two trees have and the other one has not: inode to (directory, name), in both."""

    gone: dict[int, list[tuple[int, bytes]]] = field(default_factory=lambda: defaultdict(list))
    new: dict[int, list[tuple[int, bytes]]] = field(default_factory=lambda: defaultdict(list))


def diff(snapshot: Snapshot, known: tuple[Moment, ...], before: Past, after: Past) -> Iterator[dict[str, Any]]:
    """Yield the changes from one tree to a later one, by path. Raises `StoreDamaged`.

    `change` is `added`, `removed`, `renamed` (with `to`), `content` or `attributes`; paths have no slash before them.
    """
    inodes = sorted(_changed(snapshot, known, before, after))
    names = _changed_names(before, after, inodes)
    both = {ino for ino in names.gone if ino in names.new}
    sought = {ino for ino in inodes if ino not in names.new}
    of_files = _find_names(snapshot, after, sought)
    of_files.update({ino: places[0] for ino, places in names.new.items()})
    for ino, places in names.gone.items():
        for place in places if ino not in both else places[len(names.new[ino]) :]:
            yield _line("removed", _path(before, *place), before.inode(ino))
    for ino, places in names.new.items():
        old = names.gone.get(ino, [])
        for number, place in enumerate(places):
            if number < len(old):
                line = _line("renamed", _path(before, *old[number]), after.inode(ino))
                yield {**line, "to": _path(after, *place)}
            else:
                yield _line("added", _path(after, *place), after.inode(ino))
    for ino in inodes:
        one, other = before.inode(ino), after.inode(ino)
        if one is None or other is None:
            continue
        path = path_in(after, ino, of_files)
        if path is None:
            continue  # it has no name
        shown = os.fsdecode(path)
        if not stat.S_ISDIR(one.mode) and (one.proof, one.size, one.target) != (other.proof, other.size, other.target):
            yield {**_line("content", shown, other), "size_before": one.size}
        if any(getattr(one, name) != getattr(other, name) for name in ATTRIBUTES):
            yield _line("attributes", shown, other)


def _line(change: str, path: str, inode: Inode | None) -> dict[str, Any]:
    is_dir = inode is not None and stat.S_ISDIR(inode.mode)
    size = 0 if inode is None or is_dir else inode.size
    return {"change": change, "path": path, "directory": is_dir, "size": size}


def _path(past: Past, directory: int, name: bytes) -> str:
    above = path_in(past, directory, {})
    return os.fsdecode(b"?/" + name if above is None else above + b"/" + name if above else name)


def _changed(snapshot: Snapshot, known: tuple[Moment, ...], before: Past, after: Past) -> set[int]:
    """Return the inodes that may differ between two trees."""
    found: set[int] = set()
    for moment in known:
        low, high = moment.number << schema.INO_BITS, (moment.number + 1) << schema.INO_BITS
        if before.moment.taken <= moment.taken < after.moment.taken:
            first = low
        elif moment.taken >= after.moment.taken:
            first = low | before.moment.next_ino  # of these only what is new
        else:
            continue
        found |= _numbers(snapshot, first, high)
    return found | _numbers(snapshot, before.moment.next_ino, PAST)


def _numbers(snapshot: Snapshot, low: int, high: int) -> set[int]:
    end = schema.KEY.pack(high) if high < 1 << 64 else None
    return {schema.KEY.unpack(key)[0] & INO_MASK for key, _ in snapshot.range("inode", schema.KEY.pack(low), end)}


def _changed_names(before: Past, after: Past, inodes: list[int]) -> _Changes:
    """Compare the names of the directories among some inodes."""
    changes = _Changes()
    for ino in inodes:
        old, new = _names_in(before, ino), _names_in(after, ino)
        for name, target in old.items():
            if new.get(name) != target:
                changes.gone[target].append((ino, name))
        for name, target in new.items():
            if old.get(name) != target:
                changes.new[target].append((ino, name))
    return changes


def _names_in(past: Past, ino: int) -> dict[bytes, int]:
    inode = past.inode(ino)
    if inode is None or not stat.S_ISDIR(inode.mode) or not inode.nlink:
        return {}
    return {(found := Dentry.unpack(key, record)).name: found.ino for key, record in past.proved("dentry", inode)}


def _find_names(snapshot: Snapshot, past: Past, sought: set[int]) -> Names:
    """Return a name of each of some inodes, from a scan over all names."""
    names: Names = {}
    if not sought:
        return names
    for key, record in snapshot.range("dentry", b""):
        ino = int.from_bytes(record[:8], "big")
        if ino not in sought or ino in names:
            continue
        place = schema.KEY.pack(schema.KEY2.unpack(key)[0] & INO_MASK) + key[8:]
        seen = past.get("dentry", place)
        if seen is not None and (found := Dentry.unpack(place, seen)).ino == ino:
            names[ino] = schema.KEY2.unpack(place)[0], found.name
    return names
