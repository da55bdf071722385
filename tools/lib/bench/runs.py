"""Measurements as processes: in this checkout or in another commit's, in turns, each with a limit of time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.table import Answer, Case, Line, Result, Table, Task, merged
from nnfs.mount.table import mounts

LIB = Path(__file__).resolve().parents[1]
ROOT = LIB.parents[1]
GRACE_S = 30.0  # for a measurement that is told to end: it unmounts, and removes what it wrote
# Its own set-up, but for what lies outside of the checkout: links to the commands of a folder that will be gone.
SET_UP = ". tools/lib/setup.sh; install_helpers() { :; }; helpers_work() { :; }; set_up run"


@dataclass(frozen=True)
class Checkout:
    """The tree of one commit, set up; `levels` of its native kernels that run on this machine."""

    name: str
    root: Path
    levels: tuple[str, ...] = ()
    is_other: bool = False

    @property
    def python(self) -> str:
        """Its interpreter."""
        own = self.root / ".venv" / "bin" / "python"
        return os.fspath(own) if own.exists() else sys.executable

    def environment(self, level: str = "") -> dict[str, str]:
        """Return the variables of a process that runs its code, measured by ours."""
        own = {"PYTHONPATH": f"{self.root}:{LIB}"}
        return os.environ | own | ({"NNFS_KERNELS": level} if level and self.levels else {})


def checkout(root: Path, *, is_other: bool = False) -> Checkout:
    """Return the checkout in a folder that is set up."""
    found = Checkout(described(root), root, is_other=is_other)
    if not (root / "nnfs" / "kernels" / "library.py").exists():  # before there were levels; another nnfs may be found
        return found
    ask = "from nnfs.kernels.library import library; print(*library().levels)"
    done = subprocess.run(
        [found.python, "-P", "-c", ask], env=found.environment(), capture_output=True, text=True, check=False
    )
    return Checkout(found.name, root, tuple(done.stdout.split()), is_other)


def described(root: Path) -> str:
    """Return the commit of a checkout, marked where files differ from it."""
    command = ["git", "-C", os.fspath(root), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


@contextmanager
def other_checkout(commit: str, below: Path, root: Path = ROOT) -> Iterator[Checkout]:
    """A worktree of another commit in a folder, set up, and gone afterwards. Raises `SystemExit`."""
    git = ["git", "-C", os.fspath(root)]
    found = subprocess.run(
        [*git, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"], capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise SystemExit(f"bench: --against {commit}: no such commit in {root}")
    place = below / "against"
    try:
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", place, found.stdout.strip()], check=True)
        if subprocess.run(["bash", "-c", SET_UP], cwd=place, stdout=sys.stderr, check=False).returncode:
            raise SystemExit(f"bench: --against {commit}: its set-up failed, see above")
        yield checkout(place, is_other=True)
    finally:
        subprocess.run([*git, "worktree", "remove", "--force", place], stderr=subprocess.DEVNULL, check=False)


def measured(where: Checkout, table: str, case: Case, limit: float, work: Path) -> Answer:
    """Measure one case in a process of its own, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"{table}-", dir=work, ignore_cleanup_errors=True) as folder:
        out = Path(folder, "answer")
        task: Task = {**case.task, "work": folder, "is_other": where.is_other}
        Path(folder, "task").write_text(json.dumps(task))
        process = subprocess.Popen(
            [where.python, "-P", "-m", "bench.child", table, folder],
            cwd=folder, env=where.environment(case.level), stdout=sys.stderr, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            return Answer(problem=f"no end within {limit:,.0f} s")
        finally:
            end(process, folder)
        return answer(out) if out.exists() else Answer(problem=f"ended with status {process.returncode}")


def answer(out: Path) -> Answer:
    """Return the answer that a measurement wrote."""
    said = json.loads(out.read_text())
    lines = [Line(tuple(line.pop("labels")), **line) for line in said["lines"]]
    return Answer(tuple(lines), said["problem"], said["is_missing"])


def end(process: subprocess.Popen[bytes], folder: str) -> None:
    """End a measurement that still runs, even if it hangs, and everything mounted in its folder."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    for mount in mounts()[::-1]:
        if mount.mountpoint.startswith(f"{folder}/"):  # its daemon ends with it
            subprocess.run(["umount", "-f", "-l", mount.mountpoint], check=False)
    process.wait()


class Runner:
    """Measures cases here, and in the other commit if there is one."""

    def __init__(
        self, here: Checkout, other: Checkout | None, limit: float, work: Path, *, is_quick: bool = False
    ) -> None:
        self.here, self.other, self.limit, self.work, self.is_quick = here, other, limit, work, is_quick
        self._known: dict[str, Answer] = {}  # of the other commit: it may not know the levels in which cases differ

    def run(self, table: Table, case: Case) -> Result:
        """Measure one case, the two commits in turns."""
        other = self.other if self.other and case.compared else None
        same = f"{table.name} {case.task} {case.level if other and other.levels else ''}"
        ours: list[Answer] = []
        theirs: list[Answer] = []
        for _ in range(1 if self.is_quick else table.rounds):
            if other and same not in self._known and not (theirs and theirs[-1].problem):
                theirs.append(measured(other, table.name, case, self.limit, self.work))
            ours.append(measured(self.here, table.name, case, self.limit, self.work))
            if ours[-1].problem:
                break
        if theirs:
            self._known[same] = merged(theirs)
        return Result(case, merged(ours), self._known[same] if other else None)
