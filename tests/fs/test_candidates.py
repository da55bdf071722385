"""The walk that finds what recompression is to look at."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from nnfs.constants import Policy
from nnfs.fs import candidates
from nnfs.fs.candidates import Ages, Look, Piece, Walk
from nnfs.fs.policy import POLICY, Rules
from nnfs.store import schema
from nnfs.store.blocks import ChunkChanges
from nnfs.store.schema import Block, Inode
from tests.fs.test_apply import Files, chunk, chunks, damage, files

__all__ = ["files"]  # a fixture

MOUNT = Rules(Policy.AUTO)
S = 10**9
NOW, LATER = Look(now=True, rung=2), Look(now=False)


def everything(inode: Inode, rules: Rules, now: int) -> Look:
    return NOW


def fits(block: Block, rules: Rules) -> bool:
    return True


def pieces(
    files: Files,
    wanted: Callable[[Inode, Rules, int], Look | None] = everything,
    fits: Callable[[Block, Rules], bool] = fits,
    root: int = schema.ROOT_INO,
) -> list[Piece]:
    """All of a walk."""
    walk = Walk(files.store, root, MOUNT, wanted, fits)
    found: list[Piece] = []
    while (some := walk.next()) is not None:
        found += some
    assert walk.next() is None
    return found


def taken(found: list[Piece]) -> list[tuple[int, int]]:
    """(file, chunk) of all candidates."""
    return [(one.ino, one.chunk) for piece in found for one in piece.candidates]


def file(files: Files, name: bytes, *numbers: int, parent: int = schema.ROOT_INO) -> Inode:
    inode = files.names.create(parent, name, 0o100644, 0, 0, 0)
    inode.size = 1 << 40
    files.commit({inode.ino: ChunkChanges(chunks=chunks(*numbers))})
    return inode


def mkdir(files: Files, name: bytes, parent: int = schema.ROOT_INO) -> Inode:
    return files.names.create(parent, name, 0o040755, 0, 0, 0)


@pytest.mark.parametrize("looks", [2, 3, 10**9])
def test_every_chunk_once_whatever_the_slices(files: Files, looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()  # a slice ends when the clock has been looked at so often
    monkeypatch.setattr(candidates, "time", SimpleNamespace(monotonic=lambda: next(ticks), time_ns=time.time_ns))
    monkeypatch.setattr(candidates, "SLICE_S", looks)
    want = set()
    parent = schema.ROOT_INO
    for depth in range(5):
        for n in range(20):
            inode = file(files, b"f%d" % n, *range(n % 3), parent=parent)
            want |= {(inode.ino, at) for at in range(n % 3)}
        for n in range(3):
            mkdir(files, b"empty%d" % n, parent)
        parent = mkdir(files, b"d%d" % depth, parent).ino
    large = file(files, b"large", 0, 63, 64, 200, 5000, parent=parent)
    want |= {(large.ino, at) for at in (0, 63, 64, 200, 5000)}
    found = pieces(files)
    assert len(taken(found)) == len(want)
    assert set(taken(found)) == want
    ends = [piece for piece in found if piece.last]
    assert len(ends) == len({ino for ino, _ in want})
    for piece in ends:
        inode = files.fs.inode(piece.ino)
        assert (piece.proof, piece.ctime, piece.stored, piece.rung) == (inode.proof, inode.ctime, inode.stored, 2)


def test_a_file_of_two_names_is_found_once(files: Files) -> None:
    inode = file(files, b"one", 1, 2)
    files.names.link(inode.ino, mkdir(files, b"d").ino, b"two")
    files.commit()
    assert taken(pieces(files)) == [(inode.ino, 1), (inode.ino, 2)]


def test_from_a_directory_or_a_file_on(files: Files) -> None:
    folder = mkdir(files, b"d")
    inside, outside = file(files, b"f", 1, parent=folder.ino), file(files, b"g", 2)
    assert taken(pieces(files, root=folder.ino)) == [(inside.ino, 1)]
    assert taken(pieces(files, root=outside.ino)) == [(outside.ino, 2)]
    assert pieces(files, root=999) == []


def test_policies_on_the_way(files: Files) -> None:
    never, hot = mkdir(files, b"never"), mkdir(files, b"hot")
    files.names.xattrs.set(never, POLICY, b"never")
    files.names.xattrs.set(hot, POLICY, b"hot")
    file(files, b"f", 1, parent=never.ino)
    exempt = file(files, b"g", 2, parent=never.ino)
    files.names.xattrs.set(exempt, POLICY, b"cold")
    warm = file(files, b"h", 3, parent=hot.ino)
    found = {piece.ino: piece.rules.policy for piece in pieces(files)}
    assert found == {exempt.ino: Policy.COLD, warm.ino: Policy.HOT}


def test_what_is_not_wanted_is_passed_over_and_marks_are_taken_away(files: Files) -> None:
    no, later, yes = (file(files, name, n) for n, name in enumerate((b"no", b"later", b"yes"), start=1))
    looks = {no.ino: None, later.ino: LATER, yes.ino: NOW}
    found = pieces(files, lambda inode, rules, now: looks[inode.ino])
    assert taken(found) == [(yes.ino, 3)]
    assert {piece.ino: piece.rung for piece in found if piece.last} == {later.ino: 0, yes.ino: 2}


def test_blocks_that_do_not_fit(files: Files) -> None:
    inode = file(files, b"f", 1, 2, 3)
    [number] = files.fs.block_numbers(inode, 2, 2)
    with files.store.read() as snapshot:
        header = snapshot.get("block", schema.KEY.pack(number))
    assert header is not None
    wanted = Block.unpack(schema.KEY.pack(number), header).hash
    found = pieces(files, fits=lambda block, rules: block.hash == wanted)
    assert taken(found) == [(inode.ino, 2)]
    assert found[-1].stored == inode.stored == sum(len(chunk(n).payload) for n in (1, 2, 3))


@pytest.mark.parametrize("table", ["inode", "dentry", "map", "block"])
def test_damaged_records_are_passed_over(files: Files, table: str) -> None:
    folder = mkdir(files, b"d")
    bad, good = file(files, b"bad", 1, parent=folder.ino), file(files, b"good", 2, parent=folder.ino)
    with files.store.read() as snapshot:
        keys = {
            "inode": schema.KEY.pack(bad.ino),
            "dentry": next(
                key for key, record in snapshot.prefix("dentry", schema.KEY.pack(folder.ino)) if b"bad" in record
            ),
            "map": schema.KEY2.pack(bad.ino, 0),
            "block": schema.KEY.pack(files.fs.block_numbers(bad, 1, 1)[0]),
        }
    damage(files.store, table, keys[table])
    found = pieces(files)
    assert taken(found) == [(good.ino, 2)]
    assert [piece.ino for piece in found if piece.last] == [good.ino]  # what cannot be read is not settled


def test_what_is_removed_on_the_way(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "SLICE_S", 0.0)
    inodes = [file(files, b"f%d" % n, n) for n in range(5)]
    walk = Walk(files.store, schema.ROOT_INO, MOUNT, everything, fits)
    monkeypatch.setattr(candidates, "SLICE_S", 10.0)
    for n in range(5):
        files.names.unlink(schema.ROOT_INO, b"f%d" % n)
    files.commit()
    files.commit()
    assert all(files.store.read().get("inode", schema.KEY.pack(inode.ino)) is None for inode in inodes)
    assert walk.next() is None


def test_a_clock_that_was_ahead_does_not_keep_a_file_hot() -> None:
    ages = Ages(write=100 * S, read=1000 * S)
    inode = Inode(7, 0o100644, 0, 0, 10**6 * S)
    assert ages.cold(inode, 5000 * S)
    inode.atime = 4500 * S  # read when the clock was right again
    assert not ages.cold(inode, 5000 * S)
    assert ages.cold(inode, 5500 * S)


def test_ages() -> None:
    ages = Ages(write=100 * S, read=1000 * S)
    inode = Inode(7, 0o100644, 0, 0, 5000 * S)  # ctime, atime, btime
    assert not ages.cold(inode, 5099 * S)
    assert ages.cold(inode, 5100 * S)  # a file is born with an atime, which tells of no reading
    inode.atime = 5050 * S
    assert not ages.cold(inode, 6049 * S)
    assert ages.cold(inode, 6050 * S)
    inode.ctime = 6000 * S
    assert not ages.cold(inode, 6099 * S)
    for atime in (0, 10**6 * S):  # copied with its times; read in the future
        inode.atime = atime
        assert ages.cold(inode, 6100 * S)
