"""Blocks that are held: they grow and shrink, go over to the data file, and nobody's content changes by that."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnfs.constants import RESERVE_FILE
from nnfs.store import claims, freepages
from nnfs.store.env import Store
from nnfs.store.reserve import Reserve, no_room, refuses
from tests import disks
from tests.conftest import why_no_mount

MIB = 1 << 20
needs_root = pytest.mark.skipif(why_no_mount() is not None, reason="mounting needs root")


@pytest.fixture
def small() -> Iterator[Path]:
    with disks.disk("tmpfs", 8) as point:
        yield point


@needs_root
def test_it_takes_what_there_is_and_says_why_not_more(small: Path) -> None:
    reserve = Reserve(small)
    assert reserve.works
    assert reserve.grow(2 * MIB)
    assert reserve.refusal == 0
    assert (small / RESERVE_FILE).stat().st_blocks * 512 == reserve.held == 2 * MIB
    assert not reserve.grow(20 * MIB)
    assert reserve.refusal == errno.ENOSPC
    assert reserve.held > 7 * MIB
    reserve.shrink(MIB)
    assert disks.free(small) > 6 * MIB
    assert reserve.grow(3 * MIB)
    assert reserve.refusal == 0
    reserve.close()


@needs_root
def test_what_was_spent_comes_back(small: Path) -> None:
    reserve = Reserve(small)
    reserve.grow(4 * MIB)
    assert reserve.spend(3 * MIB)
    assert reserve.held == MIB
    reserve.take_back()
    assert reserve.held == 4 * MIB
    assert reserve.spend(8 * MIB)
    assert not reserve.spend(1)
    (small / "other").write_bytes(bytes(7 * MIB))
    reserve.take_back(at_once=True)
    assert 0 < reserve.held <= MIB
    reserve.close()


@needs_root
def test_it_stays_with_the_store(small: Path) -> None:
    reserve = Reserve(small)
    reserve.grow(2 * MIB)
    reserve.close()
    again = Reserve(small)
    assert again.held == 2 * MIB
    again.close()
    os.truncate(small / RESERVE_FILE, 0)
    os.truncate(small / RESERVE_FILE, 2 * MIB)  # as a copy that leaves zeros out
    sparse = Reserve(small)
    assert sparse.held == 0
    sparse.close()


@needs_root
def test_a_full_disk_is_told_from_one_with_room(small: Path) -> None:
    assert refuses(small, MIB) == 0
    (small / "other").write_bytes(bytes(7 * MIB + MIB // 2))
    assert refuses(small, MIB) == errno.ENOSPC


def test_a_filesystem_that_cannot_allocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(freepages, "allocate", cannot)
    reserve = Reserve(tmp_path)
    assert not reserve.works
    assert not reserve.grow(MIB)
    reserve.close()


def test_the_quota_has_an_errno_of_its_own() -> None:
    assert no_room(errno.EDQUOT).errno == errno.EDQUOT
    assert no_room(errno.EIO).errno == no_room().errno == errno.ENOSPC


@pytest.mark.parametrize("seed", range(4))
def test_claims_change_nothing(tmp_path: Path, seed: int) -> None:
    """Claims between commits and under a reader, and giving them up, leave all records as they are."""
    rng = random.Random(seed)
    store = Store.create(tmp_path / "s")
    reserve = Reserve(tmp_path)
    reserve.grow(4 * MIB)
    truth: dict[bytes, bytes] = {}
    fd = claims.open_data(store.path / "data.mdb")
    reader, seen = store.read(), dict(truth)
    for step in range(40):
        with store.write() as txn:
            for _ in range(rng.randrange(1, 6)):
                key = b"k%d" % rng.randrange(20)
                if key in truth and rng.random() < 0.4:
                    txn.delete("queue", key)
                    del truth[key]
                else:
                    truth[key] = rng.randbytes(rng.choice((20, 300, 9000, 70_000)))
                    txn.put("queue", key, truth[key])
        free_db, oldest = freepages.FreeDb(fd), freepages.oldest_reader(store._env)
        cost = store.write_cost
        wanted = claims.places(free_db, oldest, cost) if step % 2 else claims.all_places(free_db, oldest, MIB, cost)
        store.claims.claim(fd, 4096, wanted, reserve)
        if rng.random() < 0.5:
            store.unclaim(rng.choice((4096, MIB)))
        assert dict(reader.range("queue", b"")) == seen
        if rng.random() < 0.3:
            reader.close()
            reader, seen = store.read(), dict(truth)
        with store.read() as snapshot:
            assert dict(snapshot.range("queue", b"")) == truth
    while store.unclaim(MIB):
        pass
    assert not store.claims
    reader.close()
    os.close(fd)
    store.close()
    reopened = Store.open(tmp_path / "s")
    with reopened.read() as snapshot:
        assert dict(snapshot.range("queue", b"")) == truth
    reopened.close()
