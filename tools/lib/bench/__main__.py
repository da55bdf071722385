"""Command line of tools/bench: measure what the pages of nnfs have tables of, and print the tables."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from bench import fs, machine, picture, runs
from bench.coding import SLOW
from bench.corpus import ARCHIVE, NoData
from bench.runs import ROOT, Runner
from bench.table import Result, Setting, Table, block, figure, replaced, with_figures
from bench.tables import TABLES
from nnfs.kernels.library import LEVELS, NONE

PAGES = ("README.md", "nnfs/FIGURES.md", "nnfs/METHODS.md")
PICTURES = {"methods": "nnfs/methods.svg"}  # of tables
DATA = ROOT.parent / "shared" / "corpus"
Blocks: TypeAlias = dict[str, Callable[[Sequence[str]], str]]
Figures: TypeAlias = dict[str, Callable[[str], str | None]]
EPILOG = f"""tables:
{chr(10).join(f"  {table.name:<11} {table.title}" for table in TABLES)}

examples:
  sudo tools/bench                                     all of it: some hours
  sudo tools/bench --quick                             small samples, some minutes
  tools/bench --only speed,chunk --against 246b969     beside an older commit, in turns, with the ratio
  sudo tools/bench --write                             also into {", ".join(PAGES)}

Each measurement is a process of its own, which ends when its time is over; its line says so then. Compare figures of
one run only, on a quiet machine. A ratio above 1 is better, whichever way the figure goes. Tables of mounts need root.
The code of this checkout measures the other commit, too: a measurement that its nnfs does not know is "-"."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        "bench", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [table.name for table in TABLES]
    levels = ",".join((*LEVELS, NONE))
    parser.add_argument("--only", metavar="NAME,...", type=listed, default=[*known], help="of the tables below (all)")
    parser.add_argument("--quick", action="store_true", help="small samples; coverage is left out")
    parser.add_argument("--against", metavar="COMMIT", help="measure that commit, too: it is set up in a worktree")
    parser.add_argument("--data", metavar="DIR", type=Path, default=DATA, help=f"where {ARCHIVE} is ({DATA})")
    parser.add_argument(
        "--levels", metavar="NAME,...", type=listed, help=f"of {levels} (all that run here but {' and '.join(SLOW)})"
    )
    parser.add_argument("--limit", metavar="S", type=float, default=3600, help="seconds for one measurement (3600)")
    parser.add_argument("--work", metavar="DIR", type=Path, default=ROOT, help="on the disk to use (the checkout)")
    parser.add_argument("--write", action="store_true", help=f"replace the tables of {' and '.join(PAGES)}")
    args = parser.parse_args(argv)
    for given, there in ((args.only, known), (args.levels or [], [*LEVELS, NONE])):
        if unknown := [name for name in given if name not in there]:
            parser.error(f"unknown: {', '.join(unknown)}; there are: {', '.join(there)}")
    return args


def listed(text: str) -> list[str]:
    """Return the words of a list with commas."""
    return [word for word in text.split(",") if word]


def about(table: Table, runner: Runner) -> str:
    """Return the sentences above a table: when, where, of which commit, and what its figures are."""
    words = ["tools/bench", "--only", table.name, *(["--quick"] if runner.is_quick else [])]
    words += ["--against", runner.other.name] if runner.other else []
    head = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, commit `{runner.here.name}`, {machine.this_machine()}: "
    head += f"`{' '.join(words)}`."
    ratio = f" In brackets: how many times as good as commit `{runner.other.name}`." if runner.other else ""
    return f"{head} {table.note}{ratio}"


def measure(table: Table, setting: Setting, runner: Runner) -> list[Result]:
    """Measure a whole table, and say on standard error what is under way and what went wrong."""
    results = []
    for case in table.cases(setting):
        print(f"bench: {table.name} {' '.join(case.labels)} {case.key}".rstrip(), file=sys.stderr, flush=True)
        result = runner.run(table, case)
        for answer, where in ((result.here, runner.here), (result.other, runner.other)):
            if answer and where and answer.problem:
                print(f"bench:   {where.name}: {answer.problem}", file=sys.stderr, flush=True)
        results.append(result)
    return results


def write(blocks: Blocks, figures: Figures) -> None:
    """Put the tables and figures into the pages."""
    for page in (ROOT / name for name in PAGES):
        new = with_figures(replaced(page.read_text(encoding="utf-8"), blocks), figures)
        page.write_text(new, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a measurement of this commit failed."""
    args = arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through the context managers
    failed = False
    blocks: Blocks = {}
    figures: Figures = {}
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(fs.scratch(args.work))
        here = runs.checkout(ROOT)
        levels = tuple(args.levels or (level for level in here.levels if level not in SLOW))
        setting = Setting(work, args.data.resolve(), levels, len(os.sched_getaffinity(0)), args.quick)
        chosen = [table for table in TABLES if table.name in args.only]
        try:
            for table in chosen:  # what is missing is told before anything is measured
                table.cases(setting)
        except NoData as why:
            raise SystemExit(f"bench: {why}") from why
        other = stack.enter_context(runs.other_checkout(args.against, work)) if args.against else None
        runner = Runner(here, other, args.limit, work, is_quick=args.quick)
        for table in chosen:
            head = about(table, runner)
            results = measure(table, setting, runner)
            failed |= any(result.here.problem and not result.here.is_missing for result in results)
            blocks[table.name] = functools.partial(block, table, results, head)
            figures[table.name] = functools.partial(figure, table, results)
            print(f"## {table.title}\n\n{blocks[table.name]([])}", flush=True)
            if args.write:
                write(blocks, figures)
                if table.name in PICTURES and any(result.here.lines for result in results):
                    (ROOT / PICTURES[table.name]).write_text(picture.drawn(results), encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
