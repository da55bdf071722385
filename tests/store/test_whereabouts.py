"""The data file is as the engine left it, or nothing is written to it any more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nnfs.errors import StoreDamaged
from nnfs.store.env import Store


def put(store: Store, value: bytes) -> None:
    with store.write() as txn:
        txn.put("meta", b"k", value)


def test_a_txn_without_changes_is_no_change_by_others(tmp_path: Path) -> None:
    """The engine does not write it, so that the data file stays at the txn before."""
    store = Store.create(tmp_path / "s")
    for value in (b"1", b"2"):
        for _ in range(3):
            with store.write():
                pass
        put(store, value)
    store.close()


def test_an_older_data_file_laid_over_is_not_written_to(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s")
    data = tmp_path / "s" / "data.mdb"
    shutil.copyfile(data, tmp_path / "old")
    put(store, b"1")
    with data.open("r+b") as file:
        file.write((tmp_path / "old").read_bytes())
    with pytest.raises(StoreDamaged, match="overwritten"):
        put(store, b"2")
    store.close()
