"""Helpers of the tests of kill -9 and power cuts: run a workload on a mount, then judge a later mount."""

from __future__ import annotations

import copy
import os
import pickle
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.crash.journal import ACK, read_journal
from tests.crash.model import LAZY, Generator, Step, Tree, View, check_lazy, differences, find_prefix, history, observe
from tests.harness import REPO, WAIT_S, Mount, environment, nnfs


@dataclass
class Round:
    """Steps that were drawn on a tree, and the views they lead through."""

    steps: list[Step]
    views: list[View]
    lazy: dict[str, bytes]  # content of the lazy files at the start

    @classmethod
    def draw(cls, seed: int, seen: View, tree: Tree, count: int) -> Round:
        """`count` steps from what a mount shows."""
        steps = Generator(random.Random(seed), copy.deepcopy(tree)).steps(count)
        lazy = {path: entry.data or b"" for path, entry in seen.items() if path.startswith(LAZY + "/")}
        return cls(steps, history(copy.deepcopy(tree), steps), lazy)

    def run(self, root: Path, scratch: Path, log: Path, first: int = 0, last: int | None = None) -> bool:
        """Whether the steps were answered; False when the daemon went away. Acknowledgements go to `log`."""
        file = scratch / "steps"
        file.write_bytes(pickle.dumps(self.steps[first:last]))
        command = [sys.executable, "-m", "tests.crash.workload", str(root), str(file), str(log), str(first)]
        done = subprocess.run(command, cwd=REPO, env=environment(), timeout=WAIT_S, capture_output=True, text=True)
        assert done.returncode in (0, 3), done.stderr
        return done.returncode == 0

    def last_sync(self, acked: int) -> int:
        """Number of steps up to the last acknowledged sync."""
        return max((n for n, step in enumerate(self.steps[:acked], start=1) if step.syncs), default=0)

    def judge(self, seen: View, acked: int) -> None:
        """AssertionError when what is seen is not what a crash after `acked` answered steps may leave."""
        first, last = self.last_sync(acked), min(acked + 1, len(self.steps))
        k = find_prefix(self.views, self.steps, seen, first, last)
        if k is None:
            nearest = min(range(first, last + 1), key=lambda n: len(differences(self.views[n], seen)))
            wrong = differences(self.views[nearest], seen)
            story = "\n".join(f"{n}: {step}" for n, step in enumerate(self.steps[: last + 1], start=1))
            raise AssertionError(
                f"no prefix in {first}..{last} fits; {nearest} differs in:\n"
                + "\n".join(f"{p}: {_short(self.views[nearest].get(p))} is {_short(seen.get(p))}" for p in wrong)
                + f"\nsteps:\n{story}"
            )
        for path, entry in seen.items():
            if path.startswith(LAZY + "/"):
                base = self.lazy.get(path, b"")
                begun = self.steps[: acked + 1]
                assert check_lazy(path, base, begun, acked, entry.data or b""), f"{path} holds bytes never written so"


def _short(entry: object) -> str:
    text = repr(entry)
    return text if len(text) < 400 else f"{text[:300]}...{text[-90:]}"


def acked_steps(log: Path) -> int:
    """The last step that the workload noted."""
    return max((r.offset for r in read_journal(log) if r.kind == ACK), default=0) if log.exists() else 0


def look(mount: Mount) -> tuple[View, Tree]:
    """Return the tree that a mount shows, with a deadline on the daemon."""
    mount.deadline()
    seen, tree = observe(mount.path)
    mount.deadline(0)
    return seen, tree


def fsck_clean(store: Path) -> None:
    """`nnfs fsck --data` finds nothing."""
    done = nnfs("fsck", str(store), "--data", check=False)
    assert done.returncode == 0, f"fsck: exit {done.returncode}\n{done.stdout}{done.stderr}"


def make_store(folder: Path, chunk_size: int) -> Path:
    """An empty store."""
    store = folder / "store"
    nnfs("mkfs", os.fspath(store), "--chunk-size", str(chunk_size))
    return store
