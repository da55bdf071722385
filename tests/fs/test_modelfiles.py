"""Models in a store: kept twice, retired, lost and found again, dropped with their last block."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from nnfs.codec.base import NEURAL
from nnfs.constants import DATA_FILE
from nnfs.errors import ModelMissing, UsageError
from nnfs.fs import fsck, swapping
from nnfs.fs.backup import backup
from nnfs.store import modelfiles, schema
from nnfs.store.env import Store
from nnfs.store.schema import Model, Total
from tests.fs.swapkit import (
    FILE_A,
    FILE_B,
    A,
    B,
    checked,
    damage_copy,
    damage_files,
    drop,
    forget,
    keep,
    retire,
    swap,
    written,
)
from tests.fs.test_apply import Files, damage, files

__all__ = ["files"]  # a fixture


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
    damage_copy(files, number, what, which)
    with files.store.read() as snapshot:
        assert modelfiles.read_model(snapshot, number) == FILE_A
        assert modelfiles.damaged_copies(snapshot, number) == 1
    assert files.amend(partial(swapping.repair_model, number=number))
    assert not files.amend(partial(swapping.repair_model, number=number))
    with files.store.read() as snapshot:
        assert modelfiles.damaged_copies(snapshot, number) == 0
    checked(files)


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
    """A remembered header never leads to another model under the same number, even if the right one is gone."""
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
