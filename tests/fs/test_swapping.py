"""Amendments of recompression: payloads swapped under their numbers, marks, models kept and dropped."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nnfs.codec.base import CM, NEURAL
from nnfs.constants import DATA_FILE
from nnfs.errors import ModelMissing, UsageError
from nnfs.fs import fsck, swapping
from nnfs.fs.backup import backup
from nnfs.fs.swapping import Settled
from nnfs.store import modelfiles, schema
from nnfs.store.blocks import ChunkChanges, Recode, load_block
from nnfs.store.env import Store
from nnfs.store.schema import Block, Inode, Model, State, Total
from tests.fs.test_apply import Files, chunk, chunks, damage, files

__all__ = ["files"]  # a fixture

A, B = b"A" * 64, b"B" * 64
FILE_A, FILE_B = b"weights of A " * 1000, b"weights of B " * 700


def keep(files: Files, fingerprint: bytes = A, data: bytes = FILE_A, base: bytes | None = None, **how: Any) -> int:
    return files.amend(partial(swapping.keep_model, fingerprint=fingerprint, data=data, base=base, now=7, **how))


def retire(files: Files, number: int) -> None:
    files.amend(partial(swapping.retire_model, number=number))


def drop(files: Files) -> list[int]:
    """Drop the models that nothing needs."""
    with files.store.read() as snapshot:
        idle = swapping.idle_models(snapshot)
    return files.amend(partial(swapping.drop_models, idle=idle))


def written(files: Files, *numbers: int) -> Inode:
    inode = files.create(b"f")
    files.commit({inode.ino: ChunkChanges(chunks=chunks(*numbers))})
    return inode


def swap(files: Files, inode: Inode, at: int, codec: int = CM, model: int = 0, data: bytes | None = b"small") -> Any:
    [number] = files.fs.block_numbers(inode, at, at)
    with files.store.read() as snapshot:
        block = load_block(snapshot, number)
    assert block is not None
    one = Recode(number, block.payload, (inode.ino, at), codec, model, data)
    return files.amend(partial(swapping.recode, recodes=[one]))[0]


def block_at(files: Files, inode: Inode, at: int) -> Block:
    with files.store.read() as snapshot:
        block = load_block(snapshot, files.fs.block_numbers(inode, at, at)[0])
    assert block is not None
    return block


def checked(files: Files) -> None:
    """Every invariant but for the content of cold blocks, which these tests make up."""
    report = fsck.check(files.store, data=False, repair=False, progress=lambda *_: None)
    assert not report.problems, report.problems


def test_a_swap_changes_the_block_and_what_its_file_occupies(files: Files) -> None:
    inode = written(files, 3, 4)
    before, old = inode.stored, block_at(files, inode, 3)
    assert swap(files, inode, 3) == 5 - old.stored
    new = block_at(files, inode, 3)
    assert (new.codec, new.stored, new.plain, new.hash, new.refs) == (CM, 5, old.plain, old.hash, old.refs)
    assert new.payload != old.payload
    assert inode.stored == before + 5 - old.stored
    with files.store.read() as snapshot:
        assert snapshot.payload(new.payload, 5) == b"small"
        assert snapshot.payload(old.payload, 5) == b""
    checked(files)


def test_a_block_that_has_changed_meanwhile_stays(files: Files) -> None:
    inode = written(files, 3)
    old = block_at(files, inode, 3)
    [number] = files.fs.block_numbers(inode, 3, 3)
    swap(files, inode, 3)
    stale = Recode(number, old.payload, (inode.ino, 3), CM, 0, b"late")
    assert files.amend(partial(swapping.recode, recodes=[stale])) == [None]
    gone = Recode(12345, 12345, (inode.ino, 3), CM, 0, b"late")
    assert files.amend(partial(swapping.recode, recodes=[gone])) == [None]
    checked(files)


def test_a_block_freed_in_the_same_commit_stays_free(files: Files) -> None:
    inode = written(files, 3)
    old = block_at(files, inode, 3)
    [number] = files.fs.block_numbers(inode, 3, 3)
    one = Recode(number, old.payload, (inode.ino, 3), CM, 0, b"late")
    results: list[Any] = []
    cut = {inode.ino: ChunkChanges(cut=0)}
    files.commit(cut, lambda work: results.append(swapping.recode(work, [one])))
    assert results == [[None]]
    checked(files)
    assert files.store.entries("payload") == 0


def test_nothing_smaller_is_remembered_until_the_payload_changes(files: Files) -> None:
    inode = written(files, 3)
    assert swap(files, inode, 3, data=None) == 0
    assert block_at(files, inode, 3).flags == Block.FLAG_TRIED
    swap(files, inode, 3)
    assert block_at(files, inode, 3).flags == 0
    checked(files)


def test_a_shared_block_is_told_to_one_file_only(files: Files) -> None:
    """The other one's figure is an estimate, and no error."""
    inode = written(files, 3)
    other = files.create(b"g")
    files.commit({other.ino: ChunkChanges(chunks={9: chunk(3)})})
    before = other.stored
    swap(files, inode, 3)
    assert (inode.stored, other.stored) == (5, before)
    checked(files)


