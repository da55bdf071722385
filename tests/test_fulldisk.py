"""A full disk below the store: the writer hears ENOSPC, nobody else notices, and deleting helps."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests import disks, fullness
from tests.background.kit import RESTLESS, Chaos, fsck_clean
from tests.conftest import why_no_mount
from tests.fullness import HOWS, Trial, write_synced
from tests.harness import FULL, Mount, nnfs, umount, wait_for, work_dir

pytestmark = pytest.mark.skipif(why_no_mount() is not None, reason="mounting needs root and /dev/fuse")
MIB = 1 << 20


@contextmanager
def small_disk(size: int) -> Iterator[Path]:
    """An ext4 of its own, in a file."""
    base = work_dir()
    image, disk = base / "image", base / "disk"
    disk.mkdir()
    try:
        with image.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, disk], check=True)
        try:
            yield disk
        finally:
            umount(disk)
    finally:
        shutil.rmtree(base)


def free(path: Path) -> int:
    """Bytes that an ordinary user may still write."""
    st = os.statvfs(path)
    return st.f_bavail * st.f_frsize


def content(seed: int) -> bytes:
    """Incompressible bytes that a number tells."""
    return fullness.content(seed, 700_000)


def read_cold(path: Path) -> bytes:
    """A file's content, asked from the daemon and not from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return file.read()


def fill(folder: Path, first: int) -> dict[int, Path]:
    """Write files until there is no room, and those that were synced; the file that failed is removed."""
    stored: dict[int, Path] = {}
    for seed in range(first, first + 10_000):
        path = folder / f"f{seed}"
        if write_synced(path, content(seed)):
            path.unlink(missing_ok=True)
            return stored
        stored[seed] = path
    raise AssertionError("the disk never got full")


def verify(stored: dict[int, Path]) -> None:
    """Every synced file has its bytes."""
    for seed, path in stored.items():
        assert read_cold(path) == content(seed), f"{path} holds wrong bytes"


