"""`nnfs snapshot`: takes, lists, compares, deletes, restores and prunes snapshots of a mount."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nnfs import names
from nnfs.cli import client, keeprules, tables
from nnfs.cli.archive import write_back
from nnfs.cli.locate import MountEntry, Place, locate, mounts
from nnfs.errors import NnfsError, UsageError

FOLDER = ".nnfs/snapshots"  # below the mount point


def _located(path: str) -> Place:
    """Return the place of a path on a mount, or of a store that is mounted."""
    place = locate(path)
    if place.mount is None:
        client.ask(place.store, "ping")
    return place


def _root(place: Place) -> MountEntry | None:
    """Return a mount of the place's filesystem that shows its root."""
    if place.mount is None:
        return None
    whole = (entry for entry in mounts() if (entry.device, entry.root) == (place.mount.device, "/"))
    return next(whole, None)


def create(args: argparse.Namespace) -> int:
    """Take a snapshot of the whole filesystem, as it is now."""
    place = _located(args.path)
    name = args.name or time.strftime(f"{keeprules.PREFIX}%Y%m%d-%H%M%S", time.gmtime())
    point = place.mount.mountpoint if place.mount is not None else client.ask(place.store, "status")["mountpoint"]
    write_back(Path(point))
    answer = client.ask(place.store, "snapshot_create", timeout=None, name=name)
    if args.json:
        tables.printed_json(answer)
    else:
        print(names.printable(answer["name"]))
    return 0


def list_snapshots(args: argparse.Namespace) -> int:
    """List the snapshots, oldest first."""
    answer = client.ask(_located(args.path).store, "snapshot_list", timeout=None)
    if args.json:
        tables.printed_json(answer)
        return 0
    rows = []
    for one in answer["snapshots"]:
        name = names.printable(one["name"]) + (" (being deleted)" if one["deleting"] else "")
        rows.append((
            name, tables.date(one["created"]), f"{one['inodes']:,}", tables.size(one["logical_bytes"]),
            tables.size(one["only_here_bytes"]), tables.size(one["written_since_bytes"]),
        ))  # fmt: skip
    if rows:
        head = ("snapshot", "taken", "inodes", "logical", "only here", "written since")
        print(tables.table(head, rows))
    return 0


SIGNS = {"added": "+", "removed": "-", "renamed": ">", "content": "M", "attributes": "a"}


def diff(args: argparse.Namespace) -> int:
    """Show what has changed since a snapshot, or between two."""
    place = _located(args.path)
    below = ""
    if place.mount is not None:
        root = place.mount.root.lstrip("/")
        below = os.path.normpath(os.path.join(root, os.path.relpath(place.path, place.mount.mountpoint)))
    request = {"name": args.name, "other": args.other, "below": "" if below == "." else below}
    answer = client.ask(place.store, "snapshot_diff", timeout=None, **request)
    changes = sorted(answer["changes"], key=lambda one: (one["path"], one["change"]))
    if args.json:
        tables.printed_json({"changes": changes, "more": answer["more"]})
        return 0
    for one in changes:
        print(f"{SIGNS[one['change']]} {_described(one)}")
    if answer["more"]:
        print(f"and {answer['more']:,} more")
    return 0


def _described(one: dict[str, Any]) -> str:
    path = names.printable(one["path"]) + ("/" if one["directory"] else "")
    if one["change"] == "renamed":
        return f"{path} -> {names.printable(one['to'])}"
    if one["change"] == "content":
        return f"{path} ({tables.size(one['size_before'])} -> {tables.size(one['size'])})"
    if one["change"] == "attributes" or one["directory"]:
        return path
    return f"{path} ({tables.size(one['size'])})"


def delete(args: argparse.Namespace) -> int:
    """Delete snapshots. Their space comes back in the background."""
    client.ask(_located(args.path).store, "snapshot_delete", timeout=None, names=args.name)
    return 0


def prune(args: argparse.Namespace) -> int:
    """Delete the snapshots that no rule keeps."""
    store = _located(args.path).store
    found = client.ask(store, "snapshot_list", timeout=None)["snapshots"]
    known = {
        one["name"]: one["created"] for one in found if not one["deleting"] and one["name"].startswith(args.prefix)
    }
    kept = keeprules.kept(known, args.keep)
    gone = [name for name in known if name not in kept]
    if gone and not args.dry_run:
        client.ask(store, "snapshot_delete", timeout=None, names=gone)
    if args.json:
        tables.printed_json({"deleted": gone, "kept": sorted(kept)})
        return 0
    for name in gone:
        print(f"{'would delete' if args.dry_run else 'deleted'} {names.printable(name)}")
    return 0


def restore(args: argparse.Namespace) -> int:
    """Copy a file or a directory out of a snapshot, with all that belongs to it."""
    path = Path(os.path.abspath(args.path))
    place = locate(os.fspath(path.parent))
    root = _root(place)
    if place.mount is None or root is None:
        raise UsageError(f"{args.path} is not on a mount that shows the whole filesystem")
    relative = os.path.relpath(os.path.realpath(path.parent), root.mountpoint)
    source = Path(root.mountpoint, FOLDER, args.name, relative, path.name)
    if not (Path(root.mountpoint, FOLDER, args.name)).is_dir():
        raise UsageError(f"there is no snapshot {args.name}")
    if not os.path.lexists(source):
        raise UsageError(f"snapshot {args.name} has no {args.path}")
    target = Path(os.path.abspath(args.to)) if args.to else path
    if os.path.lexists(target) and not args.replace:
        raise UsageError(f"{target} exists: give another place with --to, or --replace to put it there all the same")
    folder = Path(tempfile.mkdtemp(prefix=".restoring-", dir=target.parent))
    try:
        copied = folder / path.name
        if source.is_dir() and not source.is_symlink():
            copied.mkdir()  # the archive of a directory has its content
            _copy(source, copied)
        else:
            _copy(source, folder)
        _put(copied, target, folder / ".replaced")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(names.printable(target))
    return 0


def _put(made: Path, target: Path, aside: Path) -> None:
    """Give a tree its name; what had it goes aside, and comes back where that fails."""
    is_there = os.path.lexists(target)
    if is_there:
        os.rename(target, aside)
    try:
        os.rename(made, target)
    except OSError:
        if is_there:
            os.rename(aside, target)
        raise


def _copy(source: Path, folder: Path) -> None:
    """Copy a tree by an archive, which carries everything and proves each file. Raises `NnfsError`."""
    nnfs = [sys.executable, "-m", "nnfs"]
    with subprocess.Popen([*nnfs, "export", os.fspath(source), "-"], stdout=subprocess.PIPE) as reader:
        done = subprocess.run([*nnfs, "import", "-", os.fspath(folder)], stdin=reader.stdout, check=False)
        assert reader.stdout is not None
        reader.stdout.close()
    if reader.returncode or done.returncode:
        raise NnfsError(f"{source} was not restored: see above")
