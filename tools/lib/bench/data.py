"""Rows about file content, measured with fio (psync: one request at a time from each job)."""

from __future__ import annotations

import json

from bench.rows import Figure, Row, Values
from bench.targets import Failed, Target, command

RANDOM = ["--randrepeat=1"]
# fio's usual buffers shrink to 0.94: it stamps 16 bytes and zeros into each 512.
NOISE = ["--refill_buffers", "--scramble_buffers=0"]
HALF = ["--buffer_compress_percentage=50", "--refill_buffers"]


def fio(target: Target, side: str, *args: str) -> dict[str, float]:
    """Run fio in the target's root. Return the summary of one side ("read" or "write") of all its jobs together."""
    argv = ["fio", "--name=f", f"--directory={target.root}", "--filename=data", "--ioengine=psync", "--thread"]
    argv += ["--group_reporting", "--output-format=json", "--fallocate=none", *RANDOM, *args]
    said = command(argv, timeout=580)
    job = json.loads(said[said.index("{") :])["jobs"][0]
    if job["error"]:
        raise Failed(f"fio: error {job['error']}")
    summary: dict[str, float] = job[side]
    return summary


def mib(target: Target, side: str, *args: str) -> float:
    """Return the throughput of a run in MiB/s, the final fsync's time included."""
    run = fio(target, side, *args)
    return run["io_bytes"] / 2**20 / (run["runtime"] / 1000)


def size(quick: bool) -> str:
    """Return the size of the file of the sequential rows, for fio."""
    return "--size=256M" if quick else "--size=1G"


def write(target: Target, quick: bool) -> Values:
    """Sequential writes with an fsync at the end: random bytes, then a file that halves when compressed."""
    common = ("--rw=write", "--bs=1M", "--end_fsync=1", "--unlink=1", size(quick))
    fio(target, "write", *common)  # unmeasured: first touch of the machine's memory costs more than the writing
    return {"write": mib(target, "write", *common, *NOISE), "write50": mib(target, "write", *common, *HALF)}


def read(target: Target, quick: bool) -> Values:
    """Sequential reads of a file that was written before: cold, then again, warm."""
    fio(target, "write", "--rw=write", "--bs=1M", "--end_fsync=1", size(quick), *HALF)
    target.sync()
    target.cool()
    common = ("--rw=read", "--bs=1M", "--invalidate=0", size(quick))
    cold = mib(target, "read", *common)
    # The best of five: whoever drops the machine's caches meanwhile (tests do) makes a pass cold.
    return {"read_cold": cold, "read_warm": max(mib(target, "read", *common) for _ in range(5))}


def random_read(target: Target, quick: bool) -> Values:
    """Random 4 KiB reads, every block once, from a cold file: one reader, then four, each in its own quarter."""
    total = 64 if quick else 256
    whole = ("--bs=4k", f"--size={total}M", "--invalidate=0", "--runtime=8")
    fio(target, "write", "--rw=write", "--bs=1M", "--end_fsync=1", f"--size={total}M", *HALF)
    target.sync()
    values = {}
    part = ("--bs=4k", f"--size={total // 4}M", f"--offset_increment={total // 4}M", "--numjobs=4", "--runtime=8")
    for key, args in (("rand_1", whole), ("rand_4", (*part, "--invalidate=0"))):
        target.cool()
        values[key] = fio(target, "read", "--rw=randread", *args)["iops"]
    return values


def random_write(target: Target, quick: bool) -> Values:
    """Random 4 KiB writes into a 64 MiB file, an fsync after each."""
    fio(target, "write", "--rw=write", "--bs=1M", "--end_fsync=1", "--size=64M")
    seconds = 4 if quick else 10
    args = ("--rw=randwrite", "--bs=4k", "--size=64M", "--fsync=1", "--time_based", f"--runtime={seconds}")
    return {"fsync": fio(target, "write", *args)["iops"]}


ROWS = (
    Row(
        "write",
        write,
        (
            Figure("write", "seq write 1 MiB, end fsync, random bytes", "MiB/s", 200, 400),
            Figure("write50", "  the same, 50 % compressible", "MiB/s", 200, 400),
        ),
    ),
    Row(
        "read",
        read,
        (
            Figure("read_cold", "seq read cold, 50 % compressible", "MiB/s", 200, 400),
            Figure("read_warm", "seq read warm", "MiB/s", 2000, 4000),
        ),
    ),
    Row(
        "random_read",
        random_read,
        (
            Figure("rand_1", "random read 4 KiB cold, 1 reader", "IOPS", 3000, 8000),
            Figure("rand_4", "  the same, 4 readers", "IOPS", 3000, 8000),
        ),
    ),
    Row(
        "random_write",
        random_write,
        (Figure("fsync", "random write 4 KiB, fsync each", "IOPS", 100, 200),),
    ),
)