def test_full_and_free_again() -> None:
    with small_disk(96 * MIB) as disk:
        store = disk / "store"
        with Mount(store) as mount:
            mount.deadline()
            mount.expect_log("(?i)space")  # saying so is no trouble
            old = {n: mount.path / f"old{n}" for n in range(20)}
            for seed, path in old.items():
                assert not write_synced(path, content(seed))
            assert free(mount.path) <= free(disk)
            stored = fill(mount.path, 1000)
            size = sum(len(content(seed)) for seed in stored)
            assert size > 50 * MIB, "full much too early"
            assert free(mount.path) < 4 * MIB, "df promises room that is not there"
            assert mount.alive
            with suppress(OSError):  # syncfs reports the writes that failed, once
                mount.drop_caches()
            verify(old)
            verify(stored)

            for seed in sorted(stored)[::2]:
                stored.pop(seed).unlink()
            gone = size - sum(len(content(seed)) for seed in stored)
            more = fill(mount.path, 20_000)
            assert sum(len(content(seed)) for seed in more) > gone * 3 // 4, "what was deleted cannot be written again"
            verify(more)

            for path in more.values():
                path.unlink()
            again = sum(len(content(seed)) for seed in more)
            wait_for("the lower filesystem's space", lambda: free(disk) > again * 2 // 3)
            mount.remount()
            verify(old)
            verify(stored)
            assert sorted(p.name for p in mount.path.iterdir()) == sorted(
                p.name for p in (*old.values(), *stored.values())
            )
        done = nnfs("fsck", str(store), "--data", check=False)
        assert done.returncode == 0, done.stdout + done.stderr


class Crowd:
    """Writers and readers that meet at the edge of a full disk."""

    def __init__(self, root: Path, rounds: int) -> None:
        self.root = root
        self.rounds = rounds
        self.lock = threading.Lock()
        self.stored: dict[int, Path] = {}
        self.refused = 0
        self.trouble: list[str] = []
        self.writers_left = 10

    def _guarded(self, work: object, number: int) -> None:
        try:
            work(number)  # type: ignore[operator]
        except (OSError, AssertionError) as error:
            self.trouble.append(f"{work.__name__} {number}: {error!r}")  # type: ignore[attr-defined]

    def write(self, number: int) -> None:
        """Write files; when there is no room, delete some of its own and go on."""
        own: list[int] = []
        try:
            for turn in range(self.rounds):
                seed = number * 100_000 + turn
                path = self.root / f"w{seed}"
                if not write_synced(path, content(seed)):
                    own.append(seed)
                    with self.lock:
                        self.stored[seed] = path
                    continue
                path.unlink(missing_ok=True)
                with self.lock:
                    self.refused += 1
                for old in own[: len(own) // 3 + 1]:
                    with self.lock:
                        self.stored.pop(old).unlink()
                own = own[len(own) // 3 + 1 :]
        finally:
            self.writers_left -= 1

    def read(self, number: int) -> None:
        """Read what was synced, and compare."""
        rng = random.Random(number)
        while self.writers_left:
            with self.lock:
                seed, path = rng.choice(sorted(self.stored.items())) if self.stored else (0, self.root)
                file = path.open("rb") if seed else None  # opened under the lock: it may be deleted while it is read
            if file is not None:
                with file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    assert file.read() == content(seed), f"{path} holds wrong bytes"

    def run(self) -> None:
        """Ten of each, to the end."""
        jobs = [(self.write, n + 1) for n in range(10)] + [(self.read, n) for n in range(10)]
        threads = [threading.Thread(target=self._guarded, args=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def at_the_edge(mount: Mount, rounds: int) -> dict[int, Path]:
    """Have a crowd meet there; return the files that it leaves, by what they hold."""
    mount.deadline()
    mount.expect_log("(?i)space|is full")
    crowd = Crowd(mount.path, rounds)
    crowd.run()
    assert crowd.trouble == []
    assert crowd.refused > 0, "it was never full"
    assert mount.alive
    mount.remount()
    mount.deadline()
    verify(crowd.stored)
    return crowd.stored


def test_twenty_at_the_edge() -> None:
    with small_disk(64 * MIB) as disk:
        store = disk / "store"
        with Mount(store) as mount:
            at_the_edge(mount, 150 if FULL else 30)
        done = nnfs("fsck", str(store), "--data", check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_twenty_at_the_edge_and_recompression() -> None:
    """It never takes the space that a writer was promised, and loses nothing for lack of it."""
    with small_disk(64 * MIB) as disk:
        store = disk / "store"
        with Chaos(store, mode="all", options=RESTLESS, kill="200") as mount:
            stored = at_the_edge(mount, 100 if FULL else 30)
            for seed in sorted(stored)[::2]:
                stored.pop(seed).unlink()
            mount.turn_round(6)  # now that there is room
            verify(stored)
            assert mount.swaps > 50
        fsck_clean(store)


SOME = [
    ("tmpfs", 48, "outside"),
    ("tmpfs", 64, "itself"),
    ("ext4", 64, "itself"),
    ("ext4", 96, "outside"),
    ("ext4", 64, "remount"),
    ("xfs", 320, "outside"),
    ("btrfs", 64, "itself"),
    ("btrfs", 128, "outside"),
]
ALL = [(kind, size, how) for kind in disks.KINDS for size in disks.SIZES for how in HOWS]


@pytest.mark.parametrize(("kind", "size", "how"), ALL if FULL else SOME)
def test_full_in_every_way(kind: str, size: int, how: str) -> None:
    """Any program may fill it: ENOSPC, old data, removals; all goes on when there is room (tools/test-full)."""
    if disks.why_not(kind, size):
        pytest.skip(disks.why_not(kind, size))
    Trial(kind, size, how, seed=size).run()


@pytest.mark.parametrize(
    "how", ["itself", "remount"]
)  # beside somebody who uses it up at the same time: tools/test-full
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_quota_is_used_up(kind: str, how: str) -> None:
    if disks.why_no_quota(kind):
        pytest.skip(disks.why_no_quota(kind))
    trial = Trial(kind, 320, how, seed=1, quota=True)
    trial.run()
    assert errno.EDQUOT in trial.codes


@pytest.mark.parametrize("kind", disks.KINDS)
def test_many_writes_at_a_time_find_the_room_that_there_is(kind: str) -> None:
    """The kernel sends dozens of writes at once; what one had made sure of was another's, and there was no room."""
    size = 320 if kind == "xfs" else 64
    if disks.why_not(kind, size):
        pytest.skip(disks.why_not(kind, size))
    with disks.disk(kind, size) as folder, Mount(folder / "store") as mount:
        mount.deadline(600)
        for number in range(2):  # buffered, in small pieces, and a commit only when enough has come together
            path = mount.path / f"f{number}"
            with path.open("wb") as file:
                subprocess.run(["head", "-c", "20M", "/dev/urandom"], stdout=file, check=True)
                os.fsync(file.fileno())
            assert path.stat().st_size == 20 * MIB


def test_what_was_deleted_is_shown_as_free_on_btrfs() -> None:
    """Free pages are kept there, not punched: they are room for new data, which no look at the disk shows."""
    if disks.why_not("btrfs", 300):
        pytest.skip(disks.why_not("btrfs", 300))
    with disks.disk("btrfs", 300) as folder, Mount(folder / "store") as mount:
        mount.deadline(600)
        size = 0
        with (mount.path / "big").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                size += file.write(os.urandom(MIB))
                os.fsync(file.fileno())
        (mount.path / "big").unlink()
        wait_for("the room that there is", lambda: free(mount.path) > size // 2)
        told = json.loads(nnfs("status", str(mount.path), "--json").stdout)["free_bytes"]
        assert told > size // 2
        whole = os.statvfs(mount.path)
        assert whole.f_blocks * whole.f_frsize < 300 * MIB
