"""One codec on one path's chunks, in a process of its own: it reads a task and writes the measurement, as JSON."""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from bench.codec.coders import Batched, Payload, Simple, named
from bench.codec.sample import Piece
from bench.table import Missing
from nnfs.workers.startup import quiet_threads

CHEAP_S = 1.0  # a pass that takes less is repeated, up to
PASSES = 5  # times
WARM_UP = 300  # bytes that are coded before the clock runs: imports, tables, kernels


def peak_mb() -> float:
    """Return the peak of this process's resident memory in MB. (ru_maxrss would count the parent's before exec.)"""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 / 1e6 for line in status if line.startswith("VmHWM:"))


def processor_s() -> float:
    """Return the seconds of processor time that this process and its ended children have taken."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def one_pass(
    coder: Simple | Batched, pieces: list[Piece], clock: Callable[[], float] = time.perf_counter
) -> tuple[list[int], float, float]:
    """Return stored bytes of each chunk, seconds of encoding and decoding. Raises `AssertionError` on a wrong byte."""
    stored: list[int] = []
    encoding = decoding = 0.0
    for begin in range(0, len(pieces), coder.at_once):
        plains = [piece.read() for piece in pieces[begin : begin + coder.at_once]]
        start = clock()
        payloads: list[Payload] = coder.encode(plains)
        encoding += clock() - start
        stored += [len(plain if payload is None else payload) for plain, payload in zip(plains, payloads, strict=True)]
        kept = [(plain, payload) for plain, payload in zip(plains, payloads, strict=True) if payload is not None]
        start = clock()
        decoded = coder.decode([(payload, len(plain)) for plain, payload in kept])
        decoding += clock() - start
        for (plain, _), back in zip(kept, decoded, strict=True):
            if plain != back:
                raise AssertionError("decoded bytes differ from the encoded ones")
    return stored, encoding, decoding


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Run all passes of one codec, and return its figures. The task may ask for seconds of processor time."""
    clock = processor_s if task.get("processor") else time.perf_counter
    pieces = [Piece(*piece) for piece in task["pieces"]]
    quiet_threads(os.environ, task["threads"])
    try:
        coder = named(task["codec"], task["device"], task["threads"])
    except Missing as why:
        return {"missing": str(why)}
    warm = coder.encode([pieces[0].read()[:WARM_UP]])
    coder.decode([(payload, min(WARM_UP, pieces[0].length)) for payload in warm if payload is not None])
    stored: list[int] = []
    times: list[tuple[float, float]] = []
    while not times or (len(times) < PASSES and sum(times[0]) < CHEAP_S):
        stored, encoding, decoding = one_pass(coder, pieces, clock)
        times.append((encoding, decoding))
    encode_s, decode_s = (statistics.median(column) for column in zip(*times, strict=True))
    return {"stored": stored, "encode_s": encode_s, "decode_s": decode_s, "passes": len(times), "peak_mb": peak_mb()}


if __name__ == "__main__":
    json.dump(measure(json.load(sys.stdin)), sys.stdout)
