"""tools/bench runs measurements: in turns with another commit, in processes of their own, within a limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.harness import REPO

sys.path.insert(0, str(REPO / "tools" / "lib"))

from bench import runs
from bench.table import Answer, Case

from nnfs.mount.table import MountInfo
from tests.tools.benchkit import CASE, GOOD, table

# ---------------------------------------------------------------------------------------------------------- two commits


class Taken:
    """Measurements that are only noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, old: Answer = GOOD, levels: tuple[str, ...] = ()) -> None:
        self.order: list[str] = []
        self.old = old
        here, other = runs.Checkout("new", REPO, ("amx", "avx2")), runs.Checkout("old", REPO, levels, is_other=True)
        self.runner = runs.Runner(here, other, 1, REPO)
        monkeypatch.setattr(runs, "measured", self.measured)

    def measured(self, where: runs.Checkout, _table: str, _case: Case, _limit: float, _work: Path) -> Answer:
        self.order.append(where.name)
        return self.old if where.is_other else GOOD


def test_commits_are_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Taken(monkeypatch)
    result = taken.runner.run(table(rounds=3), CASE)
    assert taken.order == ["old", "new"] * 3
    assert result.other == GOOD


def test_a_quick_run_has_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Taken(monkeypatch)
    taken.runner.is_quick = True
    taken.runner.run(table(rounds=3), CASE)
    assert taken.order == ["old", "new"]


def test_what_the_other_commit_lacks_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Taken(monkeypatch, Answer(problem="no codec", is_missing=True))
    assert taken.runner.run(table(rounds=3), CASE).other == taken.old
    assert taken.order == ["old", "new", "new", "new"]


@pytest.mark.parametrize(("levels", "asked"), [((), 1), (("avx2",), 2)])
def test_a_commit_without_levels_is_measured_once_for_all(
    monkeypatch: pytest.MonkeyPatch, levels: tuple[str, ...], asked: int
) -> None:
    taken = Taken(monkeypatch, levels=levels)
    for level in ("amx", "avx2"):
        assert taken.runner.run(table(), replace(CASE, level=level)).other == GOOD
    assert taken.order.count("old") == asked
    assert taken.order.count("new") == 2


def test_some_cases_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Taken(monkeypatch)
    assert taken.runner.run(table(), replace(CASE, compared=False)).other is None
    assert taken.order == ["new"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit, whose set-up writes down what it does."""
    root = tmp_path / "repository"
    (root / "tools/lib").mkdir(parents=True)
    (root / "tools/lib/setup.sh").write_text(
        "install_helpers() { touch linked; }\nset_up() { install_helpers; echo $1 >is-set-up; }\n"
    )
    git = ["git", "-C", str(root), "-c", "user.name=b", "-c", "user.email=b@localhost"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    return root


def test_another_commit_is_set_up_in_a_worktree(repository: Path, tmp_path: Path) -> None:
    (repository / "tools/lib/setup.sh").write_text("set_up() { false; }\n")  # of today
    with runs.other_checkout("HEAD", tmp_path, repository) as other:
        assert (other.root / "is-set-up").read_text() == "run\n"
        assert not (other.root / "linked").exists(), "commands of the system would lead to it"
        assert (other.is_other, other.levels) == (True, ())
        assert other.name == runs.described(other.root) != "unknown"
    assert not other.root.exists()
    listed = subprocess.run(["git", "-C", repository, "worktree", "list"], capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == 1


def test_a_commit_that_is_not_there_is_told(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such commit"), runs.other_checkout("beef", tmp_path, repository):
        pass


def test_a_set_up_that_fails_is_told(repository: Path, tmp_path: Path) -> None:
    (repository / "tools/lib/setup.sh").write_text("set_up() { false; }\n")
    words = ["-c", "user.name=b", "-c", "user.email=b@localhost", "commit", "-q", "-a", "-m", "two"]
    subprocess.run(["git", "-C", str(repository), *words], check=True)
    with pytest.raises(SystemExit, match="its set-up failed"), runs.other_checkout("HEAD", tmp_path, repository):
        pass
    assert not (tmp_path / "against").exists()


def test_a_level_is_forced_where_the_commit_has_levels() -> None:
    new, old = runs.Checkout("new", REPO, ("avx2",)), runs.Checkout("old", REPO)
    assert new.environment("avx2")["NNFS_KERNELS"] == "avx2"
    assert new.environment().get("NNFS_KERNELS") == os.environ.get("NNFS_KERNELS")
    assert old.environment("avx2").get("NNFS_KERNELS") == os.environ.get("NNFS_KERNELS")
    assert old.environment()["PYTHONPATH"].startswith(f"{REPO}:")


# ------------------------------------------------------------------------------------------------- processes and limits


def checkout(tmp_path: Path, script: str) -> runs.Checkout:
    """A checkout whose interpreter is a shell script: its arguments are -P -m bench.child TABLE FOLDER."""
    python = tmp_path / "checkout/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return runs.Checkout("fake", tmp_path / "checkout")


def test_a_measurement_is_told_its_task_and_folder(tmp_path: Path) -> None:
    where = checkout(tmp_path, f'cp "$5/task" {tmp_path}; pwd >{tmp_path}/folder; cp {tmp_path}/answer "$5"')
    (tmp_path / "answer").write_text(
        json.dumps({
            "lines": [{"labels": ["all"], "values": {"kbps": 150.4, "s": 2}, "less_is_better": False}],
            "problem": "", "is_missing": False,
        })
    )  # fmt: skip
    assert runs.measured(where, "t", CASE, 60, tmp_path) == GOOD
    folder = (tmp_path / "folder").read_text().strip()
    assert json.loads((tmp_path / "task").read_text()) == {"size": 1, "work": folder, "is_other": False}
    assert not Path(folder).exists()


def test_a_measurement_that_dies_says_so(tmp_path: Path) -> None:
    assert runs.measured(checkout(tmp_path, "exit 3"), "t", CASE, 60, tmp_path).problem == "ended with status 3"


@pytest.mark.parametrize("trap", ["", "trap '' TERM;"])
def test_a_measurement_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str) -> None:
    monkeypatch.setattr(runs, "GRACE_S", 0)
    where = checkout(tmp_path, f"{trap} tail -f /dev/null")
    assert runs.measured(where, "t", CASE, 0, tmp_path) == Answer(problem="no end within 0 s")


def test_mounts_of_a_measurement_are_unmounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [f"{tmp_path}/mnt", f"{tmp_path}/mnt/below", f"{tmp_path}-other", "/"]
    calls: list[str] = []
    process = subprocess.Popen(["true"], start_new_session=True)
    monkeypatch.setattr(runs, "mounts", lambda: [MountInfo("0:1", point, "", "", "", "") for point in points])
    monkeypatch.setattr(subprocess, "run", lambda argv, **_: calls.append(argv[-1]))
    runs.end(process, str(tmp_path))
    assert calls == points[1::-1]
