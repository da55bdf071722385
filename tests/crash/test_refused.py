"""Every write of a commit is refused, or short, in turn: nobody is told a lie, nothing is lost, and it goes on after.

On a full disk LMDB meets all of this: ENOSPC, EDQUOT, and a short write, for which it says EIO as for a dying disk.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnfs.store.env import Store
from tests.blockio.test_commit import CHUNK
from tests.crash import offline
from tests.crash.journal import ACK, Control, Disk, read_journal, shim_environment
from tests.crash.refused import FIRST, state
from tests.harness import REPO, environment, work_dir

CUTS = 12
SHORT = 0


def refused(folder: Path, shim: Path, code: int, count: str) -> list[str]:
    """Run all steps; return what was told in each, by the number of the write that failed."""
    store, journal, control = folder / "store", folder / "journal", Control(folder / "control")
    env = environment(shim_environment(shim, store / "data.mdb", journal=journal, control=control))
    Store.create(store, CHUNK).close()
    shutil.copy(store / "data.mdb", folder / "base")
    argv = [sys.executable, "-m", "tests.crash.refused", *map(str, (store, control.path, journal, code, count))]
    done = subprocess.run(argv, cwd=REPO, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert [int(number) for number, _ in lines] == list(range(1, len(lines) + 1))
    return [told for _, told in lines]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A new directory on disk."""
    path = work_dir()
    yield path
    shutil.rmtree(path)


def files(store: Path) -> dict[str, bytes]:
    entries = offline.observe(store).items()
    return {f"/{path}": entry.data for path, entry in entries if entry.kind == "f" and entry.data is not None}


def power_cuts(folder: Path, rng: random.Random) -> None:
    """At drawn moments, refused commits among them, the store on disk is that of the last step or the one under way."""
    records = read_journal(folder / "journal")
    first = next(number for number, record in enumerate(records) if record.kind == ACK)
    cuts = set(rng.sample(range(first + 1, len(records)), CUTS))
    disk, step = Disk((folder / "base").read_bytes()), 0
    for number, record in enumerate(records):
        if number in cuts:
            cut = folder / f"cut{number}"
            cut.mkdir()
            (cut / "data.mdb").write_bytes(disk.image(rng))
            assert files(cut) in (state(step), state(step + 1)), f"cut at {number}, after step {step}"
            offline.fsck_clean(cut)
        if record.kind == ACK:
            step = record.offset
        disk.apply(record)


@pytest.mark.parametrize(
    ("code", "count", "told"),
    [
        (errno.ENOSPC, "all", os.strerror(errno.ENOSPC)),
        (errno.EDQUOT, "all", os.strerror(errno.EDQUOT)),
        (errno.ENOSPC, "1", "ok"),
        (errno.EDQUOT, "1", "ok"),
        (errno.EIO, "1", "ok"),
        (SHORT, "1", "ok"),
        (SHORT, "2", "ok"),
    ],
)
def test_every_write_in_turn(folder: Path, shim: Path, code: int, count: str, told: str) -> None:
    found = refused(folder, shim, code, count)
    assert len(found) > 4, "a commit has more writes than that"
    assert set(found[:-1]) == {told}
    assert found[-1] == "ok", "the last step's commit has fewer writes"
    assert files(folder / "store") == state(FIRST - 1 + len(found))
    offline.fsck_clean(folder / "store")
    power_cuts(folder, random.Random(code))


def test_a_dying_disk_is_told_from_a_full_one(folder: Path, shim: Path) -> None:
    """EIO for ever, and there is room: it is tried again a few times, then nothing is accepted any more."""
    found = refused(folder, shim, errno.EIO, "all")
    assert len(found) == 1
    assert found[0].startswith("failure")
    assert files(folder / "store") == state(FIRST - 1)
    offline.fsck_clean(folder / "store")
