"""The tree as a report shows it: its large parts, files by codec, policies."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from nnfs.constants import POLICY_XATTR
from nnfs.errors import StoreDamaged
from nnfs.fs import treesummary
from nnfs.fs.treesummary import tree_summary
from nnfs.store import schema
from nnfs.store.env import Store
from tests.fs.kit import CHUNK, DIRECTORY, FILE, ROOT, SECOND, SUB, Maker, block_of, damage, noise, text

POLICY = os.fsencode(POLICY_XATTR)


def ask(store: Store, stored: int = 0) -> dict[str, Any]:
    with store.read() as snapshot:
        return tree_summary(snapshot, stored)


def named(node: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in node["children"]}


def test_a_tree_of_everything(store: Store) -> None:
    found = ask(store)
    root = found["tree"]
    assert (root["files"], root["inodes"], root["damaged"]) == (2, 7, 0)
    assert root["logical_bytes"] == 200 * CHUNK + 100 + CHUNK + 5000
    below = named(root)
    assert below.keys() == {"dir", "file"}
    assert (below["dir"]["files"], below["dir"]["is_directory"], below["file"]["is_directory"]) == (1, True, False)
    assert root["stored_bytes"] == below["dir"]["stored_bytes"] + below["file"]["stored_bytes"]
    assert found["files_by_codec"] == {"raw": 2, "zstd": 2}, "each file has a chunk of noise and one of text"
    assert (found["policies"], found["more_policies"], found["damaged_files"]) == ([], False, 0)


def make(path: Path, files: int) -> Store:
    """A store with a large file, many small ones in a directory, and directories in one another."""
    store = Store.create(path, CHUNK)
    with store.write() as txn:
        maker = Maker(txn, store)
        maker.inode(DIRECTORY, stat.S_IFDIR | 0o755)
        maker.name(ROOT, b"many", DIRECTORY)
        for number in range(files):
            maker.inode(100 + number, stat.S_IFREG | 0o644)
            maker.name(DIRECTORY, b"f%d" % number, 100 + number)
            maker.content(100 + number, {0: noise(number, 1000)}, 1000)
        maker.inode(FILE, stat.S_IFREG | 0o644)
        maker.name(ROOT, b"big\xff", FILE)
        maker.content(FILE, {n: noise(n) for n in range(files)}, files * CHUNK)
        maker.finish()
    return store


def test_what_is_too_small_to_be_seen_has_no_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(treesummary, "SHARE", 100)
    with_many = make(tmp_path / "store", 30)
    found = named(ask(with_many)["tree"])
    assert found.keys() == {"many", "big\udcff"}
    assert found["many"]["files"] == 30
    assert not found["many"]["children"]
    assert found["big\udcff"]["stored_bytes"] == 30 * CHUNK
    assert not named(ask(with_many, stored=1 << 40)["tree"]), "of a store in which others take more"
    with_many.close()


def test_policies_are_told_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.create(tmp_path / "store", CHUNK)
    with store.write() as txn:
        maker = Maker(txn, store)
        maker.folders()
        maker.inode(FILE, stat.S_IFREG | 0o644)
        maker.name(SUB, b"file", FILE)
        maker.content(FILE, {0: text(1)}, CHUNK)
        for ino, value in ((ROOT, b"cold"), (DIRECTORY, b"auto"), (SUB, b"no policy"), (FILE, b"hot")):
            maker.xattr(ino, POLICY, value)
        maker.xattr(SUB, b"user.colour", b"blue")
        maker.finish()
    assert ask(store)["policies"] == [
        {"path": "", "policy": "cold"}, {"path": "dir", "policy": "auto"}, {"path": "dir/sub/file", "policy": "hot"},
    ]  # fmt: skip
    monkeypatch.setattr(treesummary, "POLICIES", 2)
    found = ask(store)
    assert (len(found["policies"]), found["more_policies"]) == (2, True)
    store.close()


def test_damage_is_counted_and_passed_over(store: Store) -> None:
    with store.write() as txn:
        damage(txn, "inode", schema.inode_key(SECOND))
        damage(txn, "block", schema.KEY.pack(block_of(txn, FILE, 2)))
    found = ask(store)
    assert (found["tree"]["damaged"], found["damaged_files"]) == (2, 1), "the inode has two names"
    with store.write() as txn:
        txn.delete("inode", schema.inode_key(ROOT))
    with pytest.raises(StoreDamaged):
        ask(store)
