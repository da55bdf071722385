"""tools/demo: a folder through the whole of nnfs, from cp to a cold read, and the table of the savings.

Two stores are made, one after the other: with the neural codec, and (--both) with the classical cold codec only. Sizes
of files are compared with zstd -19 and xz on the same chunks; sizes of stores with the same store before that,
when everything was zstd -3.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.codec.coders import named
from bench.codec.sample import files, pieces, unpacked
from bench.targets import NNFS, Failed

DEFAULT = "/usr/share/doc"  # a folder that every Debian has
DEFAULT_LIMIT = 4 << 20
CHUNK = 128 << 10
MODEL = "two copies of the model"


def nnfs(*words: str) -> str:
    """Run `nnfs WORDS` and return its output; its progress stays visible. Raises `Failed`."""
    done = subprocess.run([*NNFS, *words], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Failed(f"nnfs {words[0]} failed with status {done.returncode}")
    return done.stdout


def asked(*words: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(nnfs(*words, "--json"))
    return answer


@contextlib.contextmanager
def source_of(path: Path) -> Iterator[Path]:
    """Yield the folder itself, or the content of a tar archive, unpacked while the body runs."""
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="nnfs-demo-") as folder:
        yield unpacked(path, Path(folder))


def chosen(folder: Path, limit: int | None, seed: int) -> list[str]:
    """Return files below a folder: all, or `limit` bytes of them drawn at random, of which the last may be cut."""
    names = files(folder)
    if limit is None or sum(map(os.path.getsize, names)) <= limit:
        return names
    random.Random(seed).shuffle(names)
    taken, room = [], limit
    for name in names:
        if room <= 0:
            break
        taken.append(name)
        room -= os.path.getsize(name)
    return sorted(taken)


def copy(source: Path, sets: dict[str, list[str]], target: Path, limit: int | None) -> None:
    """Copy files as cp would; of a file larger than the limit its first bytes."""
    for names in sets.values():
        for name in names:
            place = target / os.path.relpath(name, source)
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(name, "rb") as reads, open(place, "wb") as writes:
                if limit is None:
                    shutil.copyfileobj(reads, writes, 1 << 20)
                else:
                    writes.write(reads.read(limit))
    os.sync()


def digests(source: Path, sets: dict[str, list[str]], top: Path, limit: int | None) -> dict[str, str]:
    found = {}
    for names in sets.values():
        for name in names:
            digest = hashlib.sha256()
            left = limit if limit is not None else 1 << 62
            with open(top / os.path.relpath(name, source), "rb") as file:
                while left > 0 and (data := file.read(min(1 << 20, left))):
                    digest.update(data)
                    left -= len(data)
            found[name] = digest.hexdigest()
    return found


def classical(sets: dict[str, list[str]], limit: int | None) -> dict[str, dict[str, int]]:
    """Return the bytes of every set with zstd -19 and xz, in chunks."""

    def one(names: list[str]) -> dict[str, int]:
        coders = {name: named(name, "cpu", 1) for name in ("zstd-19", "xz")}  # for one thread each
        sizes = dict.fromkeys(coders, 0)
        for name in names:
            for piece in pieces(Path(name), CHUNK, None):
                if limit is not None and piece.offset >= limit:
                    continue
                plain = piece.read()[: None if limit is None else max(0, limit - piece.offset)]
                for kind, coder in coders.items():
                    payload = coder.encode([plain])[0]
                    sizes[kind] += len(plain) if payload is None else min(len(plain), len(payload))
        return sizes

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return dict(zip(sets, threads.map(one, sets.values()), strict=True))


def stats(mount: Path, sets: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    return {name: asked("stat", os.fspath(mount / name) if name != "." else os.fspath(mount)) for name in sets}


def settle(mount: Path) -> dict[str, Any]:
    return asked("df", os.fspath(mount))


def run(source: Path, sets: dict[str, list[str]], limit: int | None, options: str, work: Path) -> dict[str, Any]:
    """Make one store: copy, compact, unmount, mount, read everything back. Return sizes and times."""
    store, mount = work / "store", work / "mnt"
    nnfs("mkfs", os.fspath(store))
    mount.mkdir(exist_ok=True)
    words = ["-o", options] if options else []
    times: dict[str, float] = {}

    def timed(name: str, started: float) -> None:
        times[name] = time.monotonic() - started

    nnfs("mount", os.fspath(store), os.fspath(mount), *words)
    try:
        start = time.monotonic()
        copy(source, sets, mount, limit)
        timed("copy", start)
        hot, hot_sets = settle(mount), stats(mount, sets)
        start = time.monotonic()
        nnfs("compact", os.fspath(mount), "--all", "--wait")
        timed("compact", start)
        cold, cold_sets = settle(mount), stats(mount, sets)
        nnfs("umount", os.fspath(mount))
        nnfs("mount", os.fspath(store), os.fspath(mount), *words)
        start = time.monotonic()
        equal = digests(source, sets, source, limit) == digests(source, sets, mount, limit)
        timed("read back", start)
    finally:
        nnfs("umount", os.fspath(mount))
        shutil.rmtree(store)
    return {"hot": hot, "cold": cold, "hot_sets": hot_sets, "cold_sets": cold_sets, "times": times, "equal": equal}


def neural_share(line: dict[str, Any]) -> float:
    chunks: int = sum(codec["chunks"] for codec in line["codecs"])
    neural: int = sum(codec["chunks"] for codec in line["codecs"] if codec["codec"] == "neural")
    return neural / max(1, chunks)


def beside_models(df: dict[str, Any]) -> int:
    """Return the bytes that a store takes on disk without its models, whose size does not depend on the content."""
    physical: int = df["physical_bytes"] - df["model_bytes"]
    return physical


def figures(result: dict[str, Any], sizes: dict[str, dict[str, int]]) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each set's sizes in MiB, its bits per byte, and the percentage of its chunks that are neural."""
    for name, cold in result["cold_sets"].items():
        plain, stored = cold["plain_bytes"], cold["stored_bytes"]
        found = {"plain": plain, "hot": result["hot_sets"][name]["stored_bytes"], "cold": stored, **sizes[name]}
        mib = {key: size / (1 << 20) for key, size in found.items()}
        yield name, {**mib, "bits": 8 * stored / max(1, plain), "neural": 100 * neural_share(cold)}


