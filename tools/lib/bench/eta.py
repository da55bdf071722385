"""tools/bench_eta [--bytes N] [--options OPTS] [--command compact|thaw|scrub]: check the time left that is told.

It makes a store of mixed files (source, text, logs, and compressed files, a quarter of the bytes each), runs a
task of the daemon on it, asks for the time left twice a second, and prints at each tenth of the way the time told and
the true one. The way begins when the task has something to say about its chunks: the time in which a worker starts
is told by the phase, and listed by itself. Exit status 1 when from a tenth on a tenth is told more than 30 % wrong.
"""

from __future__ import annotations

import argparse
import bz2
import datetime as dt
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.demo import nnfs
from nnfs.cli import client

SOURCE = ("/usr/lib/python3", "/usr/share/perl", "/usr/lib/python3.11", "/usr/include")
TEXT = ("/usr/share/doc", "/usr/share/common-licenses", "/usr/share/perl")
LIMIT = 0.30
PAUSE_S = 0.5


def plain_files(roots: tuple[str, ...], suffixes: tuple[str, ...]) -> list[Path]:
    found = [
        Path(folder, name)
        for root in roots
        for folder, _, names in os.walk(root)
        for name in names
        if name.endswith(suffixes) and not Path(folder, name).is_symlink()
    ]
    random.Random(1).shuffle(found)
    return found


def files(paths: list[Path], size: int) -> Iterator[bytes]:
    """Yield contents of files, `size` bytes in all; where files are too few, again from the first one, changed."""
    left, turn = size, 0
    while left > 0 and paths:
        for path in paths:
            data = path.read_bytes()[:left]
            left -= len(data)
            yield data if not turn else data.replace(b"e", b"%d" % turn)
            if left <= 0:
                return
        turn += 1


def log_lines(size: int, seed: int) -> bytes:
    """Return lines of an access log."""
    chance, lines, length = random.Random(seed), list[bytes](), 0
    while length < size:
        address = f"10.{chance.randrange(4)}.{chance.randrange(256)}.{chance.randrange(256)}"
        page = chance.choice(("/", "/index.html", "/api/items", "/static/site.css", "/login", "/favicon.ico"))
        code, answer = chance.choice((200, 200, 200, 304, 404)), chance.randrange(100, 90_000)
        stamp = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(1_700_000_000 + length // 90))
        lines.append(f'{address} - - [{stamp}] "GET {page} HTTP/1.1" {code} {answer} "-" "Mozilla/5.0"\n'.encode())
        length += len(lines[-1])
    return b"".join(lines)[:size]


def make(mount: Path, size: int) -> None:
    """Make a quarter each of source, text, logs and compressed data, in alternating files."""
    part = size // 4
    kinds = {
        "source": list(files(plain_files(SOURCE, (".py", ".pm", ".h")), part)),
        "text": list(files(plain_files(TEXT, ("copyright", ".txt", ".html", ".pod")), part)),
        "logs": [log_lines(min(512 << 10, part), seed) for seed in range(max(1, part // (512 << 10)))],
        "packed": [bz2.compress(data, 9) for data in [os.urandom(part // 4) for _ in range(4)]],
    }
    for kind, contents in kinds.items():
        for n, data in enumerate(contents):
            folder = mount / f"{n % 4}" / kind  # in the tree's order the kinds take turns
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{n:05}").write_bytes(data)


def watch(store: Path, words: list[str]) -> tuple[list[tuple[float, dict[str, Any]]], float]:
    """Start a task and ask about it until it ends. Return the answers with their times, and the time of its end."""
    number = json.loads(nnfs(*words, "--json"))["job"]
    told: list[tuple[float, dict[str, Any]]] = []
    while True:
        job = client.ask(store, "job", job=number)
        if job["state"] not in ("queued", "running"):
            if job["state"] != "done":
                raise SystemExit(f"the task {job['state']}: {job['error']}")
            return told, time.monotonic()
        told.append((time.monotonic(), job))
        time.sleep(PAUSE_S)


def report(told: list[tuple[float, dict[str, Any]]], end: float) -> bool:
    """Print a line for each tenth. Return whether all of them are true."""
    phases: dict[str, float] = {}
    for (at, job), (then, _) in zip(told, [*told[1:], (end, {})], strict=True):
        phases[job["phase"]] = phases.get(job["phase"], 0.0) + then - at
    print("phases:", ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in phases.items()))
    known = [(at, job["eta"]) for at, job in told if job["eta"] is not None]
    if not known:
        print("too short to tell anything")
        return True
    began = known[0][0]
    print(f"{'way':>5} {'told':>9} {'true':>9} {'wrong by':>9}")
    wrong = []
    for tenth in range(1, 10):
        at, left = min(known, key=lambda one: abs(one[0] - (began + (end - began) * tenth / 10)))
        true = end - at
        error = (left - true) / true
        wrong += [tenth] if abs(error) > LIMIT else []
        print(f"{tenth * 10:>3} % {left:>7.1f} s {true:>7.1f} s {error:>+8.0%}")
    print(f"{end - began:.0f} s; within {LIMIT:.0%}: {9 - len(wrong)} of 9 tenths")
    return not wrong


def trace(log: str) -> Iterator[str]:
    """Return lines "SECONDS KIND STEP BYTES" of the chunks' ways, from a log at level debug."""
    first = None
    for line in log.splitlines():
        found = re.match(r"(\S+) DEBUG nnfs.background.expectation: way (.+)", line)
        if found:
            at = dt.datetime.strptime(found[1], "%Y-%m-%dT%H:%M:%S.%f%z").timestamp()
            first = at if first is None else first
            yield f"{at - first:.3f} {found[2]}\n"


def main() -> int:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser("tools/bench_eta", description=__doc__, formatter_class=raw)
    parser.add_argument("--bytes", type=int, default=20_000_000, help="of files (%(default)s)")
    parser.add_argument("--options", default="", help="-o of the mount: neural=off, device=cpu, ...")
    parser.add_argument("--command", choices=["compact", "thaw", "scrub"], default="compact")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write every chunk's way: tests replay it")
    args = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="nnfs-bench-eta-", dir="/var/tmp"))
    store, mount = base / "store", base / "mnt"
    mount.mkdir()
    level = "debug" if args.trace else "info"
    options = ",".join(filter(None, ["compact=off", args.options]))
    nnfs("mkfs", os.fspath(store))
    logging = ["--log", os.fspath(base / "log"), "--log-level", level]
    nnfs("mount", os.fspath(store), os.fspath(mount), "-o", options, *logging)
    try:
        make(mount, args.bytes)
        words = [args.command, os.fspath(mount)]
        if args.command != "compact":
            nnfs("compact", os.fspath(mount), "--all", "--wait")
        words += {"compact": ["--all"], "thaw": [], "scrub": ["--deep"]}[args.command]
        told, end = watch(store, words)
        if args.trace:
            args.trace.write_text("".join(trace((base / "log").read_text())))
    finally:
        nnfs("umount", os.fspath(mount))
        shutil.rmtree(base)
    return 0 if report(told, end) else 1


if __name__ == "__main__":
    sys.exit(main())