def test_a_settled_file_is_so_until_it_changes(files: Files) -> None:
    inode = written(files, 3)
    files.amend(partial(swapping.settle, files=[Settled(inode.ino, inode.proof, inode.ctime, 77)]))
    assert inode.flags & Inode.FLAG_SETTLED
    assert inode.stored == 77
    files.commit({inode.ino: ChunkChanges(chunks={4: chunk(4)})})
    assert not inode.flags & Inode.FLAG_SETTLED
    files.amend(partial(swapping.settle, files=[Settled(inode.ino, inode.proof + 1, inode.ctime, 1)]))
    files.amend(partial(swapping.settle, files=[Settled(inode.ino, inode.proof, inode.ctime + 1, 1)]))
    assert not inode.flags & Inode.FLAG_SETTLED  # it was another content, or place, that had been looked at
    files.amend(partial(swapping.settle, files=[Settled(inode.ino, inode.proof, inode.ctime, 1)]))
    assert inode.flags & Inode.FLAG_SETTLED
    files.amend(partial(swapping.settle, files=[Settled(inode.ino, inode.proof, inode.ctime, 1, rung=0)]))
    assert not inode.flags & Inode.FLAG_SETTLED


def test_marks_do_not_count_until_a_whole_pass_has_ended(files: Files) -> None:
    def unsettles(work: Any) -> None:
        work.state.flags |= State.FLAG_UNSETTLED

    def flags() -> int:
        return files.store.state.flags & ~State.ROUND_BITS

    files.amend(unsettles)
    files.amend(swapping.begin_pass)
    assert flags() == State.FLAG_UNSETTLING
    files.amend(unsettles)  # something has changed meanwhile
    files.amend(swapping.end_pass)
    assert flags() == State.FLAG_UNSETTLED
    files.amend(swapping.begin_pass)
    files.amend(swapping.end_pass)
    assert flags() == 0


def test_what_was_tried_before_a_change_is_tried_again(files: Files) -> None:
    """And what was tried since is not, however often a pass is interrupted."""
    inode = written(files, 3)
    for _ in range(6):  # more rounds than their number can tell
        assert not block_at(files, inode, 3).was_tried(files.store.state.round)
        swap(files, inode, 3, data=None)
        assert block_at(files, inode, 3).was_tried(files.store.state.round)
        files.commit()
        assert block_at(files, inode, 3).was_tried(files.store.state.round)
        files.amend(swapping.begin_pass)
    files.amend(swapping.end_pass)
    checked(files)


def test_a_number_that_another_model_has_got_is_noticed(files: Files) -> None:
    inode, number = written(files, 3), keep(files)
    [block] = files.fs.block_numbers(inode, 3, 3)
    one = Recode(block, block_at(files, inode, 3).payload, (inode.ino, 3), NEURAL, number, b"x")
    assert files.amend(partial(swapping.recode, recodes=[one], fingerprints={number: B})) == [None]
    assert files.amend(partial(swapping.recode, recodes=[one], fingerprints={number: A})) != [None]