def show(result: dict[str, Any], other: dict[str, Any] | None, sizes: dict[str, dict[str, int]]) -> None:
    """Print the tables."""
    print("| set | MiB | zstd -3 (hot tier) | zstd -19 | xz | cold tier | bits/byte | chunks neural |")
    print("|---|---|---|---|---|---|---|---|")
    for name, found in figures(result, sizes):
        cells = [f"{found[key]:,.2f}" for key in ("plain", "hot", "zstd-19", "xz", "cold")]
        print(f"| {name} | {' | '.join(cells)} | {found['bits']:.3f} | {found['neural']:.0f} % |")
    hot, cold = (beside_models(result[name]) for name in ("hot", "cold"))
    print()
    print(f"logical bytes            {result['cold']['logical_bytes']:>14,}")
    print(f"physical, all zstd -3    {hot:>14,}")
    print(f"physical, cold           {cold:>14,}  {100 * (1 - cold / hot):.1f} % below")
    print(f"  besides, {MODEL} {result['cold']['model_bytes']:,}, however much is stored")
    if other is not None:
        without = beside_models(other["cold"])
        saved = 100 * (1 - cold / without)
        print(f"physical, neural=off     {without:>14,}  with the network {saved:.1f} % below that")
    chunks = sum(codec["chunks"] for codec in result["cold"]["codecs"])
    neural = sum(codec["chunks"] for codec in result["cold"]["codecs"] if codec["codec"] == "neural")
    print(f"chunks                   {chunks:>14,}  {neural / max(1, chunks):.1%} of them neural")
    for name, seconds in result["times"].items():
        print(f"{name:<24} {seconds:>12.1f} s  {result['cold']['logical_bytes'] / max(seconds, 1e-9) / 1e3:,.0f} KB/s")
    print("read back cold: every file has its SHA-256" if result["equal"] else "READ BACK: DIFFERENCES")


def main() -> int:
    parser = argparse.ArgumentParser("tools/demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, help=f"a folder or a tar archive ({DEFAULT}, 4 MiB of it)")
    parser.add_argument("--sets", metavar="LIST", help="only these folders of PATH, with commas between")
    parser.add_argument("--limit", type=int, metavar="BYTES", help="of each set: that much of it, drawn at random")
    parser.add_argument("--both", action="store_true", help="once more with neural=off")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help="where the store is made (a temporary folder)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write everything there, too")
    args = parser.parse_args()
    limit = DEFAULT_LIMIT if args.path is None and args.limit is None else args.limit
    path = args.path or Path(DEFAULT)
    if not path.exists():
        parser.error(f"{path}: no such file or folder")
    with source_of(path) as source, tempfile.TemporaryDirectory(prefix="nnfs-demo-", dir=args.work) as folder:
        folders = sorted(entry.name for entry in source.iterdir() if entry.is_dir())
        names = args.sets.split(",") if args.sets else folders
        if args.path is None or not names:
            names = ["."]
        sets = {name: chosen(source / name, limit, args.seed) for name in names}
        sets = {name: found for name, found in sets.items() if found}
        if not sets:
            parser.error(f"{path} holds no files")
        try:
            result = run(source, sets, limit, "compact=off", Path(folder))
            other = run(source, sets, limit, "compact=off,neural=off", Path(folder)) if args.both else None
        except Failed as why:
            raise SystemExit(f"demo: {why}") from why
        sizes = classical(sets, limit)
    show(result, other, sizes)
    if args.json:
        args.json.write_text(json.dumps({"neural": result, "without": other, "classical": sizes}, indent=1))
    return 0 if result["equal"] and (other is None or other["equal"]) else 1


if __name__ == "__main__":
    sys.exit(main())
