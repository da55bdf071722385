"""fsck --repair: what is lost is told, what is left is kept, and nothing is made up."""

from __future__ import annotations

import random
import stat

import pytest

from nnfs.codec.base import NEURAL
from nnfs.store import schema, sealing
from nnfs.store.blocks import load_block
from nnfs.store.env import Store
from nnfs.store.schema import Dentry, Inode
from nnfs.store.txn import Snapshot, WriteTxn
from tests.fs.brokenblocks import BROKEN_BLOCKS
from tests.fs.brokennames import BROKEN_NAMES
from tests.fs.kit import (
    CHUNK,
    COLOUR,
    DIRECTORY,
    FILE,
    MASK,
    ROOT,
    SECOND,
    SUB,
    block_of,
    check,
    damage,
    dentry_key,
    edit_block,
    edit_inode,
    kinds,
    payload_key,
    reload,
    remove_dentry,
    rewrite_header,
)
from tests.harness import FULL


def names_in(snapshot: Snapshot, directory: int) -> dict[bytes, int]:
    found = [Dentry.unpack(key, record) for key, record in snapshot.prefix("dentry", schema.inode_key(directory))]
    return {dentry.name: dentry.ino for dentry in found}


def test_what_has_no_name_is_found_again_in_lost_and_found(store: Store) -> None:
    with store.write() as txn:
        remove_dentry(txn, dentry_key(store, ROOT, b"file"))
        remove_dentry(txn, dentry_key(store, DIRECTORY, b"sub"))
    report = check(store, repair=True)
    assert any("/lost+found/#18" in note for note in report.notes)
    snapshot = store.read()
    home = names_in(snapshot, ROOT)[b"lost+found"]
    assert names_in(snapshot, home) == {b"#18": FILE, b"#17": SUB}
    assert set(names_in(snapshot, SUB)) == {b"hard", b"fifo"}
    record = snapshot.get("inode", schema.inode_key(home))
    assert record is not None
    inode = Inode.unpack(home, record)
    assert stat.S_IMODE(inode.mode) == 0o700
    assert inode.nlink == 3
    snapshot.close()
    with store.write() as txn:  # the next find goes to the same place
        remove_dentry(txn, dentry_key(store, ROOT, b"link"))
    check(store, repair=True)
    snapshot = store.read()
    assert set(names_in(snapshot, home)) == {b"#17", b"#18", b"#20"}
    snapshot.close()


def test_a_damaged_directory_keeps_its_place_and_its_files(store: Store) -> None:
    with store.write() as txn:
        damage(txn, "inode", schema.inode_key(DIRECTORY), byte=3)
    report = check(store, repair=True)
    assert report.exit_code == 1
    assert any("rebuilt as a directory" in note for note in report.notes)
    snapshot = store.read()
    assert names_in(snapshot, ROOT)[b"dir"] == DIRECTORY
    assert names_in(snapshot, DIRECTORY) == {b"sub": SUB, b"second": SECOND}
    record = snapshot.get("inode", schema.inode_key(DIRECTORY))
    assert record is not None
    inode = Inode.unpack(DIRECTORY, record)
    assert (inode.nlink, inode.aux, inode.mode) == (3, ROOT, stat.S_IFDIR | 0o700)
    snapshot.close()


def test_a_damaged_file_is_rebuilt_from_its_map(store: Store) -> None:
    with store.write() as txn:
        damage(txn, "inode", schema.inode_key(FILE), byte=3)
    assert check(store, repair=True).exit_code == 1
    snapshot = store.read()
    record = snapshot.get("inode", schema.inode_key(FILE))
    assert record is not None
    inode = Inode.unpack(FILE, record)
    assert inode.size == 200 * CHUNK + 100
    assert (inode.count, inode.nlink, inode.mode, inode.uid) == (3, 1, stat.S_IFREG | 0o600, 0)
    snapshot.close()


@pytest.mark.parametrize("name", ["xattr_lost", "xattr_damaged", "checksum_of_an_xattr_damaged"])
def test_a_lost_attribute_is_told(store: Store, name: str) -> None:
    with store.write() as txn:
        key = schema.inode_key(FILE) + b"user.shape"
        record = txn.get("inode", schema.inode_key(FILE))
        assert record is not None
        shape = schema.pack_xattr(key, b"round", 1)
        edit_inode(txn, FILE, xattrs=(Inode.unpack(FILE, record).xattrs + sealing.checksum_of(shape)) & MASK)
        txn.put("xattr", key, shape)
        BROKEN_NAMES[name][1](txn, store)
    found = check(store)
    assert {path for problem in found.problems for path in problem.paths} == {"/file"}
    repaired = check(store, repair=True)
    assert any("has lost" in note and str(FILE) in note for note in repaired.notes)
    assert (name == "xattr_lost") != any("user.colour" in note for note in repaired.notes)
    snapshot = store.read()
    record = snapshot.get("inode", schema.inode_key(FILE))
    assert [key for key, _ in snapshot.prefix("xattr", schema.inode_key(FILE))] == [key]
    snapshot.close()
    assert record is not None
    assert Inode.unpack(FILE, record).xattrs == sealing.checksum_of(shape)


