"""`nnfs warm`: decodes cold files ahead of reading, and says what did not fit into the copies that are kept."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from nnfs import names
from nnfs.cli import client, progress, tables
from nnfs.cli.locate import Place, locate
from nnfs.errors import NnfsError, OutOfSpace, UsageError

BATCH = 2000  # files of a task: a request has 64 KiB
SHOWN = 10  # files that did not fit
SUMS = ("files", "decoded_chunks", "warm_chunks", "failed_chunks", "left_files", "left_bytes")

Task = dict[str, Any]
Result = dict[str, Any]


def warm(args: argparse.Namespace) -> int:
    """Decode everything cold at and below a path, or the files that are listed on standard input."""
    place = locate(args.path, follow=True)
    if args.cancel:
        return progress.cancel(place, "warm")
    if args.null:
        return _listed(place, args)
    if not args.wait:
        request = {"inodes": [progress.ino_of(place)], "depth": args.depth}
        return progress.run(place, "warm", wait=False, json=args.json, **request)
    task = _done(place, [progress.ino_of(place)], args, 0, interrupted=False)
    code = progress.end_of(task)
    return _shown(_named(task["result"], [place.path]), task, args) or code


def _listed(place: Place, args: argparse.Namespace) -> int:
    """Warm the files that standard input lists, a task for each batch of them."""
    if not place.is_inside:
        raise UsageError(f"{args.path} is a store: give its mount point, so that names can be compared with it")
    total: Result = {**dict.fromkeys(SUMS, 0), "left": [], "copies_bytes": 0, "full": ""}
    files, task, missing = _inodes(place), Task(), 0
    while batch := list(islice(files, BATCH)):
        found = [(path, ino) for path, ino in batch if ino]
        missing += len(batch) - len(found)
        if not found:
            continue
        task = _done(place, [ino for _, ino in found], args, total["copies_bytes"], interrupted=True)
        progress.end_of(task)
        result = _named(task["result"], [path for path, _ in found])
        total = {
            **result, **{name: total[name] + result[name] for name in SUMS}, "left": total["left"] + result["left"],
            "full": total["full"] or result["full"],
        }  # fmt: skip
    if not task and not missing:
        raise UsageError("standard input lists nothing: names end with a NUL, as find -print0 writes them")
    code = _shown(total, task, args) if task else 0
    return NnfsError.exit_code if missing else code


def _inodes(place: Place) -> Iterator[tuple[Path, int]]:
    """Yield the names of standard input with their inode numbers, 0 for one that is not on the mount, which is told."""
    device = os.lstat(place.path).st_dev
    for name in _names():
        path = Path(os.fsdecode(name))
        try:
            status = os.lstat(path)
        except OSError as error:
            names.say(f"{names.printable(path)}: {error.strerror}")
            yield path, 0
            continue
        if status.st_dev != device:
            names.say(f"{names.printable(path)}: not on this mount")
        yield path, status.st_ino if status.st_dev == device else 0


def _names() -> Iterator[bytes]:
    rest = b""
    while data := os.read(sys.stdin.fileno(), 1 << 16):
        *found, rest = (rest + data).split(b"\0")
        yield from filter(None, found)
    if rest:
        yield rest


def _done(place: Place, inodes: Sequence[int], args: argparse.Namespace, spent: int, *, interrupted: bool) -> Task:
    """Run a task and return it when it has ended. With `interrupted` ^C ends it, else it goes on."""
    request = {"inodes": inodes, "depth": args.depth, "spent": spent}
    number = int(client.ask(place.store, "warm", path=os.fspath(place.path), **request)["job"])
    try:
        return progress.follow(place, number, show=progress.objects() if args.json else None)
    except KeyboardInterrupt:
        if interrupted:
            client.ask(place.store, "cancel", job=number)
        raise


def _named(result: Result, roots: Sequence[Path]) -> Result:
    """Return a result with paths in place of the numbers of roots."""
    left = [
        {"path": os.path.join(roots[one["root"]], one["path"]).rstrip("/"), "bytes": one["bytes"]}
        for one in result["left"]
    ]
    return {**result, "left": left}


def _shown(result: Result, task: Task, args: argparse.Namespace) -> int:
    """Print what came of it. Return the exit code."""
    code = OutOfSpace.exit_code if result["left_files"] else 0
    if args.json:
        tables.printed_json({**task, "result": result}, in_one_line=True)
        return code
    if not result["files"]:
        print("warm: nothing there is cold")
        return code
    decoded, before = result["decoded_chunks"], result["warm_chunks"]
    print(f"warm: {result['files']} cold files: {decoded} chunks decoded, {before} were warm already")
    where = "copies on disk" if result["kept_in"] == "disk" else "the cache in memory"
    print(f"kept: {tables.size(result['copies_bytes'])} of {tables.size(result['limit_bytes'])}, {where}")
    if result["failed_chunks"]:
        print(f"failed: {result['failed_chunks']} chunks stay cold; the daemon's log says why")
    if not result["left_files"]:
        return code
    print(f"did not fit: {tables.size(result['left_bytes'])} of {result['left_files']} files; {result['full']}")
    for one in result["left"][:SHOWN]:
        print(f"  {names.printable(one['path'])} ({tables.size(one['bytes'])})")
    if result["left_files"] > SHOWN:
        print(f"  and {result['left_files'] - SHOWN} more")
    option = "thawed" if result["kept_in"] == "disk" else "cache"
    print(f"to do: a larger limit, nnfs set PATH {option}=SIZE, or less at a time")
    return code
