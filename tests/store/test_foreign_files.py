"""A data file before it is opened: cut short, damaged meta pages, later formats, garbage."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import lmdb
import pytest

from nnfs.errors import NotAStore, StoreDamaged, StoreTooNew
from nnfs.store.freepages import FreeDb, check_data_file
from nnfs.store.restore import restore_meta
from tests.store.kit import PAGE, contents, data_file, free_by_us, open_env, verify


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A closed data file with two commits and free pages."""
    with open_env(tmp_path) as env:
        for value in (os.urandom(100_000), b"x" * 30_000, b"y"):
            with env.begin(write=True) as txn:
                txn.put(b"big", value)
                txn.put(value[:8], b"z" * 1000)
    return tmp_path / "data.mdb"


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_sound_file(sound: Path) -> None:
    meta = check_data_file(sound)
    assert (meta.page_size, meta.txnid) == (PAGE, 3)
    assert (meta.last_page + 1) * PAGE == sound.stat().st_size


NOISE = random.Random(1).randbytes(1 << 16)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(1 << 16), NOISE, b"\xde\xc0\xef\xbe" * 3])
def test_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.mdb"
    path.write_bytes(content)
    with pytest.raises(NotAStore, match="not a data file"):
        check_data_file(path)
    with pytest.raises(NotAStore, match="mkfs"):
        check_data_file(tmp_path / "none")


def test_cut_short_anywhere(sound: Path) -> None:
    whole = sound.read_bytes()
    for size in [1, 16, 20, 151, 4095, 4096, 4200, *range(8192, len(whole), 4096), len(whole) - 1]:
        sound.write_bytes(whole[:size])
        with pytest.raises((StoreDamaged, NotAStore)) as caught:
            check_data_file(sound)
        assert isinstance(caught.value, StoreDamaged) == (size >= 20)
        assert str(sound) in str(caught.value)


def test_only_free_pages_may_be_missing_at_the_end(env: Any) -> None:
    with env.begin(write=True) as txn:
        txn.put(b"small", b"x")
    with env.begin(write=True) as txn:
        txn.put(b"big", bytes(1_000_000))
    with env.begin(write=True) as txn:
        txn.delete(b"big")
    for value in (b"1", b"2", b"3", b"4", b"5", b"6"):
        with env.begin(write=True) as txn:
            txn.put(b"small", value)
    path = data_file(env)
    last = check_data_file(path).last_page
    free = set().union(*free_by_us(path).values())
    tail = next(page for page in range(last, 0, -1) if page not in free) + 1
    assert tail < last - 50
    os.truncate(path, tail * PAGE)
    assert check_data_file(path).last_page == last
    os.truncate(path, tail * PAGE - 1)
    with pytest.raises(StoreDamaged):
        check_data_file(path)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("offset", "data"),
    [(0, b"\7"), (10, b"\0"), (16, b"\0"), (20, b"\0"), (20, b"\2"), (40, b"\1"), (44, b"\4"), (92, b"\4"),
     (144, b"\x77"), (128, bytes(8)), (136, bytes(8)), (0, bytes(PAGE)), (0, b"\xff" * PAGE)],
)  # fmt: skip
def test_damaged_meta_page_is_found_and_restored(sound: Path, number: int, offset: int, data: bytes) -> None:
    newest = check_data_file(sound)
    overwrite(sound, number * PAGE + offset, data)
    with pytest.raises(StoreDamaged, match="meta page"):
        check_data_file(sound)
    before = sound.read_bytes()
    told = restore_meta(sound, dry_run=True)
    assert sound.read_bytes() == before
    assert restore_meta(sound) == told
    restored = check_data_file(sound)
    is_back = newest.txnid % 2 == number and (offset in (128, 136) or len(data) == PAGE)
    assert restored.txnid == newest.txnid - is_back
    assert is_back <= ("undone" in told)
    assert verify(os.fspath(sound)) == []
    with open_env(sound.parent) as env:
        assert contents(env)[b"big"] == (b"y" if restored.txnid == 3 else b"x" * 30_000)
        with env.begin(write=True) as txn:
            txn.put(b"more", b"z")
    assert verify(os.fspath(sound)) == []
    assert not restore_meta(sound), "both are sound"


def test_both_meta_pages_damaged(sound: Path) -> None:
    overwrite(sound, 20, bytes(4))
    overwrite(sound, PAGE + 20, bytes(4))
    assert not restore_meta(sound)
    with pytest.raises(StoreDamaged):
        check_data_file(sound)


def test_later_formats(sound: Path, tmp_path: Path) -> None:
    overwrite(sound, 20, b"\2")
    with pytest.raises(StoreDamaged):  # only one page says so
        check_data_file(sound)
    overwrite(sound, PAGE + 20, b"\2")
    with pytest.raises(StoreTooNew):
        check_data_file(sound)
    later = tmp_path / "later"
    with lmdb.open(os.fspath(later), lib_version=1):
        pass
    with pytest.raises(StoreTooNew):
        check_data_file(later / "data.mdb")


def test_garbage_in_the_free_list_is_damage_or_nothing(sound: Path) -> None:
    """Flip every byte of the freeDB's root page: a clear error or a list of records, never a crash."""
    fd = os.open(sound, os.O_RDWR)
    meta = FreeDb(fd).meta
    whole = os.pread(fd, PAGE, meta.free_root * PAGE)
    damaged = 0
    for place in range(PAGE):
        os.pwrite(fd, bytes([whole[place] ^ 0xFF]), meta.free_root * PAGE + place)
        try:
            free_db = FreeDb(fd)
            for record in free_db.records():
                free_db.pages(record)
        except StoreDamaged:
            damaged += 1
        os.pwrite(fd, whole[place : place + 1], meta.free_root * PAGE + place)
    os.close(fd)
    assert damaged > 20