# -- what is written again while its block cannot be decoded


def rewritten(files: Files, at: int, **known: Any) -> tuple[int, set[int]]:
    """Write the content of a chunk once more, into another file: (its block, what that has made whole)."""
    other = files.create(b"again %d" % files.store.state.next_ino)
    applied = files.commit({other.ino: ChunkChanges(chunks={7: chunk(at), 8: chunk(at)})}, **known)
    [number] = set(files.fs.block_numbers(other, 7, 8))
    return number, applied.repaired


@pytest.mark.parametrize("lost", ["record", "file", "base"])
def test_content_whose_model_is_lost_is_stored_when_it_is_written_again(files: Files, lost: str) -> None:
    inode = written(files, 3, 4)
    base = keep(files)
    number = keep(files, B, FILE_B, A) if lost == "base" else base
    for at in (3, 4):
        swap(files, inode, at, NEURAL, number)
    assert rewritten(files, 4)[1] == set()  # all is well
    if lost == "record":
        forget(files, number)
    else:
        damage_files(files, base)
    [block] = files.fs.block_numbers(inode, 3, 3)
    assert rewritten(files, 3) == (block, {block})
    assert (block_at(files, inode, 3).codec, block_at(files, inode, 4).codec) == (0, NEURAL)
    with files.store.read() as snapshot:
        assert snapshot.payload(block_at(files, inode, 3).payload, 1000) == chunk(3).payload
    assert block_at(files, inode, 3).refs == 3


def test_content_whose_block_is_known_to_be_damaged_is_stored_when_it_is_written_again(files: Files) -> None:
    """Its stored bytes have their checksum: only decoding told."""
    inode = written(files, 3)
    swap(files, inode, 3)
    [block] = files.fs.block_numbers(inode, 3, 3)
    assert rewritten(files, 3, damaged={block + 1}) == (block, set())
    assert rewritten(files, 3, damaged={block}) == (block, {block})
    assert block_at(files, inode, 3).codec == 0
    files.check()


# -- models


def test_a_model_is_kept_twice(files: Files) -> None:
    number = keep(files)
    assert keep(files) == number == 1
    assert keep(files, B, FILE_B) == 2
    with files.store.read() as snapshot:
        model = modelfiles.load_model(snapshot, number)
        assert list(modelfiles.copies(snapshot, model)) == [FILE_A, FILE_A]
        assert modelfiles.damaged_copies(snapshot, number) == 0
        assert modelfiles.by_fingerprint(snapshot, B) == 2
        assert modelfiles.whole_model(snapshot, number) == FILE_A
        assert (model.added, model.size, model.base) == (7, len(FILE_A), 0)
    checked(files)


@pytest.mark.parametrize("what", ["file", "record"])
@pytest.mark.parametrize("which", [0, 1])
def test_one_damaged_copy_costs_nothing(files: Files, what: str, which: int) -> None:
    number = keep(files)
    with files.store.read() as snapshot:
        model = modelfiles.load_model(snapshot, number)
    if what == "file":
        damage(files.store, "payload", schema.FRAGMENT_KEY.pack(model.payloads[which], 0))
    else:
        damage(files.store, *modelfiles.places(number)[which])
    with files.store.read() as snapshot:
        assert modelfiles.read_model(snapshot, number) == FILE_A
        assert modelfiles.damaged_copies(snapshot, number) == 1
    assert files.amend(partial(swapping.repair_model, number=number))
    assert not files.amend(partial(swapping.repair_model, number=number))
    with files.store.read() as snapshot:
        assert modelfiles.damaged_copies(snapshot, number) == 0
    checked(files)


def damage_files(files: Files, number: int) -> None:
    with files.store.read() as snapshot:
        payloads = modelfiles.load_model(snapshot, number).payloads
    for payload in payloads:
        damage(files.store, "payload", schema.FRAGMENT_KEY.pack(payload, 0))


