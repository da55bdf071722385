"""The figures of `nnfs snapshot list`: what each snapshot alone holds, and what was written since."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from nnfs.errors import StoreDamaged
from nnfs.store import keeper, moments, schema
from nnfs.store.blocks import load_block
from nnfs.store.moments import PAST, Moment
from nnfs.store.schema import MapNode
from nnfs.store.txn import Snapshot


def listed(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Return the snapshots, oldest first, with their figures. It reads all kept map nodes: call it in a thread.

    `only_here_bytes` are the stored bytes that deleting just this snapshot would free; `written_since_bytes` the plain
    bytes that files have now and had not then.
    """
    known = moments.load(snapshot)
    since = _written_since(snapshot, known)
    return [
        {
            "name": os.fsdecode(moment.name),
            "created": moment.created / 1e9,
            "commit": moment.taken,
            "inodes": moment.inodes,
            "logical_bytes": moment.logical,
            "only_here_bytes": _only_here(snapshot, moment, known[place - 1] if place else None),
            "written_since_bytes": since[moment.number],
            "deleting": moment.deleting,
        }
        for place, moment in enumerate(known)
    ]


def told(known: Sequence[Moment]) -> dict[str, Any]:
    """Return what `nnfs status` says of the snapshots, which are in order: it reads nothing."""
    there = [moment for moment in known if not moment.deleting]
    newest = there[-1] if there else None
    return {
        "count": len(there),
        "deleting": len(known) - len(there),
        "newest": os.fsdecode(newest.name) if newest is not None else None,
        "since": newest.created / 1e9 if newest is not None else None,
    }


def _only_here(snapshot: Snapshot, moment: Moment, older: Moment | None) -> int:
    """Return the stored bytes of the blocks that nothing but this snapshot names."""
    found: Counter[int] = Counter()
    low = schema.KEY.pack(moment.number << schema.INO_BITS)
    for key, record in snapshot.range("map", low):
        if key[:2] != low[:2]:
            break
        try:
            if not keeper.is_needed(snapshot, "map", key, record, older):
                found.update(MapNode.unpack(key, record).blocks.values())
        except StoreDamaged:
            continue
    total = 0
    for number, count in found.items():
        try:
            block = load_block(snapshot, number)
        except StoreDamaged:
            continue
        if block is not None and block.refs == count:
            total += block.stored
    return total


def _written_since(snapshot: Snapshot, known: tuple[Moment, ...]) -> dict[int, int]:
    """Return for each snapshot the plain bytes of the live chunks that it has not."""
    totals = dict.fromkeys((moment.number for moment in known), 0)
    if not known:
        return totals
    kept = _kept_nodes(snapshot)
    for key, record in snapshot.range("map", b"", schema.KEY.pack(PAST)):
        if moments.commit_of("map", record) <= known[0].taken:
            continue
        try:
            now = MapNode.unpack(key, record).blocks
            plain = {number: _plain(snapshot, number) for number in now.values()}
            then: dict[int, int] = now
            commit = moments.commit_of("map", record)
            for moment in reversed(known):
                if moment.number in kept.get(key, ()):
                    found = moments.at(moment.number, key)
                    older = snapshot.get("map", found) or b""
                    then, commit = MapNode.unpack(found, older).blocks, moments.commit_of("map", older)
                blocks = then if commit <= moment.taken else {}
                totals[moment.number] += sum(plain[n] for slot, n in now.items() if blocks.get(slot) != n)
        except StoreDamaged:
            continue
    return totals


def _kept_nodes(snapshot: Snapshot) -> dict[bytes, set[int]]:
    """Return the numbers of the snapshots that keep a map node, by its live key."""
    found: dict[bytes, set[int]] = defaultdict(set)
    for key, _ in snapshot.range("map", schema.KEY.pack(PAST)):
        found[moments.at(0, key)].add(int.from_bytes(key[:2], "big"))
    return found


def _plain(snapshot: Snapshot, number: int) -> int:
    block = load_block(snapshot, number)
    return 0 if block is None else block.plain
