"""`nnfs top`: a line each second about what a mount is asked, and how quickly it answers."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from typing import Any, Protocol

from nnfs import names
from nnfs.cli import client, tables
from nnfs.cli.locate import locate
from nnfs.mount.meter import Counts, histogram, quantile, total

HEAD_EVERY = 20  # lines

Counters = dict[str, Any]
Rates = dict[str, Any]

COLUMNS = {  # of a line: heading, width
    "requests": ("requests/s", 10), "p99": ("99 % in", 9), "busiest": ("most of them", 18), "read": ("read/s", 9),
    "written": ("written/s", 9), "hits": ("in cache", 8), "decoded": ("decoded/s", 9), "waiting": ("waiting", 7),
    "queue": ("queue", 5), "dirty": ("dirty", 9), "errors": ("errors", 6),
}  # fmt: skip
HEADINGS = {name: heading for name, (heading, _) in COLUMNS.items()}


class Show(Protocol):
    """A display that is called with the rates of each interval, and closed at the end."""

    def __call__(self, found: Rates) -> None: ...

    def close(self) -> None: ...


def top(args: argparse.Namespace) -> int:
    """Show a line for each interval, until ^C or so many."""
    place = locate(args.path)
    show = _display(args, os.fspath(place.path))
    try:
        before = client.ask(place.store, "counters")
        for _ in itertools.count() if args.count is None else range(args.count):
            time.sleep(args.interval)
            now = client.ask(place.store, "counters")
            show(rates(before, now))
            before = now
    except KeyboardInterrupt:
        pass  # the usual end
    finally:
        show.close()
    return 0


def _display(args: argparse.Namespace, path: str) -> Show:
    """Return a view that stays in its place on a terminal, else lines; or objects for programs."""
    if args.json:
        return _Objects()
    if args.lines or not sys.stdout.isatty():
        return _Lines()
    from nnfs.cli.topview import View

    return View(f"nnfs top {names.printable(path)}, {args.interval:g} s a line; ^C ends it", HEADINGS, shown)


class _Lines:
    """Lines for a log or a pipe, with a heading from time to time."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, found: Rates) -> None:
        if self._count % HEAD_EVERY == 0:
            print(line(HEADINGS), flush=True)
        self._count += 1
        print(line(shown(found)), flush=True)

    def close(self) -> None:
        pass


class _Objects:
    """An object a line, for programs."""

    def __call__(self, found: Rates) -> None:
        tables.printed_json(found, in_one_line=True)

    def close(self) -> None:
        pass


def rates(before: Counters, now: Counters) -> Rates:
    """Return rates per second between two answers of the daemon, and what holds at the second one."""
    seconds: float = max(1e-3, now["uptime"] - before["uptime"])
    done = {name: _less(counts, before["nanoseconds"].get(name)) for name, counts in now["nanoseconds"].items()}
    requests = {name: total(counts) for name, counts in done.items()}
    every = [sum(each) for each in zip(*done.values(), strict=True)] or histogram()
    hits, misses = (now[f"cache_{name}"] - before[f"cache_{name}"] for name in ("hits", "misses"))

    def rate(name: str) -> float:
        difference: int = now[name] - before[name]
        return round(difference / seconds, 1)

    return {
        "requests": round(sum(requests.values()) / seconds, 1),
        "by_operation": {name: round(count / seconds, 1) for name, count in requests.items() if count},
        "p99_seconds": quantile(every, 0.99) / 1e9,
        "p99_by_operation": {name: quantile(done[name], 0.99) / 1e9 for name, count in requests.items() if count},
        "read_bytes": rate("read_bytes"), "written_bytes": rate("written_bytes"),
        "cache_hit_share": round(hits / (hits + misses), 3) if hits + misses else None,
        "decoded_bytes": rate("decoded_bytes"), "reads_waiting": now["reads_waiting"],
        "queue": now["queue"],
        "dirty_bytes": now["dirty_bytes"], "errors": now["errors"] - before["errors"],
    }  # fmt: skip


def _less(counts: Counts, before: Counts | None) -> Counts:
    return [new - old for new, old in zip(counts, before or histogram(), strict=True)]


def shown(found: Rates) -> dict[str, str]:
    """Return the texts of a line."""
    busiest = max(found["by_operation"].items(), key=lambda item: item[1], default=None)
    share = found["cache_hit_share"]
    return {
        "requests": f"{found['requests']:.0f}",
        "p99": tables.latency(found["p99_seconds"]),
        "busiest": f"{busiest[0]} {busiest[1]:.0f}" if busiest else "-",
        "hits": "-" if share is None else f"{share:.0%}",
        "waiting": str(found["reads_waiting"]), "queue": str(found["queue"]),
        "dirty": tables.size(found["dirty_bytes"]), "errors": str(found["errors"]),
        **{name: tables.size(int(found[f"{name}_bytes"])) for name in ("read", "written", "decoded")},
    }  # fmt: skip


def line(texts: dict[str, str]) -> str:
    """Return one line of the table; columns have the same width in all lines."""
    return "  ".join(texts[name].rjust(width) for name, (_, width) in COLUMNS.items())
