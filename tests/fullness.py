"""One trial of a full disk below a store: who fills it, when, and everything that must hold all the same."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from tests.disks import MIB, disk
from tests.harness import Mount, nnfs

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
HOWS = ("itself", "outside", "racing", "remount")  # who fills the disk; "racing": again and again, while nnfs writes

# argv: file, seconds: take all there is, again and again.
FILLER = """
import errno, os, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
block, end = os.urandom(1 << 18), time.monotonic() + float(sys.argv[2])
size = len(block)
while size >= 512:
    try:
        if os.write(fd, block[:size]) < size:
            size //= 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        if time.monotonic() < end:
            time.sleep(0.0005)
            size = 1 << 16
        else:
            size //= 2
try:
    os.fsync(fd)
except OSError:
    pass
"""


def content(seed: int, most: int) -> bytes:
    """Incompressible bytes that a number tells."""
    rng = random.Random(seed)
    return rng.randbytes(rng.randrange(1, most))


def write_synced(path: Path, data: bytes) -> int:
    """Write a file and sync it; return the errno when there was no room. Any other error is raised."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in NO_ROOM:
            return error.errno
        raise
    return 0


def remove_synced(path: Path) -> None:
    """Remove a file, and have that on disk."""
    path.unlink()
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Trial:
    """A disk of `size` MiB, a store on it, and files that are known to be stored."""

    def __init__(self, kind: str, size: int, how: str, seed: int, *, quota: bool = False) -> None:
        self.kind, self.size, self.how, self.seed = kind, size, how, seed
        self.rng = random.Random(seed)
        self.quota = size // 2 if quota else 0
        self.stored: dict[Path, tuple[int, int]] = {}
        self.number = 0
        self.refused = 0
        self.codes: set[int] = set()  # errnos that writers were told
        self.room = (self.quota or size) * MIB

    def run(self) -> None:
        """All of it; raises AssertionError or OSError for what must not be."""
        with disk(self.kind, self.size, quota=self.quota) as point:
            self.outside = point / "limited" if self.quota else point
            store = self.outside / "store"
            with Mount(store) as self.mount:
                self.mount.deadline()
                self.mount.expect_log("(?i)space|is full|quota|no room")
                self.go_through()
            done = nnfs("fsck", str(store), "--data", check=False)
            assert done.returncode == 0, done.stdout + done.stderr

    def go_through(self) -> None:
        """Old files; full; deletions; full again; room; all is well."""
        self.write_some(self.room // 8, self.room // 40)
        filler = self.fill()
        assert self.refused, "it was never full"
        self.deletes_work()
        self.write_until_full(self.room // 30)
        self.deletes_work()
        if filler:
            filler.unlink()
        else:
            for path in sorted(self.stored)[::2]:
                self.remove(path)
        if self.kind == "btrfs":
            os.sync()  # it gives space back at its next commit
        refused, before = self.refused, len(self.stored)
        self.write_some(self.room // 16, self.room // 60)
        assert len(self.stored) > before, f"nothing can be written, with room again ({self.refused - refused})"
        self.verify()
        self.mount.remount()
        self.mount.deadline()
        self.verify()
        names = {path.name for path in self.mount.path.iterdir()}
        assert names == {path.name for path in self.stored}

    # -- steps

    def fill(self) -> Path | None:
        """Fill the disk; return the file outside of the store that does."""
        if self.how == "itself":
            self.write_until_full(self.rng.choice([self.room // 200, self.room // 20]))
            big = self.mount.path / "big"
            assert write_synced(big, self.rng.randbytes(self.room // 4))
            big.unlink(missing_ok=True)
            return None
        filler = self.outside / "filler"
        seconds = 0.0 if self.how != "racing" else 6.0
        if self.how == "remount":
            self.mount.unmount()
            self.run_filler(filler, 0.0)
            self.mount.mount()
            self.mount.deadline()
            self.write_until_full(self.room // 60)
            return filler
        thread = threading.Thread(target=self.run_filler, args=(filler, seconds))
        thread.start()
        while thread.is_alive():
            self.write_one(self.room // 30)
            if len(self.stored) > 6 and self.rng.random() < 0.2:
                self.remove(self.rng.choice(sorted(self.stored)))
        thread.join()
        self.write_until_full(self.room // 60)
        return filler

    @staticmethod
    def run_filler(path: Path, seconds: float) -> None:
        subprocess.run([sys.executable, "-I", "-S", "-c", FILLER, path, str(seconds)], check=True)

    def write_one(self, most: int) -> bool:
        """Write and sync one file; one that there was no room for is removed."""
        self.number += 1
        seed = self.seed * 100_000 + self.number
        path = self.mount.path / f"f{self.number}"
        code = write_synced(path, content(seed, most))
        if not code:
            self.stored[path] = (seed, most)
            return True
        self.codes.add(code)
        self.refused += 1
        path.unlink(missing_ok=True)
        return False

    def write_some(self, total: int, most: int) -> None:
        end = self.number + total // (most // 2)
        while self.number < end:
            self.write_one(most)

    def write_until_full(self, most: int) -> None:
        while self.write_one(most):
            pass

    def remove(self, path: Path) -> None:
        remove_synced(path)
        del self.stored[path]

    def deletes_work(self) -> None:
        """While it is full: a quarter of the files go, the others are there."""
        for path in self.rng.sample(sorted(self.stored), len(self.stored) // 4):
            self.remove(path)
        self.verify()

    def verify(self) -> None:
        """Every file that was synced has its bytes, asked from the daemon."""
        with suppress(OSError):  # syncfs reports the writes that failed, once
            self.mount.drop_caches()
        for path, (seed, most) in self.stored.items():
            assert path.read_bytes() == content(seed, most), f"{path} holds wrong bytes"
