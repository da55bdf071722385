"""The commands `nnfs compact`, `thaw`, `scrub`, `pause` and `resume`: the daemon does the work."""

from __future__ import annotations

import argparse

from nnfs import names
from nnfs.cli import client, progress
from nnfs.cli.locate import locate


def compact(args: argparse.Namespace) -> int:
    """Recompress cold data, or with --all everything, at and below a path."""
    place = locate(args.path, follow=True)
    if args.cancel:
        return progress.cancel(place, "compact", progress.DRY_RUN)
    return progress.run(
        place, "compact", wait=args.wait or args.dry_run, json=args.json,
        **progress.target(place), all=args.all, quick=args.quick, dry_run=args.dry_run,
    )  # fmt: skip


def thaw(args: argparse.Namespace) -> int:
    """Bring a path, and everything below it, back to the hot tier."""
    place = locate(args.path, follow=True)
    if args.cancel:
        return progress.cancel(place, "thaw")
    return progress.run(place, "thaw", wait=args.wait, json=args.json, **progress.target(place))


def scrub(args: argparse.Namespace) -> int:
    """Verify the checksums of all stored bytes; with --deep also decode them."""
    place = locate(args.path)
    if args.cancel:
        return progress.cancel(place, "scrub")
    return progress.run(place, "scrub", wait=args.wait, json=args.json, deep=args.deep)


def pause(args: argparse.Namespace) -> int:
    """Hold recompression, thawing and scrub."""
    place = locate(args.path)
    client.ask(place.store, "pause")
    print(f"paused until nnfs resume {names.shell(args.path)}, or the next mount")
    return 0


def resume(args: argparse.Namespace) -> int:
    """Let recompression, thawing and scrub go on."""
    place = locate(args.path)
    client.ask(place.store, "resume")
    tasks = [
        task for task in client.ask(place.store, "jobs")["jobs"] if task["job"] and task["state"] in progress.RUNNING
    ]
    told = ", ".join(f"task {task['job']} ({progress.named(task)})" for task in tasks)
    print(f"resumed: {told}" if told else "resumed")
    return 0
