"""Several processes at once: random operations on files of their own, on one shared file, on one shared directory."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.caches import sync_fs
from tests.harness import FULL, Mount, Plain
from tests.semantics.kit import CHUNK, pattern
from tests.semantics.test_fsx import Checker

PROCESSES = 4


def at_once(runs: Sequence[Callable[[], None]]) -> None:
    """Fork one process for each; all must end well. Their output goes to this process's stderr."""
    pids = []
    for run in runs:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                run()
                code = 0
            except BaseException as e:  # noqa: BLE001 - the child's only way to tell
                os.write(2, f"{type(e).__name__}: {e}\n".encode())
            finally:
                os._exit(code)
        pids.append(pid)
    ends = [os.waitpid(pid, 0)[1] for pid in pids]
    assert ends == [0] * len(runs)


def reopened(mounted: Mount | Plain) -> type[Checker]:
    """A checker that leaves the mount alone: others use it, too."""

    class Shared(Checker):
        def remount(self) -> None:
            self.reopen()

        def drop(self) -> None:
            sync_fs(mounted.path)

    return Shared


@pytest.mark.long
def test_random_operations_on_files_of_their_own(mnt: Path, mounted: Mount | Plain) -> None:
    kind = reopened(mounted)

    def work(who: int) -> None:
        checker = kind(mnt / f"f{who}", mounted, seed=100 + who)
        checker.run(3000 if FULL else 250)
        checker.close()
        (mnt / f"f{who}.want").write_bytes(checker.model)

    at_once([partial(work, who) for who in range(PROCESSES)])
    mounted.remount()
    for who in range(PROCESSES):
        assert (mnt / f"f{who}").read_bytes() == (mnt / f"f{who}.want").read_bytes()


@pytest.mark.long
def test_one_file_in_slices(mnt: Path, mounted: Mount | Plain) -> None:
    """Each process owns every fourth stretch of an odd length, so chunks and pages are shared and stretches are not."""
    f = mnt / "f"
    stretch, rounds = 1237, 40
    count = 12 * CHUNK // stretch // PROCESSES * PROCESSES
    f.write_bytes(bytes(count * stretch))

    def work(who: int) -> None:
        rng = random.Random(who)
        fd = os.open(f, os.O_RDWR)
        mine = {}
        for i in range(rounds * 10 if FULL else rounds):
            n = rng.randrange(count // PROCESSES) * PROCESSES + who
            mine[n] = pattern(stretch, seed=who * 1000 + i + 1)
            assert os.pwrite(fd, mine[n], n * stretch) == stretch
            if i % 10 == who:
                os.fsync(fd)
            for seen in rng.sample(sorted(mine), min(3, len(mine))):
                assert os.pread(fd, stretch, seen * stretch) == mine[seen], f"stretch {seen} of process {who}"
        os.close(fd)
        (mnt / f"want{who}").write_bytes(b"".join(n.to_bytes(4, "big") + data for n, data in sorted(mine.items())))

    at_once([partial(work, who) for who in range(PROCESSES)])
    mounted.remount()
    got = f.read_bytes()
    for who in range(PROCESSES):
        want = (mnt / f"want{who}").read_bytes()
        for at in range(0, len(want), stretch + 4):
            n = int.from_bytes(want[at : at + 4], "big")
            assert got[n * stretch : (n + 1) * stretch] == want[at + 4 : at + 4 + stretch]


@pytest.mark.long
def test_one_directory(mnt: Path, mounted: Mount | Plain) -> None:
    """Everybody creates, renames, links, unlinks and lists in one directory; names tell whose they are."""
    d = mnt / "d"
    d.mkdir()

    def work(who: int) -> None:
        rng = random.Random(who)
        mine: dict[str, bytes] = {}
        for i in range(2000 if FULL else 200):
            name = f"{who}-{i}"
            what = rng.random()
            if what < 0.5 or not mine:
                mine[name] = pattern(rng.randrange(3000), seed=i + 1)
                (d / name).write_bytes(mine[name])
            elif what < 0.65:
                old = rng.choice(sorted(mine))
                os.rename(d / old, d / name)
                mine[name] = mine.pop(old)
            elif what < 0.75:
                old, over = rng.choice(sorted(mine)), rng.choice(sorted(mine))
                os.rename(d / old, d / over)
                mine[over] = mine.pop(old)
            elif what < 0.85:
                gone = rng.choice(sorted(mine))
                os.unlink(d / gone)
                del mine[gone]
            elif what < 0.92:
                old = rng.choice(sorted(mine))
                os.link(d / old, d / name)
                os.unlink(d / old)
                mine[name] = mine.pop(old)
            else:
                listed = {n for n in os.listdir(d) if n.startswith(f"{who}-")}
                assert listed == set(mine)
        for name, data in mine.items():
            assert (d / name).read_bytes() == data
        (mnt / f"left{who}").write_text("\n".join(sorted(mine)))

    at_once([partial(work, who) for who in range(PROCESSES)])
    mounted.remount()
    left = {n for who in range(PROCESSES) for n in (mnt / f"left{who}").read_text().split("\n") if n}
    assert set(os.listdir(d)) == left
    assert os.stat(d).st_nlink == 2
    assert all(os.stat(d / n).st_nlink == 1 for n in left)


def test_the_same_name_by_everybody(mnt: Path) -> None:
    """O_EXCL and mkdir have one winner in each round."""
    rounds = 200 if FULL else 40

    def work(who: int) -> None:
        won = 0
        for i in range(rounds):
            makers: list[Callable[[Path], None]] = [
                lambda p: os.close(os.open(p, os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
                lambda p: os.mkdir(f"{p}-d"),
                lambda p: os.symlink(str(who), f"{p}-l"),
            ]
            for make in makers:
                try:
                    make(mnt / f"n{i}")
                    won += 1
                except FileExistsError:
                    pass
        (mnt / f"won{who}").write_text(str(won))

    at_once([partial(work, who) for who in range(PROCESSES)])
    assert sum(int((mnt / f"won{who}").read_text()) for who in range(PROCESSES)) == 3 * rounds
    assert len(os.listdir(mnt)) == 3 * rounds + PROCESSES
