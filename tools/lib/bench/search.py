"""The quality of `nnfs similar`, and the speed of `nnfs search` in a store of a million files.

Quality is measured on real files through a mount. Samples are drawn from the folders given: a file's *topic* is the
folder right below the given one in which it lies (a package of documentation, a library's headers, a section of the
manual), its *kind* is the ending of its name or, without one, the name. Compressed files are stored unpacked. The store
has each file in a folder of its own, named by a number, so nothing but name and content tells what it is. The figures
are the shares of files whose first answer, and of the first five answers, has the same topic or kind, among files for
which there is another one of it; the mean of all samples.

Speed is measured on a store whose records are written straight into its tables, with random vectors, in this process.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench.targets import NNFS, command
from nnfs.cli import client
from nnfs.fs.search import asking
from nnfs.fs.search.catalog import Catalog
from nnfs.store import schema, vectors
from nnfs.store.env import Store
from nnfs.store.schema import Dentry, Inode, MapNode
from nnfs.store.vectors import Vector

ROOTS = ("/usr/share/doc", "/usr/lib/python3/dist-packages", "/usr/include", "/usr/share/man")
LEAST, OF_ONE = 300, 10  # bytes of a file; files of one topic in a sample
HEAD = 4096  # bytes that are copied
FOLDER, BATCH = 1000, 20_000  # files of a folder, records of one commit
BEGINNINGS = ("ka", "lo", "mi", "ru", "te", "su", "na", "po", "vi", "ze")
ENDS = ("ran", "tel", "mos", "dik", "pur", "lin", "gab", "fes", "wot", "jam")
WORDS = [begin + end for begin in BEGINNINGS for end in ENDS]
QUESTIONS = ("rantel karan", "report", "kalo", "a", "ze 4711 mitel")


class Sampled(NamedTuple):
    """A file of a sample."""

    path: Path
    topic: str
    kind: str


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="*", default=ROOTS, metavar="PATH", help=f"where files are ({' '.join(ROOTS)})")
    parser.add_argument("--files", type=int, default=1000, help="of a sample, about (1000); 0: no quality")
    parser.add_argument("--samples", type=int, default=3, help="that are drawn (3)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="files of the large store (1000000); 0: no speed")
    parser.add_argument("--below", type=Path, default=Path("/var/tmp"), help="where to work (/var/tmp)")
    return parser.parse_args()


# -- quality


def topics_of(root: str) -> dict[str, list[Path]]:
    """Return the files below a folder by topic."""
    found = defaultdict(list)
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink() and path.stat().st_size > LEAST and folder != root:
                found[os.path.relpath(folder, root).split("/")[0]].append(path)
    return {topic: paths for topic, paths in found.items() if len(paths) > 2}


def kind_of(path: Path) -> str:
    """Return a file's ending or, without one, its name up to the first dot."""
    name = path.name.removesuffix(".gz").lower()
    ending = os.path.splitext(name)[1]
    return ending if ending and not ending[1:].isdigit() else name.split(".")[0]


def sample(roots: list[str], files: int, seed: int) -> list[Sampled]:
    """Draw files: some of each topic, topics until there are enough, as many from each root."""
    rng, found = random.Random(seed), list[Sampled]()
    for root in roots:
        topics, took = sorted(topics_of(root).items()), 0
        rng.shuffle(topics)
        for topic, paths in topics:
            for path in rng.sample(paths, min(OF_ONE, len(paths))):
                found.append(Sampled(path, f"{root}/{topic}", kind_of(path)))
                took += 1
            if took >= files / len(roots):
                break
    return found


def head_of(path: Path) -> bytes:
    """Return the beginning of a file, unpacked."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


@contextmanager
def mounted(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Make and mount a store. Yield store and mount point."""
    store, mnt = folder / "store", folder / "mnt"
    mnt.mkdir()
    command([*NNFS, "mkfs", str(store)])
    command([*NNFS, "mount", str(store), str(mnt), "-o", "compact=off,cpu_budget=1", "--log", str(folder / "log")])
    try:
        yield store, mnt
    finally:
        command([*NNFS, "umount", str(mnt)], timeout=600)


def wait_for_vectors(store: Path, least: int) -> None:
    """Wait until the daemon has made the vectors."""
    while client.ask(store, "status")["search"]["made"] < least:
        time.sleep(0.5)


def measure_sample(folder: Path, files: list[Sampled]) -> list[float]:
    """Return the four shares for one sample."""
    heads = [(one, head) for one in files if len(head := head_of(one.path)) > LEAST]
    with mounted(folder) as (store, mnt):
        for number, (one, head) in enumerate(heads):
            (mnt / str(number)).mkdir()
            (mnt / str(number) / one.path.name.removesuffix(".gz")).write_bytes(head)
        wait_for_vectors(store, len(heads))
        answers = []
        for number, (one, head) in enumerate(heads):
            name = one.path.name.removesuffix(".gz")
            ino = (mnt / str(number) / name).stat().st_ino
            found = client.ask(store, "search", name=name, head=head[:1024].hex(), without=ino, count=5, types=["f"])[
                "found"
            ]
            answers.append([int(line["path"].split("/")[0]) for line in found])
    kept, shares = [one for one, _ in heads], []
    for field in ("topic", "kind"):
        labels = [getattr(one, field) for one in kept]
        counts = Counter(labels)
        hits = [
            [labels[other] == labels[number] for other in found]
            for number, found in enumerate(answers)
            if counts[labels[number]] > 1
        ]
        shares += [statistics.mean(bool(one and one[0]) for one in hits), statistics.mean(sum(one) / 5 for one in hits)]
    topics, kinds = {one.topic for one in kept}, {one.kind for one in kept}
    print(f"  {len(kept)} files, {len(topics)} topics, {len(kinds)} kinds: topic {shares[0]:.3f} "
          f"(of five {shares[1]:.3f}), kind {shares[2]:.3f} ({shares[3]:.3f})", flush=True)  # fmt: skip
    return shares


