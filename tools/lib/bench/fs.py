"""Command line of tools/bench_fs: run the rows, print the table."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import data, meta, space
from bench.rows import Row, Values
from bench.table import number
from bench.targets import Compacting, Failed, Nnfs, Null, Target

ROWS: tuple[Row, ...] = (*data.ROWS, *meta.ROWS, *space.ROWS)
TARGETS = ("lower", "nullfs", "nnfs", "compacting")
CHECKOUT = Path(__file__).resolve().parents[3]
EPILOG = """examples:
  sudo tools/bench_fs                          all rows, some ten minutes
  sudo tools/bench_fs --quick --only write,loops
  sudo tools/bench_fs --targets lower,nullfs   without nnfs: what the machine and pyfuse3 can do
  sudo tools/bench_fs --targets nnfs,compacting   nnfs beside itself with an idle worker that recompresses

All rows run on nnfs, on nullfs (a pyfuse3 filesystem in memory: the ceiling) and in a plain directory of the lower
filesystem. Trust factors of two, not percents, and compare figures of one run only."""


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        "bench_fs", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", metavar="DIR", type=Path, help="a directory on the disk to use (the checkout's)")
    parser.add_argument("--only", metavar="NAME,...", help=f"rows to run, of: {','.join(r.name for r in ROWS)}")
    parser.add_argument("--targets", metavar="NAME,...", default="lower,nullfs,nnfs", help="what to measure")
    parser.add_argument("--options", default="", help="mount options for nnfs")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, one repetition")
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write every value to this file")
    args = parser.parse_args()
    args.only = args.only.split(",") if args.only else [row.name for row in ROWS]
    args.targets = args.targets.split(",")
    for given, known in ((args.only, {row.name for row in ROWS}), (args.targets, set(TARGETS))):
        if unknown := set(given) - known:
            parser.error(f"unknown: {', '.join(sorted(unknown))}; there are: {', '.join(sorted(known))}")
    if os.geteuid():
        parser.error("needs root, to mount and to drop caches: sudo tools/bench_fs ...")
    if not shutil.which("fio"):
        parser.error("needs fio: apt-get install fio")
    return args


@contextmanager
def scratch(below: Path) -> Iterator[Path]:
    """Make a directory for the run, on a real disk, ignored by git, removed afterwards."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(below)], capture_output=True, text=True, check=True).stdout
    if kind.strip() in ("tmpfs", "ramfs"):
        raise SystemExit(f"{below} is {kind.strip()}, memory: name a directory on a disk")
    base = Path(tempfile.mkdtemp(prefix=".bench_fs-", dir=below))
    (base / ".gitignore").write_text("*\n")
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


def measure(row: Row, target: Target, quick: bool) -> Values | str:
    """Measure once on a fresh target. Return the values, or the reason why there are none."""
    try:
        with target.fresh():
            alarm = threading.Timer(row.limit, target.abort)
            alarm.start()
            try:
                return row.measure(target, quick)
            finally:
                alarm.cancel()
    except (Failed, OSError, subprocess.SubprocessError, ValueError, KeyError, ZeroDivisionError) as why:
        return f"{type(why).__name__}: {why}"


def run(row: Row, targets: list[Target], quick: bool) -> dict[str, list[Values | str]]:
    """Run all repetitions of a row, the targets in turns."""
    taken: dict[str, list[Values | str]] = {target.name: [] for target in targets}
    for _ in range(1 if quick else row.repeat):
        for target in targets:
            if target.name in row.targets or (target.name == "compacting" and "lower" in row.targets):
                taken[target.name].append(measure(row, target, quick))
    return taken


def median(taken: list[Values | str], key: str) -> float | None:
    """Return the median of the repetitions that ended well."""
    values = [values[key] for values in taken if not isinstance(values, str)]
    return statistics.median(values) if values else None


def lines(row: Row, taken: dict[str, list[Values | str]]) -> Iterator[str]:
    """Yield the row's lines of the table, and below them the failures."""
    for figure in row.figures:
        lower, null, ours, busy = (median(taken.get(name, []), figure.key) for name in TARGETS)
        ratios = [number(ours / other) if ours is not None and other else "-" for other in (null, lower)]
        mark = figure.mark(ours) if ours is not None else ("FAIL" if figure.must and taken.get("nnfs") else "")
        cells = [number(lower), number(null), number(ours), *ratios, number(figure.must), number(figure.wants)]
        if "compacting" in taken:
            cells += [number(busy), number(busy / ours) if busy is not None and ours else "-"]
        yield f"{figure.title:<42} {figure.unit:<6}" + "".join(f"{cell:>11}" for cell in cells) + f"  {mark}"
    for name, all_of in taken.items():
        for problem in (values for values in all_of if isinstance(values, str)):
            yield f"  ! {row.name} on {name}: {problem}"


def main() -> int:
    """Run and print; 1 if a "must" is missed or a row failed."""
    args = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through the context managers: unmount, clean up
    results: dict[str, Any] = {"quick": args.quick, "kernel": os.uname().release, "cpus": os.cpu_count(), "rows": {}}
    heads: tuple[str, ...] = ("lower", "nullfs", "nnfs", "nnfs/null", "nnfs/lower", "must", "wants")
    heads += ("compacting", "/nnfs") if "compacting" in args.targets else ()
    print(f"{'':<42} {'unit':<6}" + "".join(f"{head:>11}" for head in heads), flush=True)
    failed = False
    with scratch(args.store or CHECKOUT) as base:
        known: dict[str, Target] = {"lower": Target(base), "nullfs": Null(base), "nnfs": Nnfs(base, args.options)}
        known["compacting"] = Compacting(base)
        for row in ROWS:
            if row.name not in args.only or not set(row.targets) & set(args.targets):
                continue
            begin = time.monotonic()
            taken = run(row, [known[name] for name in TARGETS if name in args.targets], args.quick)
            results["rows"][row.name] = {"seconds": time.monotonic() - begin, "values": taken}
            for line in lines(row, taken):
                failed |= line.endswith("FAIL") or line.startswith("  !")
                print(line, flush=True)
            if args.json:
                args.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
