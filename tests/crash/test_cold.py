"""kill -9 and power cuts while recompression, thawing and scrub run all the time."""

from __future__ import annotations

import random
import shutil
from functools import partial
from pathlib import Path

import pytest

from nnfs.fs import fsck
from tests.background.kit import RESTLESS, Chaos, Here, fsck_clean
from tests.conftest import why_no_mount
from tests.crash import offline
from tests.crash.journal import HOW, Control, shim_environment
from tests.crash.kit import Round, acked_steps, look, make_store
from tests.crash.test_kill import STEPS, die
from tests.crash.test_power import images, record
from tests.damage.child import in_child
from tests.harness import FULL, wait_for, work_dir

pytestmark = pytest.mark.skipif(why_no_mount() is not None, reason="mounting needs root and /dev/fuse")


def moving(store: Path, env: dict[str, str], slow: float = 0) -> Chaos:
    return Chaos(store, mode="all", options=RESTLESS, env=env, kill="40", slow=str(slow))


ROUNDS = [(seed, 10, 0.05 * (seed % 2)) for seed in range(1, 7)] if FULL else [(7, 4, 0), (8, 3, 0.05)]


@pytest.mark.parametrize(("seed", "rounds", "slow"), ROUNDS)
def test_kill_at_a_store_write(shim: Path, seed: int, rounds: int, slow: float) -> None:
    """`slow`: seconds in which a worker decodes a chunk: who writes into cold chunks waits when the daemon dies."""
    rng = random.Random(seed)
    base = work_dir()
    store = make_store(base, 16384)
    plan: Round | None = None
    acked = swaps = 0
    try:
        for number in range(rounds + 1):
            control = Control(base / f"control{number}")
            with moving(store, shim_environment(shim, store / "data.mdb", control=control), slow) as mount:
                seen, tree = look(mount)
                if plan is not None:
                    plan.judge(seen, acked)
                if number == rounds:
                    break
                plan = Round.draw(seed * 1000 + number, seen, tree, STEPS)
                mount.deadline()
                mount.turn_round()
                control.kill(rng.randint(20, 400), rng.choice(HOW), rng.randrange(1000))
                log = base / f"log{number}"
                plan.run(mount.path, base, log)
                wait_for("the daemon's end", lambda: not mount.alive)  # it goes on writing when the steps are done
                die(mount)
                swaps += mount.swaps
            acked = acked_steps(log)
            fsck_clean(store)
        fsck_clean(store)
        assert slow or swaps > 20
    finally:
        shutil.rmtree(base)


def check(store: Path) -> tuple[int, object]:
    report = fsck.run(store, data=False, repair=False, progress=lambda *_: None)
    return report.exit_code, report.as_dict()


@pytest.mark.parametrize(("seed", "cuts"), [(seed, 50) for seed in range(5, 8)] if FULL else [(5, 30)])
def test_power_cuts(shim: Path, seed: int, cuts: int) -> None:
    """Every byte of the images is read and compared with its BLAKE2b-512."""
    base = work_dir()

    try:
        recording = record(base, shim, seed, moving)
        for number, (moment, acked, image) in enumerate(images(recording, random.Random(seed), cuts)):
            store = base / f"cut{number}"
            store.mkdir()
            (store / "data.mdb").write_bytes(image)
            try:
                recording.plan.judge(offline.observe(store, Here()), acked)
                code, found = in_child(partial(check, store))
                assert code == 0, found
            except BaseException as error:
                error.add_note(f"cut after record {moment}, {acked} steps answered")
                raise
            if number % 10 == 0:
                fsck_clean(store)
            shutil.rmtree(store)
    finally:
        shutil.rmtree(base)