def measure_quality(args: argparse.Namespace) -> None:
    """Print the shares of all samples and their mean."""
    print("quality, `nnfs similar`:")
    shares = []
    for seed in range(1, args.samples + 1):
        with tempfile.TemporaryDirectory(dir=args.below) as folder:
            shares.append(measure_sample(Path(folder), sample(list(args.roots), args.files, seed)))
    topic, topic5, kind, kind5 = (statistics.mean(column) for column in zip(*shares, strict=True))
    print(f"mean: same topic {topic:.3f} (of five {topic5:.3f}), same kind {kind:.3f} (of five {kind5:.3f})")


# -- speed


def fill(store: Store, rows: int) -> None:
    """Write files with random names and vectors into the tables of a store."""
    rng, numbers = random.Random(1), np.random.default_rng(1)
    first = 1000
    folders = [
        (first + number, b"%s %d" % (rng.choice(WORDS).encode(), number)) for number in range(rows // FOLDER + 1)
    ]
    seed = store.superblock.seed
    with store.write() as txn:
        for ino, name in folders:
            put_name(txn, 1, ino, name, 4, seed)
    for begin in range(0, rows, BATCH):
        made = numbers.normal(0, 40, (min(BATCH, rows - begin), 256)).clip(-127, 127).astype(np.int8)
        with store.write() as txn:
            txn.create(vectors.TABLE)
            for offset, row in enumerate(made):
                number = begin + offset
                ino, name = 10_000 + rows // FOLDER + number, name_of(rng, number)
                put_name(txn, folders[number // FOLDER][0], ino, name, 8, seed)
                key = schema.KEY2.pack(ino, 0)
                txn.put("map", key, MapNode({0: ino}, 1).pack(key))
                key = schema.KEY.pack(ino)
                txn.put(vectors.TABLE, key, Vector(ino, row.tobytes(), 1).pack(key))


def name_of(rng: random.Random, number: int) -> bytes:
    """Return a name of words, a number and an ending."""
    words = " ".join(rng.choices(WORDS, k=rng.randint(1, 3)))
    return f"{words} {number}.{rng.choice(('txt', 'log', 'c', 'jpg'))}".encode()


def put_name(txn, parent: int, ino: int, name: bytes, kind: int, seed: int) -> None:  # type: ignore[no-untyped-def]
    """Write a name and its inode."""
    key = schema.KEY2.pack(parent, schema.cookie_of(name, seed))
    txn.put("dentry", key, Dentry(ino, kind, name, 1).pack(key))
    inode = Inode(ino, kind << 12 | 0o644, 0, 0, 10**18)
    inode.aux, inode.commit, inode.size = parent, 1, 1000
    txn.put("inode", schema.KEY.pack(ino), inode.pack())


def memory() -> int:
    """Return the bytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def measure_speed(args: argparse.Namespace) -> None:
    """Print what loading takes, and each kind of question."""
    with tempfile.TemporaryDirectory(dir=args.below) as folder:
        store = Store.create(Path(folder, "store"))
        fill(store, args.rows)
        with store.read() as snapshot:
            print(f"{args.rows} files: vectors take {bytes_of(snapshot) / args.rows:.0f} B of each")
        before, began = memory(), time.perf_counter()
        catalog = Catalog(store, 1 << 40)
        asking.answer(store, catalog, {"text": "first"})
        print(f"first question, which loads names and vectors: {time.perf_counter() - began:.1f} s; "
              f"memory {catalog.nbytes / args.rows:.0f} B a file by its own count, "
              f"{(memory() - before) / args.rows:.0f} B by the process's peak")  # fmt: skip
        head = os.urandom(1024).hex()
        requests: list[dict[str, Any]] = [{"text": text} for text in QUESTIONS]
        requests.append({"name": "kalo 4711.txt", "head": head})
        requests.append({"text": "kalo", "owners": [77]})  # none is his: all that fit are looked at
        for request in requests:
            taken, spent = [], []
            for _ in range(7):
                began, cpu = time.perf_counter(), time.process_time()
                answer = asking.answer(store, catalog, request)
                taken.append(time.perf_counter() - began)
                spent.append(time.process_time() - cpu)
            shown = {name: value for name, value in request.items() if name != "head"}
            median, cpu = 1000 * statistics.median(taken), 1000 * statistics.median(spent)
            print(f"{json.dumps(shown):42} median {median:5.0f} ms, worst {1000 * max(taken):5.0f}, "
                  f"CPU {cpu:5.0f}, {len(answer['found'])} answers")  # fmt: skip
        store.close()


def bytes_of(snapshot) -> int:  # type: ignore[no-untyped-def]
    """Return the bytes of the pages that the vectors take."""
    stat = snapshot._txn.stat(snapshot._tables[vectors.TABLE])
    return int(sum(stat[name] for name in ("branch_pages", "leaf_pages", "overflow_pages")) * stat["psize"])


def main() -> None:
    """Measure."""
    args = arguments()
    if args.files:
        measure_quality(args)
    if args.rows:
        measure_speed(args)


if __name__ == "__main__":
    main()
