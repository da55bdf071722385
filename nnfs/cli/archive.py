"""`nnfs export` and `nnfs import`: a tree of a mount as a tar archive, and back."""

from __future__ import annotations

import argparse
import ctypes
import os
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nnfs import names
from nnfs.cli import client, progress, tables
from nnfs.cli.ending import cleared_up
from nnfs.cli.locate import Place, check_answers, locate
from nnfs.errors import UsageError

if TYPE_CHECKING:
    from nnfs.cli.tar.output import Output
    from nnfs.cli.tar.report import Report

STREAM = "-"
SHOWN = 20  # members that did not pass
STEP_S = 0.5  # between two looks at the progress


class Meter:
    """Shows how many bytes are through, of how many (0: unknown)."""

    def __init__(self, kind: str, total: int) -> None:
        self._kind, self._total, self._done = kind, total, 0
        self._began = self._told = time.monotonic()
        self._show = progress.display()

    def __call__(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._told < STEP_S:
            return
        self._told = now
        rate = self._done / (now - self._began)
        left = (self._total - self._done) / rate if self._total and rate else None
        self._show({
            "kind": self._kind, "state": "running", "phase": "", "total_bytes": self._total, "done_bytes": self._done,
            "rate": rate, "eta": max(left, 0.0) if left is not None else None,
        })  # fmt: skip

    def close(self) -> None:
        """End the display."""
        self._show.close()


def export(args: argparse.Namespace) -> int:
    """Write a tree into an archive."""
    from nnfs.cli.tar import output

    place = locate(args.path, follow=True)
    if not place.is_inside:
        raise UsageError(f"{args.path} is a store: mount it, and give a path on its mount")
    if args.tar == STREAM:
        if args.json:
            raise UsageError("--json prints to standard output, and so does TAR -: name a file")
        if sys.stdout.isatty():
            raise UsageError("the archive is not written to a terminal: name a file, or use a pipe")
        return _summed(_exported(place, output.Output(sys.stdout.fileno(), is_file=False)), args)
    check_answers(args.tar)
    file = Path(os.path.realpath(args.tar))
    if file.is_dir():
        raise UsageError(f"{args.tar} is a directory: give the name of the archive to write")
    if not file.parent.is_dir():
        raise UsageError(f"{file.parent} is not a directory")
    if any(os.path.samefile(folder, place.path) for folder in (file, *file.parents) if folder.exists()):
        raise UsageError(f"{args.tar} lies in what is exported: write the archive elsewhere")
    with cleared_up(), output.into(file) as out:
        report = _exported(place, out)
    return _summed(report, args)


def _exported(place: Place, out: Output) -> Report:
    from nnfs.cli.tar.export import Exporter

    write_back(place.path)
    ino = progress.ino_of(place)
    chunk_size = int(client.ask(place.store, "extents", ino=ino)["chunk_size"])
    whole = client.ask(place.store, "du", timeout=None, ino=ino, depth=0)["directories"][-1]
    meter = Meter("export", int(whole["logical_bytes"]))

    def extents(ino: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        first = 0
        while True:
            answer = client.ask(place.store, "extents", timeout=None, ino=ino, first=first)
            found += [(int(offset), int(length)) for offset, length in answer["extents"]]
            first = int(answer["next"])
            if not first:
                return found

    try:
        return Exporter(out, chunk_size, extents, meter).run(place.path)
    finally:
        meter.close()


def import_(args: argparse.Namespace) -> int:
    """Extract an archive into a directory of a mount."""
    place = locate(args.path, follow=True)
    if not place.is_inside or not place.path.is_dir():
        raise UsageError(f"{args.path} is not a directory on a mount: give one to extract into")
    if os.statvfs(place.path).f_flag & os.ST_RDONLY:
        raise UsageError(f"the mount of {args.path} is read-only")
    with cleared_up():
        if args.tar == STREAM:
            if sys.stdin.isatty():
                raise UsageError("the archive is not read from a terminal: name a file, or use a pipe")
            return _summed(_imported(place, sys.stdin.fileno(), args), args)
        check_answers(args.tar)
        with open(args.tar, "rb", buffering=0) as file:
            return _summed(_imported(place, file.fileno(), args), args)


def _imported(place: Place, descriptor: int, args: argparse.Namespace) -> Report:
    from nnfs.cli.tar.extract import Importer
    from nnfs.cli.tar.reader import Reader
    from nnfs.cli.tar.restore import Rights
    from nnfs.cli.tar.walk import allow_depth

    allow_depth()
    status = os.fstat(descriptor)
    meter = Meter("import", status.st_size if stat.S_ISREG(status.st_mode) else 0)
    top = os.open(place.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        rights = Rights(root=os.geteuid() == 0, umask=args.umask, numeric=args.numeric_owner)
        report = Importer(Reader(descriptor, meter), top, rights).run()
        write_back(place.path)
        os.fsync(top)  # commits everything
    finally:
        os.close(top)
        meter.close()
    return report


def write_back(path: Path) -> None:
    """Have the kernel hand its dirty pages of a filesystem to the daemon: only that knows fingerprints and holes."""
    descriptor = os.open(path if path.is_dir() else path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        ctypes.CDLL(None).syncfs(descriptor)  # what it cannot do shows when files are read
    finally:
        os.close(descriptor)


def _summed(report: Report, args: argparse.Namespace) -> int:
    """Print what became of an archive and return the exit code."""
    for kind in (report.failed, report.skipped):
        for entry in kind[:SHOWN]:
            mark = "" if kind is report.failed else "left out: "
            names.say(f"{names.printable(entry['path'])}: {mark}{entry['why']}")
        if len(kind) > SHOWN:
            names.say(f"and {len(kind) - SHOWN} more (--json lists them)")
    if args.json:
        tables.printed_json(report.as_dict())
    elif args.tar != STREAM:
        members = f"{report.files} files, {report.directories} directories"
        members += f", {report.hard_links} hard links" if report.hard_links else ""
        members += f", {report.others} others" if report.others else ""
        sizes = f"{tables.size(report.plain_bytes)}; the archive has {tables.size(report.archive_bytes)}"
        print(f"{names.printable(args.tar)}: {members}, {sizes}")
    return report.exit_code
