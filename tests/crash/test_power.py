"""Power cuts: one recorded run, and for drawn moments the store as a disk could hold it then.

The journal has the writes to the store with their flushes and, between them, the steps that were answered. At a cut,
the steps noted before it are answered; a mount of the image must show a prefix that holds all of their syncs.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import why_no_mount
from tests.crash import offline
from tests.crash.journal import ACK, FLUSH, PUNCH, WRITE, Disk, Record, read_journal, replay, shim_environment
from tests.crash.kit import Round, fsck_clean, look, make_store
from tests.harness import FULL, Mount, wait_for, work_dir

pytestmark = pytest.mark.skipif(why_no_mount() is not None, reason="mounting needs root and /dev/fuse")
RUNS = [(seed, 50) for seed in range(1, 5)] if FULL else [(1, 30)]
STEPS = 250
MOUNT_EVERY = 1 if FULL else 8  # the others are read through the daemon's layers, without the kernel


@dataclass
class Recording:
    """A run: the store before it, what happened to it, and the steps."""

    base: bytes
    records: list[Record]
    plan: Round


def sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def mount_of(store: Path, env: dict[str, str]) -> Mount:
    return Mount(store, env=env)


def record(
    folder: Path, shim: Path, seed: int, mount_of: Callable[[Path, dict[str, str]], Mount] = mount_of
) -> Recording:
    """Run a workload on a store that has lived before; holes are punched before it and in its middle."""
    store = make_store(folder, 16384)
    base = (store / "data.mdb").read_bytes()
    journal = folder / "journal"

    def holes() -> int:
        return sum(entry.kind == PUNCH for entry in read_journal(journal))

    with mount_of(store, shim_environment(shim, store / "data.mdb", journal=journal)) as mount:
        plan = Round.draw(seed * 1000, *look(mount), 100)
        assert plan.run(mount.path, folder, folder / "log")
        wait_for("the first punched holes", holes)
        sync(mount.path)  # only what follows is judged
        plan = Round.draw(seed, *look(mount), STEPS)
        mount.deadline()
        assert plan.run(mount.path, folder, journal, last=STEPS // 2)
        before = holes()
        wait_for("more punched holes", lambda: holes() > before)
        assert plan.run(mount.path, folder, journal, first=STEPS // 2)
        mount.deadline(0)
    records = read_journal(journal)
    whole = Disk(base)
    for entry in records:
        whole.apply(entry)
    assert whole.cache == (store / "data.mdb").read_bytes(), "the shim missed a write"
    assert {WRITE, FLUSH, ACK, PUNCH} <= {entry.kind for entry in records}
    return Recording(base, records, plan)


def draw_cuts(records: list[Record], plan: Round, rng: random.Random, count: int) -> set[int]:
    """Moments (numbers of records that have happened): anywhere, right after an answered sync, before a flush."""
    first = next(n for n, entry in enumerate(records) if entry.kind == ACK)  # the mount itself is cut elsewhere
    synced = [n for n, entry in enumerate(records, start=1) if entry.kind == ACK and plan.steps[entry.offset - 1].syncs]
    flushed = [n for n, entry in enumerate(records) if entry.kind == FLUSH and n > first]
    written = [n for n, entry in enumerate(records, start=1) if entry.kind in (WRITE, PUNCH) and n > first]
    cuts: set[int] = set()
    while len(cuts) < min(count, len(written) // 2):
        cuts.add(rng.choice(rng.choice((synced, flushed, written, written))))
    return cuts


def images(recording: Recording, rng: random.Random, count: int) -> Iterator[tuple[int, int, bytes]]:
    """(moment, answered steps, image of the store) for drawn cuts."""
    cuts = draw_cuts(recording.records, recording.plan, rng, count)
    acked = 0
    for number, disk in replay(recording.base, recording.records):
        entry = recording.records[number - 1]
        if entry.kind == ACK:
            acked = entry.offset
        if number in cuts:
            yield number, acked, disk.image(rng)


@pytest.mark.parametrize(("seed", "cuts"), RUNS)
def test_power_cuts(shim: Path, seed: int, cuts: int) -> None:
    base = work_dir()
    try:
        recording = record(base, shim, seed)
        for number, (moment, acked, image) in enumerate(images(recording, random.Random(seed), cuts)):
            store = base / f"cut{number}"
            store.mkdir()
            (store / "data.mdb").write_bytes(image)
            try:
                if number % MOUNT_EVERY:
                    recording.plan.judge(offline.observe(store), acked)
                    offline.fsck_clean(store)
                else:
                    with Mount(store) as mount:
                        recording.plan.judge(look(mount)[0], acked)
                    fsck_clean(store)
            except BaseException as error:
                error.add_note(f"cut after record {moment}, {acked} steps answered")
                raise
            shutil.rmtree(store)
    finally:
        shutil.rmtree(base)
