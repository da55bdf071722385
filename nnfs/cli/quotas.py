"""`nnfs quota`: sets, shows, removes and checks limits of directories."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from nnfs import names
from nnfs.cli import client, progress, show, tables
from nnfs.cli.locate import Place, locate
from nnfs.errors import StoreDamaged, UsageError

if TYPE_CHECKING:
    from nnfs.store.env import Store


def _ask(place: Place, command: str, **args: Any) -> dict[str, Any]:
    return client.ask(place.store, command, timeout=None, **args)


def set_limits(args: argparse.Namespace) -> int:
    """Set limits of a directory."""
    if args.bytes is None and args.inodes is None:
        raise UsageError("say which limit: --bytes 10G, --inodes 100000, or both")
    place = locate(args.path)
    answer = _ask(
        place, "quota_set", ino=progress.ino_of(place), bytes=args.bytes, inodes=args.inodes, wait=not args.no_wait
    )
    return _shown(answer, args)


def show_limits(args: argparse.Namespace) -> int:
    """Show all limits, or those that hold for a directory."""
    place = locate(args.path)

    def offline(store: Store) -> dict[str, Any]:
        from nnfs.fs import quotareport

        with store.read() as snapshot:
            return {"quotas": quotareport.lines(snapshot)}

    inside = {"ino": progress.ino_of(place)} if place.is_inside else {}
    answer = show.ask_or_read(place, "quota_show", offline, **inside)
    return _shown(answer, args)


def remove(args: argparse.Namespace) -> int:
    """Take the limits of a directory away."""
    place = locate(args.path)
    _ask(place, "quota_remove", ino=progress.ino_of(place), wait=not args.no_wait)
    return 0


def check(args: argparse.Namespace) -> int:
    """Count everything anew and compare. The exit code is that of damage if something is wrong and stays so."""
    answer = _ask(locate(args.path), "quota_check", repair=args.repair)
    if args.json:
        tables.printed_json(answer)
    else:
        for one in answer["wrong"]:
            print(f"quota {one['number']}: {one['inodes']:+,} inodes and {one['bytes']:+,} B are not counted")
        if answer["misplaced"]:
            print(f"{answer['misplaced']:,} inodes count for another quota than that of their directory")
        if answer["unknown"]:
            print(f"{answer['unknown']:,} inodes name a quota that is not there (nnfs fsck --repair)")
        if answer["repaired"] and (answer["wrong"] or answer["misplaced"]):
            print("repaired")
    is_wrong = answer["unknown"] or ((answer["wrong"] or answer["misplaced"]) and not answer["repaired"])
    return StoreDamaged.exit_code if is_wrong else 0


def _shown(answer: dict[str, Any], args: argparse.Namespace) -> int:
    if args.json:
        tables.printed_json(answer)
    elif answer["quotas"]:
        print(_table(answer["quotas"]))
    return 0


def _table(quotas: list[dict[str, Any]]) -> str:
    rows = [
        (
            names.printable(one["path"]) + (" (being counted)" if one["counting"] else "")
            + (" (being removed)" if one["removing"] else ""),
            tables.size(one["bytes"]), tables.size(one["max_bytes"]) if one["max_bytes"] else "-",
            f"{one['inodes']:,}", f"{one['max_inodes']:,}" if one["max_inodes"] else "-",
        )
        for one in quotas
    ]  # fmt: skip
    return tables.table(("directory", "bytes", "limit", "inodes", "limit"), rows)
