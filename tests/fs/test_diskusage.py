"""The sums of `nnfs du`, on the small store of every kind of thing."""

from __future__ import annotations

from typing import Any

import pytest

from nnfs.errors import UsageError
from nnfs.fs.diskusage import usage
from nnfs.store import schema
from nnfs.store.env import Store
from tests.fs.kit import CHUNK, DIRECTORY, FILE, LINK, ROOT, SECOND, SUB, Maker, damage, dentry_key, edit_inode

SIZES = {FILE: 200 * CHUNK + 100, SECOND: CHUNK + 5000}


def ask(store: Store, ino: int = ROOT, depth: int = 9) -> dict[str, dict[str, Any]]:
    with store.read() as snapshot:
        lines = usage(snapshot, ino, depth)
    assert lines[-1]["path"] == ""
    return {line.pop("path"): line for line in lines}


def stored(store: Store, ino: int) -> int:
    with store.read() as snapshot:
        record = snapshot.get("inode", schema.inode_key(ino))
    assert record is not None
    return schema.Inode.unpack(ino, record).stored


def test_directories_have_the_sums_of_what_is_below(store: Store) -> None:
    found = ask(store)
    assert list(found) == ["dir/sub", "dir", ""]
    assert found[""]["inodes"] == 7
    assert found[""]["logical_bytes"] == sum(SIZES.values())
    assert found[""]["stored_bytes"] == stored(store, FILE) + stored(store, SECOND)
    assert found["dir"]["logical_bytes"] == SIZES[SECOND], "it has two names there, and counts once"
    assert found["dir"]["stored_bytes"] == stored(store, SECOND)
    assert all(line["damaged"] == 0 for line in found.values())


def test_depth_hides_lines_and_changes_no_sum(store: Store) -> None:
    whole = ask(store)
    assert list(ask(store, depth=1)) == ["dir", ""]
    assert ask(store, depth=0) == {"": whole[""]}
    assert ask(store, DIRECTORY)[""] == whole["dir"]


def test_a_file_and_a_link(store: Store) -> None:
    assert ask(store, FILE)[""] == {
        "inodes": 1, "logical_bytes": SIZES[FILE], "stored_bytes": stored(store, FILE), "damaged": 0,
    }  # fmt: skip
    assert ask(store, LINK)[""]["logical_bytes"] == 0
    with pytest.raises(UsageError, match="inode 999 is not in the store"):
        ask(store, 999)


def test_damage_is_counted_and_passed_over(store: Store) -> None:
    with store.write() as txn:
        damage(txn, "inode", schema.inode_key(FILE))
    found = ask(store)
    assert (found[""]["damaged"], found[""]["logical_bytes"]) == (1, SIZES[SECOND])
    with store.write() as txn:
        damage(txn, "dentry", dentry_key(store, DIRECTORY, b"sub"))
    found = ask(store)
    assert found["dir"]["damaged"] >= 1
    assert found[""]["damaged"] == found["dir"]["damaged"] + 1


def test_a_missing_name_is_damage(store: Store) -> None:
    with store.write() as txn:
        edit_inode(txn, SUB, proof=1)
    assert ask(store)["dir/sub"]["damaged"] == 1


def test_a_loop_ends(store: Store) -> None:
    with store.write() as txn:
        maker = Maker(txn, store)
        for ino in (DIRECTORY, SUB):
            record = txn.get("inode", schema.inode_key(ino))
            assert record is not None
            maker.inodes[ino] = schema.Inode.unpack(ino, record)
        maker.name(SUB, b"loop", DIRECTORY)
        maker.finish()
    assert list(ask(store)) == ["dir/sub", "dir", ""]


def test_names_are_bytes(store: Store) -> None:
    with store.write() as txn:
        maker = Maker(txn, store)
        maker.inode(500, 0o040755)
        maker.name(ROOT, b"\xff\n", 500)
        maker.finish()
    assert "\udcff\n" in ask(store)