def test_a_lost_model_is_named_and_comes_back(files: Files) -> None:
    number = keep(files)
    damage_files(files, number)
    with files.store.read() as snapshot, pytest.raises(ModelMissing, match=A.hex()[:16]):
        modelfiles.read_model(snapshot, number)
    assert keep(files) == number
    with files.store.read() as snapshot:
        assert modelfiles.read_model(snapshot, number) == FILE_A
    checked(files)


def test_a_lost_record(files: Files) -> None:
    number = keep(files)
    for place in modelfiles.places(number):
        damage(files.store, *place)
    with files.store.read() as snapshot:
        with pytest.raises(ModelMissing, match="model 1"):
            modelfiles.load_model(snapshot, number)
        assert modelfiles.models(snapshot) == {}
        assert modelfiles.numbers(snapshot) == [number]
    assert keep(files, B, FILE_B) == 2  # its number is not given away
    with files.store.read() as snapshot, pytest.raises(ModelMissing, match="model 9"):
        modelfiles.load_model(snapshot, 9)


def test_models_that_blocks_need_stay(files: Files) -> None:
    inode = written(files, 3)
    number = keep(files)
    swap(files, inode, 3, NEURAL, number)
    retire(files, number)
    assert drop(files) == []
    checked(files)
    swap(files, inode, 3)  # to a codec without a model
    assert drop(files) == [number]
    checked(files)
    assert files.store.entries("payload") == 1


def test_only_retired_models_go(files: Files) -> None:
    number = keep(files)
    assert drop(files) == []
    retire(files, number)
    assert keep(files, wanted=True) == number
    assert drop(files) == []
    retire(files, number)
    assert keep(files) == number  # a delta may need it: that takes nothing back
    assert drop(files) == [number]
    checked(files)


def test_what_is_retired_stays_so_when_it_is_gone(files: Files) -> None:
    number, retired = keep(files), Model.FLAG_RETIRED
    retire(files, number)
    assert drop(files) == [number]
    assert drop(files) == []
    with files.store.read() as snapshot:
        assert (modelfiles.models(snapshot), modelfiles.by_fingerprint(snapshot, A)) == ({}, None)
        assert modelfiles.load_model(snapshot, number).flags == retired | Model.FLAG_GONE
        with pytest.raises(ModelMissing, match="was retired"):
            modelfiles.read_model(snapshot, number)
    assert files.store.entries("payload") == 0
    checked(files)
    damage(files.store, *modelfiles.places(number)[0])
    assert files.amend(partial(swapping.repair_model, number=number))
    checked(files)
    for wanted, flags in ((False, retired), (True, 0)):
        assert keep(files, wanted=wanted) == number
        with files.store.read() as snapshot:
            assert modelfiles.load_model(snapshot, number).flags == flags
            assert modelfiles.read_model(snapshot, number) == FILE_A
    checked(files)


def test_the_base_of_a_delta_stays_with_it(files: Files) -> None:
    inode = written(files, 3)
    base = keep(files)
    delta = keep(files, B, FILE_B, A)
    swap(files, inode, 3, NEURAL, delta)
    for number in (base, delta):
        retire(files, number)
    assert drop(files) == []
    swap(files, inode, 3)
    assert drop(files) == [delta, base]
    checked(files)


def test_deltas_over_what_is_not_there_or_no_whole_model(files: Files) -> None:
    with pytest.raises(UsageError, match="not in the store"):
        keep(files, B, FILE_B, A)
    keep(files)
    keep(files, B, FILE_B, A)
    with pytest.raises(UsageError, match="itself a delta"):
        keep(files, b"C" * 64, b"third", B)
    files.commit()
    checked(files)


def test_wrong_statistics_cost_no_model(files: Files) -> None:
    """A damaged total begins again at 0, while the blocks are still there."""
    inode = written(files, 3)
    number = keep(files)
    swap(files, inode, 3, NEURAL, number)
    retire(files, number)
    key = schema.TOTAL_KEY.pack(NEURAL, number)
    damage(files.store, "total", key)
    assert drop(files) == []
    with files.store.write() as txn:
        txn.put("total", key, Total().pack(key))
    assert drop(files) == []


