"""The Weissman score: one file streamed through each codec at growing sizes, beside a reference compressor.

W = (r / r_ref) ln(T_ref / u) / ln(T / u), where r is plain by stored bytes, T the time that encoding takes and u a unit
of time. The unit changes the score, so it is told for a second and for a millisecond. gzip -9 is the reference.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.codec.child import one_pass, peak_mb
from bench.codec.coders import named
from bench.codec.running import task_of, told
from bench.codec.sample import Piece
from bench.table import Missing
from nnfs.workers.startup import quiet_threads

REFERENCE = "gzip -9"
UNITS = {"1 s": 1.0, "1 ms": 0.001}
GROUP = 32  # chunks that are read, coded, compared and forgotten together: two batches of the network
BLOCK = 1 << 20  # bytes that the reference is given at once
WIDTH = 16
HEADS = ("plain_bytes", "stored_bytes", "bits_per_byte", "encode_s", "decode_s", "encode_kbps", "peak_mb", "T_ref_s")
NOTE = """T: seconds of encoding, with {threads} threads for nnfs's codecs, in chunks of {chunk:,} bytes.
T_ref: those of the reference, {reference}, for the same bytes as one stream, one thread.
W = (r / r_ref) ln(T_ref) / ln(T), in units of 1 s and of 1 ms; "-" where a time is no longer than the unit.
The score depends on the unit: 2.981, which was published without one, can be compared with neither."""


@dataclass(frozen=True)
class Streamed:
    """The bytes of a stream, before and after, and the seconds that it took."""

    plain: int
    stored: int
    encode_s: float
    decode_s: float | None = None
    peak_mb: float | None = None


def weissman(one: Streamed, reference: Streamed, unit: float) -> float | None:
    """Return the score, None where a time is not above the unit: its logarithm says nothing then."""
    if min(one.encode_s, reference.encode_s) <= unit:
        return None
    ratio = (one.plain / one.stored) / (reference.plain / reference.stored)
    return ratio * math.log(reference.encode_s / unit) / math.log(one.encode_s / unit)


def streamed(task: dict[str, Any]) -> dict[str, Any]:
    """Stream the chunks of a task through a codec until they end, or its time does. Return its figures."""
    quiet_threads(os.environ, task["threads"])
    try:
        coder = named(task["codec"], task["device"], task["threads"])
    except Missing as why:
        return {"missing": str(why)}
    cut = [Piece(*piece) for piece in task["pieces"]]
    one_pass(coder, [Piece(cut[0].path, 0, min(300, cut[0].length))])  # unmeasured: imports, tables, kernels
    plain = stored = 0
    encode_s = decode_s = 0.0
    for begin in range(0, len(cut), GROUP):
        group = cut[begin : begin + GROUP]
        sizes, encoding, decoding = one_pass(coder, group)
        plain, stored = plain + sum(piece.length for piece in group), stored + sum(sizes)
        encode_s, decode_s = encode_s + encoding, decode_s + decoding
        if encode_s + decode_s > task["limit"]:
            break
    return asdict(Streamed(plain, stored, encode_s, decode_s, peak_mb()))


def reference(path: Path, size: int) -> Streamed:
    """Compress the first `size` bytes of a file by the reference."""
    coder, stored, left = zlib.compressobj(9, zlib.DEFLATED, 31), 0, size
    begin = time.perf_counter()
    with open(path, "rb") as file:
        while left and (plain := file.read(min(left, BLOCK))):
            stored += len(coder.compress(plain))
            left -= len(plain)
    stored += len(coder.flush())
    return Streamed(size - left, stored, time.perf_counter() - begin)


def shown(value: float | None, digits: int) -> str:
    """Return a cell of the table."""
    return f"{'-' if value is None else f'{value:,.{digits}f}':>{WIDTH}}"


def record(name: str, one: Streamed, beside: Streamed) -> dict[str, Any]:
    """Return a row: its figures, those of the reference, and the scores."""
    row = {"codec": name, **asdict(one), "bits_per_byte": 8 * one.stored / one.plain}
    row["encode_kbps"] = one.plain / one.encode_s / 1000
    row["reference_s"], row["reference_stored"] = beside.encode_s, beside.stored
    return row | {f"W ({unit})": weissman(one, beside, seconds) for unit, seconds in UNITS.items()}


def line(row: dict[str, Any]) -> str:
    """Return a row's line of the table."""
    digits = {"plain": 0, "stored": 0, "bits_per_byte": 4, "encode_s": 2, "decode_s": 2, "encode_kbps": 1}
    digits |= {"peak_mb": 1, "reference_s": 2} | {f"W ({unit})": 3 for unit in UNITS}
    return f"{row['codec'][-16:]:<16}" + "".join(shown(row[key], count) for key, count in digits.items())


def one_path(path: Path, args: argparse.Namespace, tell: Callable[[dict[str, Any]], None]) -> bool:
    """Measure one file at all sizes, and call `tell` with each row. Return whether every codec worked."""
    known: dict[int, Streamed] = {}
    works = True
    slow: set[str] = set()  # codecs whose time was over at a smaller size
    for whole in sorted({min(million * 1_000_000, path.stat().st_size) for million in args.stream}):
        cut = [Piece(str(path), at, min(args.chunk, whole - at)) for at in range(0, whole, args.chunk)]
        known[whole] = reference(path, whole)
        tell(record(REFERENCE, known[whole], known[whole]))
        for name in args.codecs:
            if name in slow:
                continue
            figures, has_run = told("bench.codec.stream", task_of(name, cut, args) | {"limit": args.limit}, path)
            works = works and has_run
            if figures is None:
                slow.add(name)
                continue
            one = Streamed(**figures)
            if one.plain < whole:
                slow.add(name)
            tell(record(name, one, known.get(one.plain) or known.setdefault(one.plain, reference(path, one.plain))))
    return works


def main(args: argparse.Namespace) -> int:
    """Print the table of each file; 1 if a codec failed or gave back other bytes."""
    rows: list[dict[str, Any]] = []
    works = True
    heads = (*HEADS, *(f"W ({unit})" for unit in UNITS))
    for path in args.paths:
        if not path.is_file() or not path.stat().st_size:
            print(f"  - {path}: a file is streamed, and this is none, or empty", flush=True)
            continue
        print(f"{path}\n{'codec':<16}" + "".join(f"{head:>{WIDTH}}" for head in heads), flush=True)

        def tell(row: dict[str, Any], path: Path = path) -> None:
            rows.append({"path": str(path), **row})
            print(line(row), flush=True)

        works &= one_path(path, args, tell)
    print(NOTE.format(threads=args.threads, chunk=args.chunk, reference=REFERENCE))
    if args.json:
        args.json.write_text(json.dumps({"reference": REFERENCE, "rows": rows}, indent=1) + "\n")
    return int(not works)


if __name__ == "__main__":
    json.dump(streamed(json.load(sys.stdin)), sys.stdout)
