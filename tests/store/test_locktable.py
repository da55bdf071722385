"""No page that LMDB writes to by a mapping may need a block of the disk, and readers are protected all the same."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import lmdb
import pytest

from nnfs.store import locktable
from nnfs.store.env import Store
from tests import disks
from tests.damage.child import in_child

MIB = 1 << 20


def writable_mappings() -> list[str]:
    """Return the names of all that this process maps shared and writable."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split(maxsplit=5)[5] for line in lines if re.match(r"\S+ .w.s \S+ \S+ \d+ +/", line)]


def test_nothing_on_disk_is_mapped_writable(tmp_path: Path) -> None:
    others = writable_mappings()  # of tests that ran before in this process
    (tmp_path / "s").mkdir()
    store = Store.create(tmp_path / "s")
    with store.write() as txn:
        txn.put("meta", b"k", b"v")
    assert [name for name in writable_mappings() if name not in others and "memfd:nnfs-lock" not in name] == []
    assert os.listdir(store.path) == ["data.mdb"]
    store.close()


def test_the_lock_file_of_an_earlier_version_goes(tmp_path: Path) -> None:
    Store.create(tmp_path / "s").close()
    (tmp_path / "s" / "lock.mdb").write_bytes(bytes(8192))
    Store.open(tmp_path / "s").close()
    assert os.listdir(tmp_path / "s") == ["data.mdb"]


def test_where_no_directory_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locktable, "_place", lambda: None)
    store = Store.create(tmp_path / "s")
    with store.write() as txn:
        txn.put("meta", b"k", b"v")
    store.close()
    lock = os.stat(tmp_path / "s" / "lock.mdb")
    assert lock.st_blocks * 512 >= lock.st_size > 0, "its pages would need blocks"


def churn(store: Store, rounds: int) -> None:
    for number in range(rounds):
        with store.write() as txn:
            txn.put("meta", b"big", bytes([number % 250]) * 40_000)


def test_a_reader_keeps_its_pages(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s")
    churn(store, 1)
    with store.read() as old:
        churn(store, 20)
        assert old.get("meta", b"big") == bytes(40_000)
    store.close()


def test_readers_of_both_environments_keep_their_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a meta page that could not be written a second environment goes on, with the same table of readers."""
    store = Store.create(tmp_path / "s")
    churn(store, 1)
    old = store.read()
    first = store._env

    class Broken:
        """LMDB gives up an environment whose meta page could not be written."""

        def begin(self, write: bool = False) -> object:
            raise lmdb.PanicError("mdb_txn_begin")

    monkeypatch.setattr(store, "_env", Broken())
    store._reopen()
    store._before[-1] = first
    assert store._env is not first
    churn(store, 2)
    with store.read() as new:
        expected = new.get("meta", b"big")
        churn(store, 20)
        assert old.get("meta", b"big") == bytes(40_000), "a page that an old reader sees was used again"
        assert new.get("meta", b"big") == expected
    old.close()
    churn(store, 5)
    store.close()
    reopened = Store.open(tmp_path / "s")
    with reopened.read() as snapshot:
        assert snapshot.get("meta", b"big") == bytes([4]) * 40_000
    reopened.close()


@pytest.mark.parametrize(("kind", "size"), [("tmpfs", 16), ("ext4", 48), ("xfs", 300), ("btrfs", 48), ("btrfs", 300)])
def test_a_store_opens_on_a_full_disk(kind: str, size: int) -> None:
    """In a child: what must not happen is SIGBUS."""
    if disks.why_not(kind, size) or os.geteuid() != 0:
        pytest.skip(disks.why_not(kind, size) or "needs root")
    with disks.disk(kind, size) as point:
        Store.create(point / "s").close()
        with (point / "filler").open("wb", buffering=0) as filler:
            for block in (MIB, 4096, 512):
                try:
                    while filler.write(os.urandom(block)) == block:
                        pass
                except OSError as error:
                    assert error.errno == errno.ENOSPC

        def use() -> bytes:
            store = Store.open(point / "s")
            with store.read() as snapshot:
                found = snapshot.get("meta", b"nnfs.super")
            store.close()
            return found or b""

        assert in_child(use)
