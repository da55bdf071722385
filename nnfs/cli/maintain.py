"""`nnfs mkfs`, `nnfs fsck` and `nnfs backup`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nnfs import names
from nnfs.cli import client, tables
from nnfs.cli.locate import FSTYPE, check_answers, locate, mount_of
from nnfs.cli.making import not_mounted, why_missing
from nnfs.errors import NnfsError, UsageError
from nnfs.mount.table import resolve

if TYPE_CHECKING:
    from nnfs.fs.fsck import Report

FSCK_FAILED = 8  # as in fsck(8)
PATHS_SHOWN = 20  # of one problem


def mkfs(args: argparse.Namespace) -> int:
    """Make an empty store."""
    from nnfs.constants import DATA_FILE
    from nnfs.store import privacy
    from nnfs.store.env import Store

    path = Path(resolve(args.store))
    check_answers(args.store)
    if (path / DATA_FILE).exists():
        raise UsageError(f"{path} already holds a store; remove that first if you want to lose it")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} does not exist{why_missing(path.parent)}; mkdir -p makes it")
    store = Store.create(path, args.chunk_size)
    name, chunk = names.printable(path), tables.size(store.superblock.chunk_size)
    print(f"{name}: new store {store.superblock.uuid.hex()}, chunks of {chunk}")
    store.close()
    absent = not_mounted(path)
    for line in [*([f"the new store{absent} Is that what you want?"] if absent else []), *privacy.close_up(path)[1]]:
        names.say(line)
    return 0


def backup(args: argparse.Namespace) -> int:
    """Copy a store, mounted or not, into one file."""
    place = locate(args.path)
    check_answers(args.file)
    file = Path(os.path.realpath(args.file))
    if file.is_dir():
        raise UsageError(f"{args.file} is a directory: give the name of the file to write")
    target = mount_of(os.fspath(file))
    is_on_nnfs = target is not None and target.fstype == FSTYPE and file.parent.is_dir()
    if _same(file.parent, place.store) or (is_on_nnfs and _same(locate(os.fspath(file.parent)).store, place.store)):
        raise UsageError(f"{args.file} lies in the store that is backed up: write the backup elsewhere")
    if not file.parent.is_dir():
        raise UsageError(f"{file.parent} is not a directory")
    since = None if args.since is None else Path(os.path.realpath(args.since))
    if since is not None and not since.is_file():
        raise UsageError(f"{args.since} is not a file: name an earlier backup of this store")
    if since == file:
        raise UsageError("the earlier backup would be overwritten: give another name")
    if place.mount is not None or client.daemon_pid(place.store) is not None:
        answer = client.ask(place.store, "backup", timeout=None, file=os.fspath(file), since=since and os.fspath(since))
    else:
        from nnfs.fs.backup import backup as write
        from nnfs.store.env import Store

        store = Store.open(place.store, readonly=True)
        try:
            answer = write(store, file, since)
        finally:
            store.close()
    if args.json:
        tables.printed_json(answer)
    else:
        print(f"{names.printable(answer['file'])}: {tables.size(answer['bytes'])}")
    return 0


def restore(args: argparse.Namespace) -> int:
    """Make a store of a backup, and of the increments that follow it."""
    from nnfs.fs.backup import restore as make

    *files, target = (Path(resolve(name)) for name in (args.backup, *args.rest))
    for name, file in zip((args.backup, *args.rest), files, strict=False):
        if not file.is_file():
            raise UsageError(f"{name} is not a file: name the backups in their order, and the new store last")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is not a directory")
    answer = make(files[0], files[1:], target)
    if args.json:
        tables.printed_json(answer)
    else:
        print(f"{names.printable(answer['store'])}: as of commit {answer['commit']}")
    return 0


def _same(one: Path, other: Path) -> bool:
    """Return whether two paths lead to the same store, which may have been deleted."""
    try:
        return one == other or os.path.samefile(one, other)
    except OSError:
        return False


def fsck(args: argparse.Namespace) -> int:
    """Check a store, and with --repair repair it."""
    from nnfs.fs import fsck as check

    show = _Progress(sys.stderr.isatty() and not args.json)
    try:
        check_answers(args.store)
        report = check.run(Path(resolve(args.store)), data=args.data, repair=args.repair, progress=show)
    except (NnfsError, OSError) as error:
        show.clear()
        names.say(names.message_of(error))
        return FSCK_FAILED
    show.clear()
    if args.json:
        tables.printed_json(report.as_dict())
    else:
        print_report(report)
    return report.exit_code


class _Progress:
    """Shows progress in one line of a terminal: the stage and the share that is done."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._last = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not self._wanted:
            return
        text = f"{stage} {100 * done // total if total else 100:3d} %"
        if text != self._last:
            self._last = text
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._last:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def print_report(report: Report) -> None:
    """Print problems with the files that they concern, notes, and a last line that sums up."""
    for problem in report.problems:
        mark = "repaired" if problem.fixed else "error"
        print(f"{mark}: {names.one_line(problem.message)}")
        for path in problem.paths[:PATHS_SHOWN]:
            print(f"    {names.printable(path)}")
        if len(problem.paths) > PATHS_SHOWN:
            print(f"    and {len(problem.paths) - PATHS_SHOWN} more (--json lists them)")
    for kind, number in report.omitted.items():
        print(f"error: {number} more of the kind {kind}")
    for note in report.notes:
        print(f"note: {names.one_line(note)}")
    found, fixed = len(report.problems) + report.omitted.total(), sum(problem.fixed for problem in report.problems)
    counts = report.counts
    looked = f"{counts['inode']} inodes, {counts['dentry']} names, {counts['block']} blocks"
    verdict = "clean, as far as could be checked" if report.unchecked else "clean"
    print(f"{looked}: {verdict if not found else f'{found} errors, {fixed} of them repaired'}")
