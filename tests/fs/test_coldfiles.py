"""The walk over cold blocks: files and trees, down to a depth, in slices, also in snapshots and past damage."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from nnfs.fs import coldfiles
from nnfs.fs.coldfiles import ColdFiles
from nnfs.store import schema
from nnfs.store.env import Store
from tests.fs.kit import (
    CHUNK,
    DIRECTORY,
    FILE,
    ROOT,
    SECOND,
    SUB,
    Maker,
    block_of,
    damage,
    dentry_key,
    noise,
    rewrite_header,
)

COLD = 16


@pytest.fixture
def tree(tmp_path: Path) -> Store:
    """/file with 70 chunks in two map nodes, /dir/second, /dir/sub/hard, the same file: all of it cold but a chunk."""
    store = Store.create(tmp_path / "store", CHUNK)
    with store.write() as txn:
        maker = Maker(txn, store)
        maker.folders()
        maker.inode(FILE, stat.S_IFREG | 0o644)
        maker.inode(SECOND, stat.S_IFREG | 0o644)
        maker.name(ROOT, b"file", FILE)
        maker.name(DIRECTORY, b"second", SECOND)
        maker.name(SUB, b"hard", SECOND)
        maker.content(FILE, {n: noise(n) for n in range(70)}, 70 * CHUNK)
        maker.content(SECOND, {0: noise(100), 1: noise(101, 5000)}, CHUNK + 5000)
        maker.finish()
    with store.write() as txn:
        for number in [*(block_of(txn, FILE, n) for n in range(69)), *(block_of(txn, SECOND, n) for n in range(2))]:
            rewrite_header(txn, number, codec=COLD)
    return store


def found(walk: ColdFiles) -> dict[tuple[int, bytes], int]:
    """Numbers of cold blocks by root and path."""
    counts: dict[tuple[int, bytes], int] = {}
    while (pieces := walk.next()) is not None:
        for piece in pieces:
            at = piece.root, piece.path
            counts[at] = counts.get(at, 0) + len(piece.blocks)
    return counts


def test_a_tree_is_visited_once(tree: Store) -> None:
    counts = found(ColdFiles(tree, [ROOT]))
    assert counts.pop((0, b"file")) == 69
    assert list(counts.values()) == [2], "a file of two names counts once"


@pytest.mark.parametrize(
    ("depth", "paths"), [(0, {b"file"}), (1, {b"file", b"dir/second"}), (2, {b"file", b"dir/second"})]
)
def test_no_deeper_than_wanted(tree: Store, depth: int, paths: set[bytes]) -> None:
    names = {path.replace(b"dir/sub/hard", b"dir/second") for _, path in found(ColdFiles(tree, [ROOT], depth))}
    assert names == paths


def test_files_and_directories_that_are_named(tree: Store) -> None:
    assert found(ColdFiles(tree, [SUB, 999, FILE])) == {(0, b"hard"): 2, (2, b""): 69}
    assert found(ColdFiles(tree, [])) == {}


def test_slices_go_on_where_the_last_one_has_ended(tree: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = found(ColdFiles(tree, [ROOT]))
    monkeypatch.setattr(coldfiles, "SLICE_BYTES", 1)
    monkeypatch.setattr(coldfiles, "WAITING", 1)
    walk = ColdFiles(tree, [ROOT])
    first = walk.next()
    assert first is not None
    assert [len(piece.blocks) for piece in first] in ([64], [2])
    rest = found(walk)
    rest[first[0].root, first[0].path] = rest.get((first[0].root, first[0].path), 0) + len(first[0].blocks)
    assert sorted(rest.values()) == sorted(whole.values())


def test_damage_is_passed_over(tree: Store) -> None:
    with tree.write() as txn:
        damage(txn, "block", schema.KEY.pack(block_of(txn, FILE, 3)))
        damage(txn, "dentry", dentry_key(tree, DIRECTORY, b"second"), byte=3)
    walk = ColdFiles(tree, [ROOT])
    assert found(walk) == {(0, b"file"): 68, (0, b"dir/sub/hard"): 2}
    assert walk.damaged == 2
