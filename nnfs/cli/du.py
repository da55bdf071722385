"""`nnfs du`: what the directories below a path hold, what they take, and what is saved."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnfs import names
from nnfs.cli import progress, show, tables
from nnfs.cli.locate import locate

if TYPE_CHECKING:
    from nnfs.store.env import Store

Line = dict[str, Any]

SORTS: dict[str, Callable[[Line], Any]] = {  # largest first, but for names
    "saved": lambda line: -line["saved_bytes"],
    "stored": lambda line: -line["stored_bytes"],
    "logical": lambda line: -line["logical_bytes"],
    "inodes": lambda line: -line["inodes"],
    "name": lambda line: line["path"],
}


def du(args: argparse.Namespace) -> int:
    """Print a line for each directory down to a depth, and for the path itself at the end."""
    place = locate(args.path)
    ino = progress.ino_of(place)

    def offline(store: Store) -> dict[str, Any]:
        from nnfs.fs import diskusage

        with store.read() as snapshot:
            return {"directories": diskusage.usage(snapshot, ino, args.depth)}

    lines = show.ask_or_read(place, "du", offline, ino=ino, depth=args.depth)["directories"]
    for line in lines:
        line["path"] = os.fspath(Path(args.path, line["path"]))
        line["saved_bytes"] = line["logical_bytes"] - line["stored_bytes"]
    if args.sort:
        *below, top = lines
        lines = [*sorted(below, key=SORTS[args.sort]), top]
    if args.json:
        tables.printed_json(lines)
        return 0
    rows = [
        [tables.size(line["logical_bytes"]), tables.size(line["stored_bytes"]), _saved(line), str(line["inodes"])]
        for line in lines
    ]
    head, *figures = tables.table(["logical", "stored", "saved", "inodes"], rows, left=0).splitlines()
    print(f"{head}  path")
    for text, line in zip(figures, lines, strict=True):
        damage = f"  ({line['damaged']} damaged)" if line["damaged"] else ""
        print(f"{text}  {names.printable(line['path'])}{_limits(line)}{damage}")
    return 0


def _limits(line: Line) -> str:
    """Return the limits of a directory that has some."""
    limits = [tables.size(line["max_bytes"])] if line.get("max_bytes") else []
    limits += [f"{line['max_inodes']:,} inodes"] if line.get("max_inodes") else []
    return f"  (limit {', '.join(limits)})" if limits else ""


def _saved(line: Line) -> str:
    if line["saved_bytes"] < 0:
        return f"-{tables.size(-line['saved_bytes'])}"
    return tables.size(line["saved_bytes"])