def test_no_model_goes_while_a_header_cannot_be_read(files: Files) -> None:
    inode = written(files, 3)
    number = keep(files)
    retire(files, number)
    [block] = files.fs.block_numbers(inode, 3, 3)
    damage(files.store, "block", schema.KEY.pack(block))
    assert drop(files) == []


def test_no_model_goes_while_the_record_of_another_is_lost(files: Files) -> None:
    """That one may be a delta over it."""
    number, other = keep(files), keep(files, B, FILE_B)
    retire(files, number)
    for place in modelfiles.places(other):
        damage(files.store, *place)
    assert drop(files) == []


def test_nothing_is_encoded_with_a_model_that_has_been_dropped(files: Files) -> None:
    """It was under way when the model went."""
    inode = written(files, 3)
    number = keep(files)
    retire(files, number)
    drop(files)
    assert swap(files, inode, 3, NEURAL, number) is None
    checked(files)


def test_a_number_is_never_another_models(files: Files) -> None:
    """Whoever remembers a header finds no other model under its number, whatever has become of the right one."""
    keep(files)
    retire(files, 1)
    assert drop(files) == [1]
    assert keep(files, B, FILE_B) == 2
    inode = written(files, 3)
    swap(files, inode, 3, NEURAL, 2)
    forget(files, 2)
    assert keep(files, b"C" * 64, b"third") == 3
    assert keep(files, B, FILE_B, number=2) == 2
    checked(files)


def forget(files: Files, number: int) -> None:
    """Both copies of a model's record are lost, and with them where its files are."""
    with files.store.write() as txn:
        for payload in modelfiles.load_model(txn, number).payloads:
            txn.delete_prefix("payload", schema.KEY.pack(payload))
        for place in modelfiles.places(number):
            txn.delete(*place)


def test_numbers_come_to_an_end(files: Files) -> None:
    with files.store.write() as txn:
        modelfiles.put_model(txn, modelfiles.LAST, Model(B, 0, 0, 0, 0, 0, 0, 0))
    with pytest.raises(UsageError, match="no number"):
        keep(files)


def test_lost_models_are_named_with_what_needs_them(files: Files) -> None:
    def lost() -> dict[int, tuple[int, bytes]]:
        with files.store.read() as snapshot:
            found = modelfiles.lost(snapshot)
        assert all("1 blocks cannot be read" in one.why and modelfiles.ADD in one.why for one in found.values())
        return {number: (one.number, one.fingerprint) for number, one in found.items()}

    inode = written(files, 3, 4)
    first, delta, third = keep(files), keep(files, B, FILE_B, A), keep(files, b"C" * 64, b"third")
    swap(files, inode, 3, NEURAL, delta)
    swap(files, inode, 4, NEURAL, third)
    assert lost() == {}
    damage_files(files, first)
    assert lost() == {delta: (first, A)}
    forget(files, third)
    assert lost() == {delta: (first, A), third: (third, b"")}
    forget(files, first)
    assert lost() == {delta: (first, b""), third: (third, b"")}
    assert keep(files, number=first) == first
    assert lost() == {third: (third, b"")}


def test_a_backup_holds_the_models(files: Files, tmp_path: Path) -> None:
    inode = written(files, 3)
    number = keep(files)
    swap(files, inode, 3, NEURAL, number)
    (tmp_path / "restored").mkdir()
    backup(files.store, tmp_path / "restored" / DATA_FILE)
    restored = Store.open(tmp_path / "restored")
    try:
        with restored.read() as snapshot:
            assert list(modelfiles.copies(snapshot, modelfiles.load_model(snapshot, number))) == [FILE_A, FILE_A]
        assert not fsck.check(restored, data=False, repair=False, progress=lambda *_: None).problems
    finally:
        restored.close()
