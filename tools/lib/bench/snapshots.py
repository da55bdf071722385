"""The cost of snapshots: taking one of a large tree, and the speed of a mount that has many.

The large tree is written by the daemon's own layers, without a mount. The two mounts, one with snapshots and one
without, have the same files and are measured in turns; the figure is the median of the quotients.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.targets import NNFS, command
from nnfs.fs.apply import apply
from nnfs.fs.filesystem import Filesystem
from nnfs.fs.namespace import Namespace
from nnfs.fs.xattrs import Xattrs
from nnfs.store.env import Store

FOLDERS, BATCH = 1000, 20_000
FILES, FILE_BYTES = 2000, 4096
LARGE = 64 << 20  # bytes of the file that is written to at random


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inodes", type=int, default=1_000_000, help="of the large tree (1000000); 0: leave it out")
    parser.add_argument("--snapshots", type=int, default=60, help="of the mount that has some (60)")
    parser.add_argument("--rounds", type=int, default=7, help="in which both mounts are measured (7); 0: leave it out")
    parser.add_argument("--below", type=Path, default=Path("/var/tmp"), help="where to work (/var/tmp)")
    return parser.parse_args()


def make_tree(path: Path, inodes: int) -> None:
    """Make a store with so many inodes in `FOLDERS` directories."""
    store = Store.create(path)
    fs, room = Filesystem(store), 0
    names = Namespace(fs, Xattrs(fs))
    folders = [names.create(1, b"d%d" % number, 0o40755, 0, 0, 0).ino for number in range(FOLDERS)]
    for number in range(inodes - FOLDERS):
        names.create(folders[number % FOLDERS], b"file %d" % number, 0o100644, 0, 0, 0)
        if number % BATCH == 0:
            applied, room = apply(store, fs.freeze(), {}, 1, room)
            fs.committed(applied)
    fs.committed(apply(store, fs.freeze(), {}, 1, room)[0])
    fs.close()
    store.close()


@contextmanager
def mounted(folder: Path, name: str) -> Iterator[Path]:
    """Mount a store, which is made if it is not there."""
    store, mnt = folder / name, folder / f"{name}.mnt"
    mnt.mkdir()
    if not store.exists():
        command([*NNFS, "mkfs", str(store)])
    command([*NNFS, "mount", str(store), str(mnt), "-o", "compact=off", "--log", str(folder / f"{name}.log")])
    try:
        yield mnt
    finally:
        command([*NNFS, "umount", str(mnt)], timeout=600)


def take(mnt: Path, name: str) -> float:
    """Take a snapshot. Return the seconds within the daemon."""
    return float(json.loads(command([*NNFS, "snapshot", "create", str(mnt), name, "--json"]))["seconds"])


def measure_taking(folder: Path, inodes: int) -> None:
    """Print how long it takes to take a snapshot of a large tree."""
    make_tree(folder / "large", inodes)
    with mounted(folder, "large") as mnt:
        taken = []
        for number in range(9):
            (mnt / "d0" / f"new {number}").touch()
            taken.append(take(mnt, f"s{number}"))
        begin = time.perf_counter()
        os.listdir(mnt / ".nnfs/snapshots/s0/d0")
        first = time.perf_counter() - begin
    shown = ", ".join(f"{1000 * seconds:.1f}" for seconds in taken)
    print(f"taking a snapshot of {inodes:,} inodes: {shown} ms; median {1000 * statistics.median(taken):.1f} ms")
    print(f"listing {inodes // FOLDERS:,} names of it: {1000 * first:.1f} ms")


def fill(mnt: Path) -> None:
    """Make the files that are changed later."""
    (mnt / "tree").mkdir()
    for number in range(FILES):
        (mnt / "tree" / f"f{number}").write_bytes(os.urandom(FILE_BYTES // 2) + bytes(FILE_BYTES // 2))
    (mnt / "large").write_bytes(os.urandom(LARGE))


def change(mnt: Path, rng: random.Random) -> None:
    """Change something of everything between two snapshots."""
    for number in rng.sample(range(FILES), 20):
        (mnt / "tree" / f"f{number}").write_bytes(os.urandom(FILE_BYTES))
    with (mnt / "large").open("r+b") as file:
        file.seek(rng.randrange(LARGE - FILE_BYTES))
        file.write(os.urandom(FILE_BYTES))


def timed(load: Callable[[Path, int], None], mnt: Path, number: int) -> float:
    """Return the seconds that a load takes."""
    begin = time.perf_counter()
    load(mnt, number)
    return time.perf_counter() - begin


def sync(mnt: Path) -> None:
    """Make everything durable."""
    descriptor = os.open(mnt, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def creates(mnt: Path, number: int) -> None:
    """Create files in a directory of its own, and remove them."""
    folder = mnt / f"new{number}"
    folder.mkdir()
    for name in range(1500):
        (folder / str(name)).touch()
    for name in range(1500):
        (folder / str(name)).unlink()
    folder.rmdir()


def rewrites(mnt: Path, number: int) -> None:
    """Write 300 old files anew, and make that durable."""
    for name in range(number * 300 % (FILES - 300), number * 300 % (FILES - 300) + 300):
        (mnt / "tree" / f"f{name}").write_bytes(os.urandom(FILE_BYTES))
    sync(mnt)


def random_writes(mnt: Path, number: int) -> None:
    """Write 200 times 4 KiB at random places of a large file, and make that durable."""
    rng = random.Random(number)
    with (mnt / "large").open("r+b", buffering=0) as file:
        for _ in range(200):
            file.seek(rng.randrange(LARGE - FILE_BYTES))
            file.write(os.urandom(FILE_BYTES))
    sync(mnt)


def sequential(mnt: Path, number: int) -> None:
    """Write a new file of 64 MiB, make it durable, read it, and remove it."""
    data = random.Random(number).randbytes(1 << 20)
    with (mnt / "sequential").open("wb") as file:
        for _ in range(64):
            file.write(data)
    sync(mnt)
    (mnt / "sequential").read_bytes()
    (mnt / "sequential").unlink()


def synced_creates(mnt: Path, number: int) -> None:
    """Create 100 files, each made durable."""
    for name in range(100):
        with (mnt / "tree" / f"synced {number} {name}").open("wb") as file:
            file.write(b"x")
            os.fsync(file.fileno())


LOADS = (creates, rewrites, random_writes, sequential, synced_creates)


def measure_speed(folder: Path, snapshots: int, rounds: int) -> None:
    """Print how much longer loads take on a mount that has snapshots."""
    rng = random.Random(1)
    with mounted(folder, "without") as without, mounted(folder, "with") as having:
        for mnt in (without, having):
            fill(mnt)
        for number in range(snapshots):
            for mnt in (without, having):
                change(mnt, rng)
            take(having, f"s{number}")
        for load in LOADS:
            quotients = []
            for number in range(rounds):
                pair = [timed(load, mnt, number) for mnt in (without, having)[:: 1 - number % 2 * 2]]
                first, second = pair if number % 2 == 0 else pair[::-1]
                quotients.append(second / first)
            shown = ", ".join(f"{one:.2f}" for one in sorted(quotients))
            print(f"{load.__name__} with {snapshots} snapshots: x {statistics.median(quotients):.2f} ({shown})")


def main() -> None:
    """Measure what is asked for."""
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="nnfs-bench-", dir=args.below) as name:
        if args.inodes:
            measure_taking(Path(name), args.inodes)
        if args.rounds:
            measure_speed(Path(name), args.snapshots, args.rounds)


if __name__ == "__main__":
    main()
