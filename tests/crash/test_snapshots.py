"""Power cuts and kill -9 while snapshots are taken, read and deleted: what is there shows what was there then."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from nnfs.store.env import Store
from tests.conftest import why_no_mount
from tests.crash import offline
from tests.crash.journal import ACK, Control, Record, read_journal, replay, shim_environment
from tests.crash.kit import Round, acked_steps, fsck_clean, look, make_store
from tests.crash.model import LAZY, View, differences, observe
from tests.crash.test_kill import die
from tests.crash.test_power import sync
from tests.damage.child import in_child
from tests.harness import FULL, Mount, nnfs, work_dir

pytestmark = pytest.mark.skipif(why_no_mount() is not None, reason="mounting needs root and /dev/fuse")
PIECE, PIECES = 25, 8  # steps between two snapshots, and how often
CUTS = 40 if FULL else 16
SEEDS = range(1, 5) if FULL else range(1, 2)
FOLDER = ".nnfs/snapshots"


def shown(view: View) -> View:
    """Return a view without the files whose bytes the kernel sends when it likes."""
    return {path: entry for path, entry in view.items() if not path.startswith(LAZY)}


@dataclass
class Recording:
    """A run with snapshots: `names` by the number of steps that were done when each was taken."""

    base: bytes
    records: list[Record]
    plan: Round
    names: dict[int, str]
    deleted: dict[int, list[int]]  # steps that were done, to those of the snapshots that were deleted then


def record(folder: Path, shim: Path, seed: int) -> Recording:
    store, journal = make_store(folder, 16384), folder / "journal"
    base = (store / "data.mdb").read_bytes()
    rng = random.Random(seed)
    names: dict[int, str] = {}
    deleted: dict[int, list[int]] = {}
    with Mount(store, env=shim_environment(shim, store / "data.mdb", journal=journal)) as mount:
        plan = Round.draw(seed, *look(mount), PIECE * PIECES)
        for piece in range(PIECES):
            done = (piece + 1) * PIECE
            assert plan.run(mount.path, folder, journal, first=piece * PIECE, last=done)
            names[done] = f"after {done}"
            nnfs("snapshot", "create", str(mount.path), names[done])
            there = [step for step in names if not any(step in gone for gone in deleted.values())]
            if piece % 2:
                deleted[done] = [rng.choice(there[:-1])]
                nnfs("snapshot", "delete", str(mount.path), *(names[step] for step in deleted[done]))
            there = [step for step in names if not any(step in gone for gone in deleted.values())]
            step = rng.choice(there)
            seen, _ = observe(mount.path / FOLDER / names[step])
            assert not differences(shown(plan.views[step]), shown(seen))
        sync(mount.path)
    return Recording(base, read_journal(journal), plan, names, deleted)


def names_in(store: Path) -> list[str]:
    """The snapshots that a store shows."""

    def look() -> list[str]:
        opened = Store.open(store, readonly=True)
        names = [moment.name.decode() for moment in opened.moments if not moment.deleting]
        opened.close()
        return names

    return in_child(look)


def judge(recording: Recording, store: Path, acked: int) -> None:
    """Compare the snapshots of a store with what was there when they were taken."""
    there = names_in(store)
    steps = {name: step for step, name in recording.names.items()}
    gone = {step for done, those in recording.deleted.items() if done <= acked for step in those}
    for step, name in recording.names.items():
        if step < acked and step not in gone:
            assert name in there, f"snapshot {name!r} is lost after step {acked}"
    for name in there:
        seen = offline.observe(store, below=f"{FOLDER}/{name}")
        assert not differences(shown(recording.plan.views[steps[name]]), shown(seen)), name


@pytest.mark.parametrize("seed", SEEDS)
def test_power_cuts(shim: Path, seed: int) -> None:
    base = work_dir()
    try:
        recording = record(base, shim, seed)
        rng = random.Random(seed)
        first = next(n for n, entry in enumerate(recording.records) if entry.kind == ACK)
        cuts = set(rng.sample(range(first, len(recording.records)), CUTS))
        acked = 0
        for number, disk in replay(recording.base, recording.records):
            entry = recording.records[number - 1]
            acked = entry.offset if entry.kind == ACK else acked
            if number not in cuts:
                continue
            store = base / f"cut{number}"
            store.mkdir()
            (store / "data.mdb").write_bytes(disk.image(rng))
            offline.fsck_clean(store)
            judge(recording, store, acked)
            shutil.rmtree(store)
    finally:
        shutil.rmtree(base)


@pytest.mark.parametrize("seed", SEEDS)
def test_kill_while_snapshots_are_taken_and_deleted(shim: Path, seed: int) -> None:
    """The daemon dies at a drawn write; all snapshots that were told of are there, and show what they did."""
    base, rng = work_dir(), random.Random(seed)
    store = make_store(base, 16384)
    told: dict[str, View] = {}
    try:
        for number in range(5):
            control = Control(base / f"control{number}")
            with Mount(store, env=shim_environment(shim, store / "data.mdb", control=control)) as mount:
                seen, tree = look(mount)
                assert set(os.listdir(mount.path / FOLDER)) >= told.keys()
                for name in os.listdir(mount.path / FOLDER):
                    if name in told:
                        found, _ = observe(mount.path / FOLDER / name)
                        assert not differences(told[name], shown(found)), name
                plan = Round.draw(seed * 100 + number, seen, tree, 60)
                control.kill(rng.randint(20, 80), "before", rng.randrange(1000))
                log = base / f"log{number}"
                for piece in range(4):
                    if not plan.run(mount.path, base, log, first=piece * 15, last=piece * 15 + 15):
                        break
                    name = f"round {number} piece {piece}"
                    if nnfs("snapshot", "create", str(mount.path), name, check=False).returncode:
                        break
                    told[name] = shown(plan.views[acked_steps(log)])
                    if piece == 2:
                        gone = rng.choice(sorted(told))
                        del told[gone]  # whatever comes of it, it may be gone
                        nnfs("snapshot", "delete", str(mount.path), gone, check=False)
                die(mount)
            fsck_clean(store)
    finally:
        shutil.rmtree(base)
