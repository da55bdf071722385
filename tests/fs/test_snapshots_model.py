"""Snapshots against a plain model: random steps, commits, crashes; each shows what was there when it was taken."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nnfs.fs import apply as apply_module
from nnfs.fs import snapshots
from nnfs.store import moments
from tests.fs.pastkit import World

ROUNDS = 40 if os.environ.get("NNFS_FULL") else 6
STEPS = 250

Make = Callable[[int], World]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Worlds whose releases take many commits, and whose memory of snapshots is small."""
    monkeypatch.setattr(apply_module, "RELEASE_NODES", 2)
    worlds: list[World] = []

    def made(seed: int) -> World:
        worlds.append(World(tmp_path / f"store{seed}", seed))
        return worlds[-1]

    yield made
    for world in worlds:
        world.close()


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_snapshots_show_what_was_there(make: Make, seed: int) -> None:
    world = make(seed)
    for number in range(STEPS):
        world.step()
        if number % 5 == 0:
            world.check()
    finish(world)


def finish(world: World) -> None:
    """Delete all snapshots: nothing of them is left, and the live tree is what it was."""
    world.check()
    world.let_go()
    world.commit()
    if world.past:
        names = sorted(world.past)
        world.amend(lambda work: snapshots.begin_delete(work, names))
        world.past = {}
    while world.amend(snapshots.reap):
        world.check()
    while not world.fs.active.empty:
        world.commit()
    world.check()
    assert world.store.superblock.ro_compat == 0
    with world.store.read() as snapshot:
        assert not moments.numbers(snapshot)
        for table in moments.TABLES:
            last = snapshot.last(table)
            assert last is None or last[:2] == b"\0\0", table
