"""The command `nnfs doctor`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from nnfs import names
from nnfs.cli import tables
from nnfs.cli.doctor import bundle, codecs, machine, place
from nnfs.cli.doctor.finding import FAIL, OK, Finding
from nnfs.cli.locate import locate
from nnfs.errors import NnfsError

FAILED = 1  # exit code where a check has failed


def doctor(args: argparse.Namespace) -> int:
    """Print a line for each check, and write the bundle. Return 0 where nothing fails."""
    if args.bundle is not None:
        bundle.check(args.bundle)
    findings = []
    for finding in _found(args.path, quick=args.quick):
        findings.append(finding)
        if not args.json:
            print(finding.line(), flush=True)
    packed = _bundle(args.bundle, findings, args.path) if args.bundle is not None else None
    if args.json:
        answer = {"checks": [finding.as_dict() for finding in findings]}
        tables.printed_json(answer | ({"bundle": os.fspath(args.bundle), "members": packed} if packed else {}))
    else:
        counts = {verdict: sum(finding.verdict == verdict for finding in findings) for verdict in (OK, "warn", FAIL)}
        print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
        if packed:
            print(f"{names.printable(args.bundle)} has {', '.join(packed)}: no names or content of your files")
    return FAILED if any(finding.verdict == FAIL for finding in findings) else 0


def _found(path: str | None, *, quick: bool) -> Iterator[Finding]:
    yield from machine.checks()
    if not quick:
        yield from codecs.checks()
    if path is not None:
        yield from (replace(finding, names_files=True) for finding in place.checks(path))


def _bundle(file: Path, findings: list[Finding], path: str | None) -> list[str]:
    """Write the bundle, with the status of a path where it can be had."""
    where = None
    status = None
    if path is not None:
        try:
            where = locate(path)
            answer = place.status(where)
            status = answer if isinstance(answer, dict) else None
        except (NnfsError, OSError):
            where = None  # a check has told that
    return bundle.write(file, findings, where, status)
