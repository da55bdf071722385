"""Rows about names and attributes: tight loops of system calls, a source tree, a large directory."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.rows import Figure, Row, Values
from bench.targets import Target, command

ROOTS = ("/usr/lib/python3", "/usr/lib/python3.11", "/usr/include", "/usr/share/perl", "/usr/share/doc", "/usr/share")
TREE_FILES = 2_500
TREE_BYTES = 43_000_000


def timed(what: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    what()
    return time.perf_counter() - begin


def each(count: int, call: Callable[[str], object], where: Path) -> float:
    """Return calls per second over the names f0, f1, ... in a directory."""
    names = [f"{where}/f{number}" for number in range(count)]
    begin = time.perf_counter()
    for name in names:
        call(name)
    return count / (time.perf_counter() - begin)


def create(name: str) -> None:
    """Make a new empty file."""
    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def loops(target: Target, quick: bool) -> Values:
    """Create, stat (twice, the second counts) and unlink empty files in one directory."""
    count = 3_000 if quick else 10_000
    where = target.root / "loop"
    where.mkdir()
    values = {"create": each(count, create, where)}
    each(count, os.stat, where)
    values["stat"] = each(count, os.stat, where)
    values["unlink"] = each(count, os.unlink, where)
    return values


def sources() -> Iterator[tuple[str, int]]:
    """Yield path and size of small files of this machine, in a fixed order."""
    for root in ROOTS:
        for folder, below, names in os.walk(root):
            below.sort()
            for name in sorted(names):
                path = os.path.join(folder, name)
                if os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path) < 1 << 20:
                    yield path, os.path.getsize(path)


def source_tree(archive: Path) -> None:
    """Make a tar file like a source tree's: TREE_FILES real files, TREE_BYTES together."""
    total = count = 0
    with tarfile.open(archive, "w") as tar:
        for path, size in sources():
            if total + size > (count + 1) * TREE_BYTES / TREE_FILES + (1 << 19):
                continue  # above the mean so far: a smaller one must come first
            tar.add(path, "tree" + path)
            total, count = total + size, count + 1
            if count == TREE_FILES:
                break


def tree(target: Target, quick: bool) -> Values:
    """Untar, make it durable; commit it to git and ask for its status, warm; walk it cold."""
    archive = target.base / "tree.tar"
    source_tree(archive)
    subprocess.run(["cat", str(archive)], stdout=subprocess.DEVNULL, check=True)
    times = []
    for _ in range(1 if quick else 3):
        shutil.rmtree(target.root / "tree", ignore_errors=True)
        target.sync()
        begin = time.perf_counter()
        command(["tar", "-xf", str(archive), "-C", str(target.root)])
        target.sync()
        times.append(time.perf_counter() - begin)
    values = {"untar": statistics.median(times), "git": git_status(target.root / "tree")}
    target.sync()
    target.cool()
    values["walk"] = timed(lambda: command(["ls", "-lR", str(target.root / "tree")]))
    return values


def git_status(where: Path) -> float:
    """Return the median seconds of five `git status` in a committed tree, after one that is not counted."""

    def git(*args: str) -> None:
        command(["git", "-c", "user.name=b", "-c", "user.email=b@localhost", "-c", "gc.auto=0", *args], cwd=where)

    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "tree")
    git("status")
    return statistics.median(timed(lambda: git("status")) for _ in range(5))


def large_directory(target: Target, quick: bool) -> Values:
    """A directory of 50,000 empty files: create, list, stat, remove; seconds of each, and together."""
    count = 5_000 if quick else 50_000
    where = target.root / "large"
    where.mkdir()
    values = {
        "dir_create": timed(lambda: each(count, create, where)),
        "dir_list": timed(lambda: os.listdir(where)),
        "dir_stat": timed(lambda: each(count, os.stat, where)),
        "dir_remove": timed(lambda: shutil.rmtree(where)),
    }
    scale = 50_000 / count
    values = {key: value * scale for key, value in values.items()}
    return {"dir": sum(values.values()), **values}


ROWS = (
    Row(
        "loops",
        loops,
        (
            Figure("create", "create, 10k empty files", "per s", 1200, 2000),
            Figure("unlink", "unlink", "per s", 1200, 3000),
            Figure("stat", "stat warm", "per s", 15_000, 25_000),
        ),
        repeat=3,
    ),
    Row(
        "tree",
        tree,
        (
            Figure("untar", "untar 43 MB, 2,500 files, durable", "s", 4, 2, less_is_better=True),
            Figure("git", "git status warm", "s", 0.5, 0.25, less_is_better=True),
            Figure("walk", "ls -lR of the tree with .git, cold", "s", less_is_better=True),
        ),
    ),
    Row(
        "dir",
        large_directory,
        (
            Figure("dir", "a directory of 50,000 files, all", "s", 90, 40, less_is_better=True),
            Figure("dir_create", "  create", "s", less_is_better=True),
            Figure("dir_list", "  list", "s", less_is_better=True),
            Figure("dir_stat", "  stat", "s", less_is_better=True),
            Figure("dir_remove", "  rmtree", "s", less_is_better=True),
        ),
    ),
)