def test_an_attribute_that_was_not_counted_is_kept(store: Store) -> None:
    with store.write() as txn:
        edit_inode(txn, FILE, xattrs=0)
    repaired = check(store, repair=True)
    assert not any("lost" in note for note in repaired.notes)
    snapshot = store.read()
    assert snapshot.get("xattr", COLOUR) is not None
    snapshot.close()


def test_every_file_that_shares_a_damaged_block_is_named(store: Store) -> None:
    with store.write() as txn:
        damage(txn, "payload", payload_key(txn, FILE, 0), byte=20)
    problem = next(problem for problem in check(store).problems if problem.kind == "data")
    first, second = sorted(problem.paths)
    assert first in ("/dir/second at 0", "/dir/sub/hard at 0")
    assert second == "/file at 0"


def test_only_data_finds_content_under_a_wrong_hash(store: Store) -> None:
    with store.write() as txn:
        number = block_of(txn, FILE, 2)
        block = load_block(txn, number)
        assert block is not None
        txn.delete("hash", block.hash[:16])
        edit_block(txn, number, hash=bytes(64))
        txn.put("hash", bytes(16), schema.KEY.pack(number))
    assert check(store).problems == []
    report = check(store, data=True)
    assert kinds(report) == {"data"}
    assert "BLAKE2b" in report.problems[0].message
    assert check(store, data=True, repair=True).exit_code == 4


def test_references_are_not_lowered_while_a_map_is_uncertain(store: Store) -> None:
    with store.write() as txn:
        number = block_of(txn, FILE, 2)
        txn.delete("map", schema.KEY2.pack(FILE, 0))
    report = check(store, repair=True)
    assert report.exit_code == 4
    assert any("kept as they are" in note for note in report.notes)
    snapshot = store.read()
    block = load_block(snapshot, number)
    snapshot.close()
    assert block is not None
    assert block.refs == 1


def test_many_things_broken_at_once(store: Store) -> None:
    broken = BROKEN_NAMES | BROKEN_BLOCKS
    with store.write() as txn:
        for name in ("link_count_of_a_file", "dentry_lost", "references_too_high", "total_lost", "inode_number_count"):
            broken[name][1](txn, store)
        broken["directory_within_itself"][1](txn, store)
        damage(txn, "inode", schema.inode_key(FILE), byte=1)
    reload(store)
    assert check(store, repair=True).exit_code == 1
    assert check(store, data=True).problems == []


def test_a_lost_model_is_told_once_with_all_that_needs_it(store: Store) -> None:
    with store.write() as txn:
        for chunk in (0, 2):
            rewrite_header(txn, block_of(txn, FILE, chunk), codec=NEURAL, model=3)
    [problem] = check(store, data=True).problems
    assert problem.kind == "model"
    assert problem.message.startswith("model 3 is not in the store (nnfs model add PATH FILE ")
    assert problem.message.endswith("; 2 blocks need it")
    assert {"/file at 0", f"/file at {2 * CHUNK}"} < set(problem.paths)


def test_what_may_be_a_lost_model_is_kept(store: Store) -> None:
    """Its record is gone, so its file belongs to nothing: a repair must not sweep it up."""
    with store.write() as txn:
        number = store.state.next_number
        txn.put("payload", schema.FRAGMENT_KEY.pack(number, 0), b"what may be a model")
        store.state.next_number += 1
        txn.put_state(store.state)
        rewrite_header(txn, block_of(txn, FILE, 2), codec=NEURAL, model=3)
    assert check(store, repair=True).exit_code == 4
    snapshot = store.read()
    assert snapshot.payload(number, 100) == b"what may be a model"
    snapshot.close()


TABLES = ("inode", "dentry", "xattr", "map", "block", "payload", "hash", "total", "orphan")


def everything(snapshot: Snapshot) -> dict[str, list[tuple[bytes, bytes]]]:
    return {table: list(snapshot.range(table, b"")) for table in TABLES}


def break_at_random(txn: WriteTxn, draw: random.Random) -> None:
    """Flip, delete, move or swap some record of some table."""
    table = draw.choice(TABLES)
    records = list(txn.range(table, b""))
    if not records:
        return
    key, record = draw.choice(records)
    how = draw.randrange(4)
    if how == 0:
        damage(txn, table, key, draw.randrange(len(record)))
    elif how == 1:
        txn.delete(table, key)
    elif how == 2:
        txn.put(table, draw.choice(records)[0], record)
    else:
        txn.delete(table, key)
        txn.put(table, draw.randbytes(len(key)), record)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(400 if FULL else 40))
def test_random_damage_never_confuses_a_repair(store: Store, seed: int) -> None:
    draw = random.Random(seed)
    with store.write() as txn:
        before = everything(txn)
        for _ in range(draw.choice((1, 1, 2, 5))):
            break_at_random(txn, draw)
        after = everything(txn)
    assert bool(check(store, data=True).problems) == (after != before)
    first = check(store, data=True, repair=True)
    again = check(store, data=True, repair=True)
    assert not any(problem.fixed for problem in again.problems), [p.message for p in again.problems if p.fixed]
    assert {p.message for p in again.problems} <= {p.message for p in first.problems if not p.fixed}
