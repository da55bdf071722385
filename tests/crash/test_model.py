"""The model of the crash tests against a filesystem that is known to be right, and against lies it must find."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.crash.kit import Round, acked_steps
from tests.crash.model import Step, differences, find_prefix, mixes, observe, view
from tests.harness import work_dir


@pytest.fixture
def disk() -> Iterator[Path]:
    """A directory on the machine's own filesystem (O_DIRECT and xattrs work there)."""
    path = work_dir()
    (path / "root").mkdir()
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("seed", range(2))
def test_model_tells_what_a_filesystem_does(disk: Path, seed: int) -> None:
    root = disk / "root"
    for number in range(2):  # the second round starts from what is there
        seen, tree = observe(root)
        assert not differences(view(tree), seen)
        plan = Round.draw(seed * 100 + number, seen, tree, 150)
        (disk / "log").unlink(missing_ok=True)
        assert plan.run(root, disk, disk / "log")
        assert acked_steps(disk / "log") == 150
        seen, _ = observe(root)
        assert differences(plan.views[-1], seen) == []
        plan.judge(seen, 150)


def test_lies_are_found(disk: Path) -> None:
    seen, tree = observe(disk / "root")
    plan = Round.draw(7, seen, tree, 120)
    plan.run(disk / "root", disk, disk / "log")
    seen, _ = observe(disk / "root")
    first = plan.last_sync(120)
    path = next(p for p, e in seen.items() if e.kind == "f" and e.data and not p.startswith("lazy"))
    entry = seen[path]
    assert entry.data
    wrong = [
        {**seen, path: replace(entry, data=bytes([entry.data[0] ^ 1]) + entry.data[1:])},
        {**seen, path: replace(entry, data=entry.data[:-1])},
        {**seen, path: replace(entry, mode=entry.mode ^ 0o100)},
        {**seen, path: replace(entry, nlink=entry.nlink + 1)},
        {p: e for p, e in seen.items() if p != path},
        {**seen, "extra": entry},
    ]
    for lie in wrong:
        assert find_prefix(plan.views, plan.steps, lie, first, 120) is None
    assert find_prefix(plan.views, plan.steps, plan.views[first - 20], first, 120) is None, "an unsynced past"
    lazy = next(p for p, e in seen.items() if p.startswith("lazy/") and e.data)
    with pytest.raises(AssertionError, match="never written"):
        plan.judge({**seen, lazy: replace(seen[lazy], data=b"\xff" * len(seen[lazy].data or b""))}, 120)


def test_part_of_a_write_is_no_lie() -> None:
    assert mixes([b"aaaa", b"aabbcc"], b"aaab", 4)
    assert mixes([b"aaaa", b"aabbcc"], b"aaaa\0c", 4)
    assert not mixes([b"aaaa", b"aabbcc"], b"aaac", 4)
    assert not mixes([b"aaaa", b"aabbcc"], b"aaa", 4)


def test_steps_say_whether_they_sync() -> None:
    assert Step("write", "x", how="osync").syncs
    assert Step("fsync", "x").syncs
    assert not Step("write", "x", how="direct").syncs
