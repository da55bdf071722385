"""kill -9 of the daemon at a drawn write to its store; mounted again without fsck, everything promised is there.

One store lives through a chain of rounds, so later ones meet reused pages and punched holes. In each: mount, compare
with what the last round allows, arm the shim, run the workload until the daemon dies, fsck.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path

import pytest

from tests.conftest import why_no_mount
from tests.crash.journal import HOW, Control, shim_environment
from tests.crash.kit import Round, acked_steps, fsck_clean, look, make_store
from tests.guard import MNT_DETACH
from tests.harness import FULL, Mount, mounted_at, nnfs, umount, wait_for, work_dir

pytestmark = pytest.mark.skipif(why_no_mount() is not None, reason="mounting needs root and /dev/fuse")
CHAINS = [(seed, 10) for seed in range(1, 6)] if FULL else [(1, 4), (2, 3)]
STEPS = 120


def die(mount: Mount) -> None:
    """The daemon is dead, or is killed now; the dead mount goes away."""
    if mount.alive:
        mount.kill()
    else:
        mount.unmount(expect=None)


@pytest.mark.parametrize(("seed", "rounds"), CHAINS)
def test_kill_at_a_store_write(shim: Path, seed: int, rounds: int) -> None:
    rng = random.Random(seed)
    base = work_dir()
    store = make_store(base, rng.choice((16384, 131072)))
    plan: Round | None = None
    acked = killed = 0
    try:
        for number in range(rounds + 1):
            control = Control(base / f"control{number}")
            with Mount(store, env=shim_environment(shim, store / "data.mdb", control=control)) as mount:
                seen, tree = look(mount)
                if plan is not None:
                    plan.judge(seen, acked)
                if number == rounds:
                    break
                plan = Round.draw(seed * 1000 + number, seen, tree, STEPS)
                control.kill(rng.randint(1, 120), rng.choice(HOW), rng.randrange(1000))
                log = base / f"log{number}"
                mount.deadline()
                done = plan.run(mount.path, base, log)
                if not done:
                    wait_for("the daemon's end", lambda: not mount.alive)
                killed += not mount.alive
                die(mount)
            acked = acked_steps(log)
            fsck_clean(store)
        fsck_clean(store)
        assert killed >= rounds // 2, f"the shim killed in {killed} of {rounds} rounds: arm it earlier"
    finally:
        shutil.rmtree(base)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("at", range(1, 13) if FULL else (1, 3))
def test_kill_while_mounting(shim: Path, at: int, how: str) -> None:
    """The daemon dies at a write of its very first mount, or of a mount after a crash; the next mount works."""
    base = work_dir()
    store = base / "store"
    store.mkdir()
    control = Control(base / "control")
    try:
        for _ in range(2):
            control.kill(at, how)
            mount = Mount(store, env=shim_environment(shim, store / "data.mdb", control=control))
            try:
                with mount:
                    (mount.path / "x").mkdir(exist_ok=True)
                    die(mount)
            except (AssertionError, OSError):
                assert control.writes >= at, "it failed by itself"
            with Mount(store) as mount:
                (mount.path / "y").mkdir(exist_ok=True)
            fsck_clean(store)
    finally:
        shutil.rmtree(base)


def test_dead_mount_goes_away(shim: Path) -> None:
    """`umount` takes the mount point of a dead daemon away, and the store mounts again."""
    base = work_dir()
    store = make_store(base, 131072)
    try:
        with Mount(store) as mount:
            (mount.path / "x").write_bytes(b"x")
            os.kill(mount.pid, signal.SIGKILL)
            wait_for("the daemon's end", lambda: not mount.alive)
            done = nnfs("umount", str(mount.path), check=False)
            is_gone = not mounted_at(mount.path)
            if not is_gone:
                umount(mount.path, MNT_DETACH)
            assert is_gone
            assert done.returncode == 9, "what was not synced is lost, and that is told"
            assert "its daemon had died before" in done.stderr
            die(mount)
        fsck_clean(store)
    finally:
        shutil.rmtree(base)
