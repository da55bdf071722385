"""fsck: each invariant, broken by hand in a small store, is found; what can be repaired is, and stays so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnfs.errors import NotAStore, StoreBusy, UsageError
from nnfs.store import schema
from nnfs.store.blocks import load_block
from nnfs.store.env import Store
from nnfs.store.schema import Block, Inode, State
from tests.fs.brokenblocks import (
    BROKEN_BLOCKS,
    LASTING,
    payload_damaged,
)
from tests.fs.brokennames import BROKEN_NAMES
from tests.fs.kit import (
    FILE,
    ROOT,
    SECOND,
    SUB,
    block_of,
    check,
    dentry_key,
    edit_block,
    edit_inode,
    edit_state,
    kinds,
    make_store,
    reload,
    remove_dentry,
    run,
)

REPAIRABLE = BROKEN_NAMES | BROKEN_BLOCKS


def test_a_sound_store_is_clean(store: Store) -> None:
    report = check(store, data=True)
    assert report.problems == []
    assert report.notes == []
    assert report.exit_code == 0
    assert report.counts["inode"] == 7
    assert report.counts["dentry"] == 7
    assert report.counts["map"] == 3


def test_repair_changes_nothing_in_a_sound_store(store: Store) -> None:
    before = store.state.commit
    assert check(store, repair=True).exit_code == 0
    assert store.state.commit == before


@pytest.mark.parametrize("name", REPAIRABLE)
def test_found_and_repaired(store: Store, name: str) -> None:
    kind, broken = REPAIRABLE[name]
    with store.write() as txn:
        broken(txn, store)
    reload(store)
    found = check(store)
    assert kind in kinds(found), found.as_dict()
    assert found.exit_code == 4
    assert not any(problem.fixed for problem in found.problems)
    repaired = check(store, repair=True)
    assert kind in {problem.kind for problem in repaired.problems if problem.fixed}
    assert repaired.exit_code == 1, repaired.as_dict()
    again = check(store, data=True)
    assert again.problems == [], again.as_dict()


@pytest.mark.parametrize("name", LASTING)
def test_found_named_and_left_alone(store: Store, name: str) -> None:
    kind, broken = LASTING[name]
    with store.write() as txn:
        broken(txn, store)
    found = check(store)
    assert kind in kinds(found), found.as_dict()
    assert found.exit_code == 4
    if name not in ("model_damaged", "codec_unknown", "neural_without_a_model"):
        assert any("/file" in path for problem in found.problems for path in problem.paths), found.as_dict()
    for _ in range(2):
        repaired = check(store, repair=True)
        assert repaired.exit_code == 4
        assert kind in {problem.kind for problem in repaired.problems if not problem.fixed}
    snapshot = store.read()
    number = block_of(snapshot, SECOND, 0)
    block = load_block(snapshot, number)
    snapshot.close()
    assert block is not None, "a block that a sound file needs was dropped"


def test_orphans_are_a_note(store: Store) -> None:
    with store.write() as txn:
        key = schema.inode_key(FILE)
        remove_dentry(txn, dentry_key(store, ROOT, b"file"))
        edit_inode(txn, FILE, nlink=0)
        txn.put("orphan", key, schema.pack_orphan(key, 1))
    report = check(store)
    assert report.problems == []
    assert report.exit_code == 0
    assert "1 inodes without names" in report.notes[0]


def test_run_opens_checks_and_closes(tmp_path: Path) -> None:
    make_store(tmp_path / "s").close()
    assert run(tmp_path / "s", data=True).exit_code == 0
    Store.open(tmp_path / "s").close()


def test_run_refuses_what_it_cannot_check(tmp_path: Path) -> None:
    with pytest.raises(NotAStore):
        run(tmp_path)
    store = make_store(tmp_path / "s")
    with pytest.raises(StoreBusy):
        run(tmp_path / "s")
    store.close()


def test_unknown_features_are_not_repaired(store: Store) -> None:
    store.superblock.ro_compat = 1 << 40
    with pytest.raises(UsageError):
        check(store, repair=True)


def test_the_report_is_json(store: Store) -> None:
    with store.write() as txn:
        txn.put("dentry", dentry_key(store, SUB, b"\xff\n"), b"?")
        payload_damaged(txn, store)
    answer = json.loads(json.dumps(check(store).as_dict()))
    assert answer["exit_code"] == 4
    assert not answer["clean"]
    assert {"kind", "message", "fixed", "fixable", "inodes", "paths"} == set(answer["errors"][0])


def test_block_headers_of_other_payload_numbers_are_followed(store: Store) -> None:
    """Recompression leaves such headers: the payload lies under a new number."""
    with store.write() as txn:
        number = block_of(txn, FILE, 2)
        block = load_block(txn, number)
        assert block is not None
        payload = txn.payload(block.payload, block.stored)
        txn.delete_prefix("payload", schema.KEY.pack(block.payload))
        new = store.state.next_number
        txn.put("payload", schema.FRAGMENT_KEY.pack(new, 0), payload[:2020])
        for n, start in enumerate(range(2020, len(payload), 2020), start=1):
            txn.put("payload", schema.FRAGMENT_KEY.pack(new, n), payload[start : start + 2020])
        edit_block(txn, number, payload=new)
        store.state.next_number += 1
        txn.put_state(store.state)
    assert check(store, data=True).problems == []


def test_marks_of_recompression_are_no_errors(store: Store) -> None:
    """Blocks that were tried, files that are settled, a store that is not, and estimates of what files occupy."""
    with store.write() as txn:
        edit_block(txn, block_of(txn, FILE, 2), flags=Block.FLAG_TRIED)
        edit_inode(txn, FILE, flags=Inode.FLAG_SETTLED, stored=12345)
        edit_state(txn, flags=State.FLAG_UNSETTLED)
        txn.put("meta", schema.SCRUB_KEY, schema.Scrub(1, 0, 2).pack())
    reload(store)
    assert check(store, data=True).problems == []


def test_unknown_flags_are_told(store: Store) -> None:
    with store.write() as txn:
        edit_block(txn, block_of(txn, FILE, 2), flags=0x82)
    assert kinds(check(store)) == {"block"}
