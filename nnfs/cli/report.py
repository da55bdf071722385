"""`nnfs report`: a page, or JSON, about what a store holds, what takes the space, and what could still be saved."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnfs import names
from nnfs.cli import client, progress, show, tables, wholefile
from nnfs.cli.locate import Place, check_answers, locate
from nnfs.constants import HISTORY_FILE
from nnfs.errors import UsageError

if TYPE_CHECKING:
    from nnfs.store.env import Store

STREAM = "-"

Facts = dict[str, Any]


def report(args: argparse.Namespace) -> int:
    """Write the page of a store, or print the facts that it shows."""
    if args.html is None and not args.json:
        raise UsageError("say what to make: --html FILE, or --json")
    if args.html == STREAM and args.json:
        raise UsageError("--json prints to standard output, and so does --html -: name a file")
    place = locate(args.path)
    file = None if args.html in (None, STREAM) else _target(args.html, force=args.force)
    facts = gathered(place)
    if args.json:
        tables.printed_json(facts)
    if args.html is None:
        return 0
    from nnfs.cli.html.page import page

    text = page(facts)
    if file is None:
        sys.stdout.write(text)
        return 0
    wholefile.write(file, text, replace=args.force)
    if not args.json:
        print(f"{names.printable(file)}: {tables.size(len(text.encode()))}")
    return 0


def _target(text: str, *, force: bool) -> Path:
    """Return the file to write, whose place is looked at before the work begins. Raises `UsageError`, OSError."""
    check_answers(text)
    file = Path(os.path.abspath(text))
    if file.is_dir():
        raise UsageError(f"{text} is a directory: give the name of the page to write")
    if not file.parent.is_dir():
        raise UsageError(f"{names.printable(file.parent)} is not a directory")
    if file.is_file() and not force:
        raise wholefile.exists(file)
    return file


def gathered(place: Place) -> Facts:
    """Return the facts of a report, from the daemon or from a store that is not mounted."""
    if place.mount is None and client.daemon_pid(place.store) is None:
        return _offline(place)
    status = client.ask(place.store, "status")
    return {
        "time": time.time(), "store": status["store"], "mountpoint": status["mountpoint"], "status": status,
        "df": client.ask(place.store, "df"),
        "summary": client.ask(place.store, "tree", timeout=None),
        "snapshots": client.ask(place.store, "snapshot_list", timeout=None)["snapshots"],
        "policy": status["compaction"]["policy"],
        "scrubbed": status["scrubbed"],
        "damaged": progress.lines_of(status["damaged"], place),
    }  # fmt: skip


def _offline(place: Place) -> Facts:
    """Return the facts of a store that is not mounted: without speeds, and with the damage that the last scrub met."""
    from nnfs.background import history
    from nnfs.background.outlook import outlook
    from nnfs.codec.base import RUNGS
    from nnfs.config import load_options
    from nnfs.mount.table import resolve

    def read(store: Store) -> Facts:
        from nnfs.fs import report, snapshotlist, treesummary

        df = report.df_report(store)
        rungs = [{**line, "seconds": None} for line in outlook(df["codecs"], RUNGS, {}, lambda _: 0.0)]
        with store.read() as snapshot:
            return {
                "df": {**df, "rungs": rungs},
                "summary": treesummary.tree_summary(snapshot, df["stored_bytes"]),
                "snapshots": snapshotlist.listed(snapshot),
            }

    records, scrubbed = history.read(place.store / HISTORY_FILE)
    scrubs = [record for record in records if record["kind"] == "scrub" and record["state"] == "done"]
    damaged = scrubs[-1].get("result", {}).get("damaged", []) if scrubs else []
    return {
        "time": time.time(), "store": str(place.store), "mountpoint": None, **show.from_store(place.store, read),
        "policy": load_options(place.store, {}, resolve=resolve).policy,
        "scrubbed": scrubbed, "damaged": progress.lines_of(damaged, place),
    }  # fmt: skip
