"""Command line of tools/bench_codec: cut the paths into chunks, run each codec on them, print the table."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.codec import latency, stream
from bench.codec.coders import CLASSICAL
from bench.codec.running import task_of, told
from bench.codec.sample import Coded, Piece, pieces, sample
from nnfs.codec.base import FIRST_COLD
from nnfs.workers.catalogue import Catalogue, presets

NNFS = (*(name for number, name in Catalogue().names().items() if number >= FIRST_COLD), *presets())
EPILOG = """examples:
  tools/bench_codec --sample 32 DIR            32 chunks of 128 KiB, the same ones for every codec
  tools/bench_codec --codecs ppmd,cm DIR FILE  some codecs, whole paths, one row per path and codec
  tools/bench_codec --first 100000 FILE        the first 100,000 bytes as one chunk
  tools/bench_codec --latency DIR              one chunk at a time, through a worker process
  tools/bench_codec --stream 16,64,256 FILE    a file's first 16, 64 and 256 MB, with the Weissman score

Each codec runs in a process of its own, and every chunk is decoded again and compared. Stored bytes count everything
but the header that all blocks have and the shared model. kbps: 1,000 plain bytes per second; the median of up to five
passes where one takes less than a second. peak_mb: most resident memory of the process, in 1,000,000 bytes. The row
"smallest" takes, chunk by chunk, the smallest of nnfs's codecs: what a store would keep."""


@dataclass(frozen=True)
class Row(Coded):
    """The row of one path and codec."""

    bits_per_byte: float
    encode_kbps: float | None
    decode_kbps: float | None
    peak_mb: float | None


def positive(text: str) -> int:
    """Parse a whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def sizes(text: str) -> list[int]:
    """Parse whole numbers with commas between them."""
    return [positive(word) for word in text.split(",")]


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(
        "bench_codec", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ",".join((*CLASSICAL, *NNFS))
    parser.add_argument("paths", metavar="PATH", type=Path, nargs="+", help="files or folders")
    parser.add_argument("--codecs", metavar="LIST", default=known, help=f"of: {known} (default: all), neural:FILE")
    parser.add_argument("--chunk", metavar="BYTES", type=positive, default=128 * 1024, help="size of chunks (131072)")
    parser.add_argument("--first", metavar="BYTES", type=positive, help="the first BYTES of each file, as one chunk")
    parser.add_argument("--sample", metavar="N", type=positive, help="at most N chunks per path (default: all)")
    parser.add_argument("--seed", metavar="S", type=int, default=1, help="of the sample (1)")
    parser.add_argument("--device", default="cpu", help="for nnfs's codecs: cpu, cuda or auto (cpu)")
    parser.add_argument("--threads", type=positive, default=len(os.sched_getaffinity(0)), help="for nnfs's codecs")
    parser.add_argument("--latency", action="store_true", help="time single chunks through a worker, not throughput")
    parser.add_argument(
        "--stream", metavar="MB,...", type=sizes, help="stream so many MB of a file, and score the codecs"
    )
    parser.add_argument("--limit", metavar="S", type=float, default=600, help="of --stream: seconds for a codec (600)")
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write every row to this file")
    args = parser.parse_args()
    args.codecs = [name for name in args.codecs.split(",") if name]
    for path in args.paths:
        if not path.exists():
            parser.error(f"{path}: no such file or folder")
    return args


def smallest(path: str, chosen: list[Piece], sizes: dict[str, list[int]]) -> Row | None:
    """Return the row of the smallest payloads of all codecs; None where there are fewer than two codecs."""
    ours = [stored for name, stored in sizes.items() if name not in CLASSICAL]
    if not ours or len(sizes) < 2:
        return None
    plain = [piece.length for piece in chosen]
    stored = sum(min(each) for each in zip(plain, *ours, strict=True))
    return Row(path, "smallest", sum(plain), stored, 8 * stored / sum(plain), None, None, None)


def cell(value: Any, digits: int) -> str:
    """Return a number for the table, a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def line(row: Row, width: int) -> str:
    """Return the row's line of the table."""
    shown = row.path if len(row.path) <= width else "..." + row.path[3 - width :]
    cells = (
        cell(row.plain_bytes, 0), cell(row.stored_bytes, 0), cell(row.bits_per_byte, 4),
        cell(row.encode_kbps, 1), cell(row.decode_kbps, 1), cell(row.peak_mb, 1),
    )  # fmt: skip
    return f"{shown:<{width}}  {row.codec[-16:]:<16}" + "".join(f"{text:>16}" for text in cells)


def measure(path: Path, args: argparse.Namespace, width: int) -> tuple[list[Row], list[dict[str, Any]], bool]:
    """Measure all codecs on one path. Return rows, the rows for JSON, and whether any codec failed."""
    chosen = sample(pieces(path, args.chunk, args.first), args.sample, args.seed)
    rows: list[Row] = []
    written: list[dict[str, Any]] = []
    sizes: dict[str, list[int]] = {}
    failed = False
    plain = sum(piece.length for piece in chosen)
    for name in args.codecs if chosen else ():
        figures, has_run = told("bench.codec.child", task_of(name, chosen, args), path)
        failed = failed or not has_run
        if figures is None:
            continue
        sizes[name] = figures["stored"]
        stored = sum(figures["stored"])
        encode, decode = (plain / figures[key] / 1000 if figures[key] else None for key in ("encode_s", "decode_s"))
        rows.append(Row(str(path), name, plain, stored, 8 * stored / plain, encode, decode, figures["peak_mb"]))
        written.append({**asdict(rows[-1]), "chunks": len(chosen), "passes": figures["passes"]})
        print(line(rows[-1], width), flush=True)
    best = smallest(str(path), chosen, sizes)
    if best is not None:
        rows.append(best)
        written.append({**asdict(best), "chunks": len(chosen), "passes": 0})
        print(line(best, width), flush=True)
    if not chosen:
        print(f"  - {path}: nothing to measure", flush=True)
    return rows, written, failed


def main() -> int:
    """Run and print; 1 if a codec failed or gave back other bytes."""
    args = arguments()
    if args.latency:
        return latency.main(args)
    if args.stream:
        return stream.main(args)
    width = min(48, max(len(str(path)) for path in args.paths))
    heads = ("plain_bytes", "stored_bytes", "bits_per_byte", "encode_kbps", "decode_kbps", "peak_mb")
    print(f"{'path':<{width}}  {'codec':<16}" + "".join(f"{head:>16}" for head in heads), flush=True)
    failed = False
    written: list[dict[str, Any]] = []
    settings = {"chunk": args.chunk, "first": args.first, "sample": args.sample, "seed": args.seed}
    settings |= {"device": args.device, "threads": args.threads}
    for path in args.paths:
        _, more, wrong = measure(path, args, width)
        failed |= wrong
        written += more
        if args.json:
            args.json.write_text(json.dumps({"settings": settings, "rows": written}, indent=1) + "\n")
    passes = [row["passes"] for row in written if row["passes"]]
    if passes:
        print(f"timings: median of {min(passes)} to {max(passes)} passes")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
