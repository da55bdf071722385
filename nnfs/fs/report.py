"""The answers of `df` and `stat`: the same from the daemon of a mounted store and from a store that is not mounted."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from nnfs import codec
from nnfs.errors import ModelMissing, RecordDamaged, StoreDamaged, UsageError
from nnfs.fs import quotareport
from nnfs.fs.trees import Tree, inode_in, map_nodes, proved, tree_of
from nnfs.store import schema, sealing
from nnfs.store.blocks import load_block
from nnfs.store.env import Store
from nnfs.store.fragments import PAGE
from nnfs.store.modelfiles import load_model, models
from nnfs.store.schema import Dentry, Inode, MapNode, State, Superblock, Total
from nnfs.store.txn import Snapshot, load_twice

KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symbolic link", stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket", stat.S_IFBLK: "block device", stat.S_IFCHR: "character device",
}  # fmt: skip


def codec_name(number: int) -> str:
    """Return the name of a codec, also of one that this version does not know."""
    return codec.NAMES.get(number, f"codec {number}")


def fingerprint(snapshot: Snapshot, model: int) -> str | None:
    """Return the fingerprint of a model in hexadecimal; None for codecs without a model and for damaged records."""
    if not model:
        return None
    try:
        return load_model(snapshot, model).fingerprint.hex()
    except ModelMissing:
        return None


def _codec_line(snapshot: Snapshot, number: int, model: int, chunks: int, plain: int, stored: int) -> dict[str, Any]:
    return {
        "codec": codec_name(number), "model": model, "fingerprint": fingerprint(snapshot, model),
        "chunks": chunks, "plain_bytes": plain, "stored_bytes": stored,
    }  # fmt: skip


def _on_disk(size: int) -> int:
    return -(-size // PAGE) * PAGE


def df_report(store: Store) -> dict[str, Any]:
    """Return bytes of the whole store as of its last commit: logical (of files), stored (payloads), physical (on disk).

    `physical_bytes` is what the store's files occupy; `model_bytes` is a part of that.
    """
    with store.read() as snapshot:
        state: State = load_twice(snapshot, schema.STATE_KEY, State.unpack)[0]
        codecs = []
        for key, record in snapshot.range("total", b""):
            total, (number, model) = Total.unpack(key, record), schema.TOTAL_KEY.unpack(key)
            if total.blocks:
                codecs.append(_codec_line(snapshot, number, model, total.blocks, total.plain, total.stored))
        model_bytes = sum(2 * _on_disk(model.size) for model in models(snapshot).values())
        limits = quotareport.lines(snapshot)
    lower = os.statvfs(store.place.here)
    return {
        "store": str(store.place.now()),
        "uuid": store.superblock.uuid.hex(),
        "chunk_size": store.superblock.chunk_size,
        "commit": state.commit,
        "inodes": state.inodes,
        "chunks": sum(line["chunks"] for line in codecs),
        "logical_bytes": state.logical,
        "plain_bytes": sum(line["plain_bytes"] for line in codecs),
        "stored_bytes": sum(line["stored_bytes"] for line in codecs),
        "physical_bytes": store.physical_bytes(),
        "model_bytes": model_bytes,
        "free_bytes": lower.f_bavail * lower.f_frsize,  # of the filesystem below
        "codecs": codecs,
        "quotas": limits,
    }


@dataclass(slots=True)
class _Tally:
    """Sums over the chunks of one or many files."""

    chunks: int = 0
    shared: int = 0
    damaged: int = 0
    codecs: Counter[tuple[int, int]] = field(default_factory=Counter)
    plain: Counter[tuple[int, int]] = field(default_factory=Counter)
    stored: Counter[tuple[int, int]] = field(default_factory=Counter)

    def add(self, snapshot: Snapshot, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.chunks += 1
            try:
                block = load_block(snapshot, number)
            except RecordDamaged:
                block = None
            if block is None:
                self.damaged += 1
                continue
            kind = (block.codec, block.model)
            self.shared += block.refs > 1
            self.codecs[kind] += 1
            self.plain[kind] += block.plain
            self.stored[kind] += block.stored


def _load(tree: Tree, ino: int) -> Inode:
    inode = inode_in(tree, ino)
    if inode is None:
        raise UsageError(f"inode {ino} is not in the store")
    return inode


def _below(tree: Tree, root: int) -> Iterator[Inode]:
    """Yield every inode below a directory once."""
    pending, seen = [root], {root}
    while pending:
        for key, record in proved(tree, _load(tree, pending.pop()), "dentry"):
            ino = Dentry.unpack(key, record).ino
            if ino not in seen:
                seen.add(ino)
                inode = _load(tree, ino)
                if stat.S_ISDIR(inode.mode):
                    pending.append(ino)
                yield inode


def _tally(snapshot: Snapshot, tree: Tree, inode: Inode, tally: _Tally) -> int:
    """Count a file's chunks. Return the number of damaged map nodes; all missing ones count as one."""
    damaged = total = 0
    try:
        for key, record in map_nodes(tree, inode.ino):
            total += sealing.checksum_of(record)
            try:
                tally.add(snapshot, MapNode.unpack(key, record).blocks.values())
            except StoreDamaged:
                damaged += 1
    except RecordDamaged:
        damaged += 1  # of a snapshot
    return damaged or total % (1 << 64) != inode.proof


def stat_report(snapshot: Snapshot, ino: int) -> dict[str, Any]:
    """Return chunks, codecs and bytes of a file, or of all below a directory. Raises `UsageError`, `StoreDamaged`."""
    superblock: Superblock = load_twice(snapshot, schema.SUPER_KEY, Superblock.unpack)[0]
    tree, number = tree_of(snapshot, ino)
    top = _load(tree, number)
    is_tree = stat.S_ISDIR(top.mode)
    tally, found, size, holes, damaged_nodes = _Tally(), 0, 0, 0, 0
    for inode in _below(tree, number) if is_tree else [top]:
        found += 1
        if not stat.S_ISREG(inode.mode):
            continue
        size += inode.size
        holes += -(-inode.size // superblock.chunk_size) - inode.count
        if not inode.count:
            continue
        damaged_nodes += _tally(snapshot, tree, inode, tally)
    return {
        "ino": ino,
        "type": KINDS.get(stat.S_IFMT(top.mode), "unknown"),
        "size": size if is_tree else top.size,
        "chunk_size": superblock.chunk_size,
        "chunks": tally.chunks,
        "holes": holes,
        "shared": tally.shared,
        "damaged": tally.damaged + damaged_nodes,
        "plain_bytes": sum(tally.plain.values()),
        "stored_bytes": sum(tally.stored.values()),
        **({"inodes": found} if is_tree else {}),
        "codecs": [
            _codec_line(snapshot, *kind, tally.codecs[kind], tally.plain[kind], tally.stored[kind])
            for kind in sorted(tally.codecs)
        ],
    }
