"""Latency: one chunk at a time through a worker process, as a read waits for it."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from bench.codec.coders import CLASSICAL
from bench.codec.sample import Coded, pieces, sample
from nnfs.codec.base import RAW
from nnfs.errors import CodecError, WorkerError
from nnfs.workers.catalogue import Catalogue
from nnfs.workers.pool import Pool, WorkerSpec

T = TypeVar("T")
SMALL = 300  # bytes
PASSES = 5


@dataclass(frozen=True)
class Row(Coded):
    """The seconds from a request to its answer."""

    encode_s: float
    decode_s: float
    decode_with_start_s: float  # the worker's start, its imports and its model included
    peak_mb: float


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds of a call (the median of some passes; of one if that takes long), and its result."""
    times: list[float] = []
    while not times or (len(times) < PASSES and sum(times) < 2):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def measure(path: str, name: str, plain: bytes, device: str, threads: int) -> Row | None:
    """Measure one codec on one chunk. Return None when the codec does not make it smaller."""
    catalogue = Catalogue()
    codec, model = catalogue.resolve(name)
    spec = WorkerSpec("bench", device, threads)
    with Pool([spec], catalogue.file) as pool:
        pool.encode(codec, plain[:SMALL], model).result()  # warm
        encode_s, payload = timed(lambda: pool.encode(codec, plain, model).result())
        if payload is None:
            return None
        decode_s, decoded = timed(lambda: pool.decode(codec, payload, len(plain), model).result())
        memory = pool.ask("bench").result().memory
    with Pool([spec], catalogue.file) as pool:
        start = time.perf_counter()
        again = pool.decode(codec, payload, len(plain), model).result()
        with_start = time.perf_counter() - start
    if decoded != plain or again != plain:
        raise AssertionError("decoded bytes differ from the encoded ones")
    return Row(path, name, len(plain), len(payload), encode_s, decode_s, with_start, memory / 1e6)


def overhead(args: argparse.Namespace) -> None:
    """Print the cost of a work item without work: one of the raw codec."""
    with Pool([WorkerSpec("bench", args.device, args.threads)]) as pool:
        pool.ask("bench").result()
        for plain in (bytes(SMALL), bytes(args.chunk)):
            times = []
            for _ in range(200):
                start = time.perf_counter()
                pool.decode(RAW, plain, len(plain)).result()
                times.append(time.perf_counter() - start)
            start = time.perf_counter()
            for future in [pool.decode(RAW, plain, len(plain)) for _ in range(200)]:
                future.result()
            each = (time.perf_counter() - start) / 200
            alone = statistics.median(times)
            print(f"overhead of {len(plain):,} bytes: {alone * 1e6:,.0f} us alone, {each * 1e6:,.0f} in a row")


def main(args: argparse.Namespace) -> int:
    """Run and print; 1 if a codec failed."""
    width = min(48, max(len(str(path)) for path in args.paths))
    heads = ("plain_bytes", "stored_bytes", "encode_s", "decode_s", "with start_s", "peak_mb")
    print(f"{'path':<{width}}  {'codec':<16}" + "".join(f"{head:>14}" for head in heads), flush=True)
    rows: list[Row] = []
    failed = False
    for path in args.paths:
        cut = pieces(path, args.chunk, args.first)
        whole = [piece for piece in cut if piece.length == max(other.length for other in cut)]
        for name in (name for name in args.codecs if name not in CLASSICAL):
            for piece in sample(whole, 1, args.seed):
                for plain in (piece.read(), piece.read()[:SMALL]):
                    try:
                        row = measure(str(path), name, plain, args.device, args.threads)
                    except (CodecError, WorkerError, KeyError, OSError) as why:
                        print(f"  ! {name} on {path}: {why}", flush=True)
                        failed = True
                        break
                    if row is None:
                        print(f"  - {name} on {path}: {len(plain)} bytes do not become smaller", flush=True)
                        continue
                    rows.append(row)
                    cells: tuple[str, ...] = (f"{row.plain_bytes:,}", f"{row.stored_bytes:,}", f"{row.encode_s:.3f}")
                    cells += (f"{row.decode_s:.3f}", f"{row.decode_with_start_s:.3f}", f"{row.peak_mb:.1f}")
                    shown = row.path[-width:]
                    print(f"{shown:<{width}}  {name[-16:]:<16}" + "".join(f"{cell:>14}" for cell in cells), flush=True)
    overhead(args)
    if args.json:
        write(args.json, rows)
    return int(failed)


def write(out: Path, rows: list[Row]) -> None:
    """Write the rows as JSON."""
    out.write_text(json.dumps({"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
