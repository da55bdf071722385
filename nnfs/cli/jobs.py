"""`nnfs jobs`: the tasks of a store's daemon, and how the last ones ended, also while it is not mounted."""

from __future__ import annotations

import argparse
from typing import Any

from nnfs import names
from nnfs.cli import client, progress, tables
from nnfs.cli.locate import Place, locate


def jobs(args: argparse.Namespace) -> int:
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
            str(job["job"]) if job["job"] else "-", progress.named(job), _when(job), job["state"],
            tables.span(job["seconds"]), tables.size(job["done_bytes"]),
        ]
        for job in found
    ]  # fmt: skip
    print(tables.table(["job", "what", "began", "state", "took", "done"], rows, left=4))
    for job in found:
        if job["state"] not in progress.RUNNING and (text := outcome(job)):
            print(f"{_name(job)}: {text}")
    return 0


def known(place: Place) -> list[dict[str, Any]]:
    """Return the tasks of a store, from its daemon or from the file that the last one has left."""
    if place.mount is not None or client.daemon_pid(place.store) is not None:
        answer: list[dict[str, Any]] = client.ask(place.store, "jobs")["jobs"]
        return answer
    from nnfs.background import history

    return history.read(place.store / history.FILE)[0]


def _when(job: dict[str, Any]) -> str:
    return tables.date(job["began"]) if job.get("began") else "-"


def _name(job: dict[str, Any]) -> str:
    return f"job {job['job']}" if job["job"] else str(job["kind"])


def outcome(job: dict[str, Any]) -> str:
    """Return an error, or what was saved and found, in a few words; "" when the table says it all."""
    parts = [names.one_line(job["error"])] if job.get("error") else []
    before, after = job.get("stored_before", 0), job.get("stored_after", 0)
    if before:
        parts.append(f"{tables.size(before)} became {tables.size(after)}")
    if job.get("failed_chunks"):
        parts.append(f"{job['failed_chunks']} chunks stay as they were")
    result = job.get("result", {})
    if result.get("damaged_blocks") or result.get("damaged"):
        parts.append(f"{result.get('damaged_blocks') or len(result['damaged'])} blocks are damaged")
    if result.get("repaired"):
        parts.append(f"{result['repaired']} repaired")
    if job.get("note") and not job.get("done_chunks"):
        parts.append(str(job["note"]))
    return ", ".join(parts)
