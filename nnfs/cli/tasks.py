"""`nnfs tasks`: the tasks of a store's daemon, and how the last ones ended, also while it is not mounted."""

from __future__ import annotations

import argparse
from typing import Any

from nnfs import names
from nnfs.cli import client, progress, tables
from nnfs.cli.locate import Place, locate
from nnfs.constants import HISTORY_FILE


def tasks(args: argparse.Namespace) -> int:
    """List the tasks, the oldest first."""
    found = known(locate(args.path))
    if args.json:
        tables.printed_json({"jobs": found})
        return 0
    if not found:
        print("nothing has been done yet")
        return 0
    rows = [
        [
            str(task["job"]) if task["job"] else "-", progress.named(task), _when(task), task["state"],
            tables.span(task["seconds"]), tables.size(task["done_bytes"]),
        ]
        for task in found
    ]  # fmt: skip
    print(tables.table(["task", "what", "began", "state", "took", "done"], rows, left=4))
    for task in found:
        if task["state"] not in progress.RUNNING and (text := outcome(task)):
            print(f"{_name(task)}: {text}")
    return 0


def known(place: Place) -> list[dict[str, Any]]:
    """Return the tasks of a store, from its daemon or from the file that the last daemon has left."""
    if place.mount is not None or client.daemon_pid(place.store) is not None:
        answer: list[dict[str, Any]] = client.ask(place.store, "jobs")["jobs"]
        return answer
    from nnfs.background import history

    return history.read(place.store / HISTORY_FILE)[0]


def _when(task: dict[str, Any]) -> str:
    return tables.date(task["began"]) if task.get("began") else "-"


def _name(task: dict[str, Any]) -> str:
    return f"task {task['job']}" if task["job"] else str(task["kind"])


def outcome(task: dict[str, Any]) -> str:
    """Return in a few words a task's error, or its savings and findings; "" when the table has all of it."""
    parts = [names.one_line(task["error"])] if task.get("error") else []
    before, after = task.get("stored_before", 0), task.get("stored_after", 0)
    if before:
        parts.append(f"{tables.size(before)} became {tables.size(after)}")
    if task.get("failed_chunks"):
        parts.append(f"{task['failed_chunks']} chunks stay as they were")
    result = task.get("result", {})
    if result.get("damaged_blocks") or result.get("damaged"):
        parts.append(f"{result.get('damaged_blocks') or len(result['damaged'])} blocks are damaged")
    if result.get("repaired"):
        parts.append(f"{result['repaired']} repaired")
    if task.get("note") and not task.get("done_chunks"):
        parts.append(str(task["note"]))
    return ", ".join(parts)
