"""Quotas against a walk of the tree: random steps, commits that fail, crashes while inodes are being counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nnfs.fs import apply as apply_module
from nnfs.mount import quotawalk
from nnfs.store import schema
from tests.fs.quotakit import QuotaWorld

ROUNDS = 60 if os.environ.get("NNFS_FULL") else 8
STEPS = 300

Make = Callable[[int], QuotaWorld]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Worlds whose releases take many commits, and that count two inodes at a time."""
    monkeypatch.setattr(apply_module, "RELEASE_NODES", 2)
    monkeypatch.setattr(quotawalk, "SLICE", 2)
    monkeypatch.setattr(quotawalk, "PAUSE_S", 0)
    monkeypatch.setattr(quotawalk, "RETRY_S", 0)
    worlds: list[QuotaWorld] = []

    def made(seed: int) -> QuotaWorld:
        worlds.append(QuotaWorld(tmp_path / f"store{seed}", seed))
        return worlds[-1]

    yield made
    for world in worlds:
        world.close()


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_sums_are_those_of_a_walk(make: Make, seed: int) -> None:
    world = make(seed)
    for number in range(STEPS):
        world.step()
        if number % 5 == 0:
            world.check()
            world.check_quotas()
    world.commit()
    world.settle()
    world.commit()
    assert_directories_count_where_they_lie(world)
    found = world.check_quotas()
    with world.store.read() as snapshot:
        for ino in found.misplaced:  # only a file that has had several names may be left
            record = snapshot.get("inode", schema.KEY.pack(ino))
            assert record is not None
            assert not schema.Inode.unpack(ino, record).is_directory
    world.assert_clean()


def assert_directories_count_where_they_lie(world: QuotaWorld) -> None:
    def walk(ino: int, above: int) -> None:
        inode = world.fs.inode(ino)
        own = world.fs.quotas.at(ino)
        assert inode.quota == (own.number if own is not None else above)
        assert own is None or own.above == above
        for _, _, entry in world.names.entries(ino, 2):
            assert isinstance(entry, schema.Inode)
            if entry.is_directory:
                walk(entry.ino, inode.quota)

    walk(schema.ROOT_INO, 0)
