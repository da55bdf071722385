"""The catalog in memory: what it answers after changes is what a fresh one answers, with any limit of memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnfs.fs.apply import Applied
from nnfs.fs.epoch import Epoch
from nnfs.fs.search import batch, catalog, upkeep
from nnfs.fs.search.catalog import Catalog
from tests.fs.pastkit import World
from tests.fs.search.kit import Committed, index, make, paths, tree

QUESTIONS = ("f", "d", "a", "b", "1", "2", "l")


class Followed(World):
    """A world with a catalog that follows its commits; an opened store begins with a new one."""

    def __init__(self, path: Path, seed: int, limit: int) -> None:
        self.limit = limit
        self.inos: set[int] = set()
        super().__init__(path, seed)

    def _open(self) -> None:
        super()._open()
        self.kept = Catalog(self.store, self.limit)
        self.fs.on_commit = self.note

    def note(self, epoch: Epoch, applied: Applied) -> None:
        self.kept.note(epoch.dentries.keys(), ())
        self.inos.update(applied.maps, epoch.release)


@pytest.mark.parametrize("limit", [1 << 30, 0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_after_changes_it_is_as_a_fresh_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, limit: int
) -> None:
    monkeypatch.setattr(catalog, "ROWS", 4)
    world = Followed(tmp_path / "store", seed, limit)
    try:
        for _ in range(100):
            world.step()
            world.commit()
            found, todo = upkeep.Found(), sorted(world.inos)
            world.inos.clear()
            while todo:
                found.made += upkeep.look_at_some(world.store, todo).made
            with world.store.write() as txn:
                world.kept.note((), upkeep.store_vectors(Committed(txn, world.store.state.commit), found.made, 0))
            assert index(world.store) == 0, "a vector is missing that a walk finds"
            for text in QUESTIONS:
                fresh = paths(world.store, text=text, count=1000)
                assert paths(world.store, world.kept, text=text, count=1000) == fresh
    finally:
        world.close()


def test_too_many_changes_load_everything_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "MOST_CHANGES", 2)
    world = Followed(tmp_path / "store", 5, 1 << 30)
    try:
        for _ in range(30):
            world.step()
            world.step()
            world.commit()
            assert paths(world.store, world.kept, text="f", count=1000) == paths(world.store, text="f", count=1000)
    finally:
        world.close()


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "ROWS", 16)
    store = make(tmp_path / "store", tree([f"d{number % 7}/name {number}" for number in range(200)]))
    whole = Catalog(store, 1 << 30)
    everything = paths(store, whole, text="name", count=1000)
    assert len(everything) == 200
    part = Catalog(store, whole.nbytes // 2)
    assert paths(store, part, text="name", count=1000) == everything
    assert 0 < part.nbytes <= whole.nbytes // 2
    part.clear()
    assert part.nbytes == 0
    assert batch.ROWS > 16
    store.close()
