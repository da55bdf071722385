"""Rows about space: bytes for each small file, memory of the daemon, and space given back by deleting."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.data import fio
from bench.meta import create, each
from bench.rows import Figure, Row, Values
from bench.targets import Failed, Nnfs, Target

WORDS = Path("/usr/share/common-licenses/GPL-3")


def small_files(where: Path, count: int) -> None:
    """Make files of 1 to 4 KiB: every second one text, cut from a licence, the others random. No two are equal."""
    drawn = random.Random(1)
    text = WORDS.read_bytes() if WORDS.exists() else bytes(drawn.choices(range(97, 123), k=40_000))
    where.mkdir()
    for number in range(count):
        size = drawn.randint(1024, 4096)
        begin = drawn.randrange(len(text) - size)
        plain = b"%06d" % number + text[begin : begin + size - 6] if number % 2 else drawn.randbytes(size)
        (where / f"f{number}").write_bytes(plain)


def settled(target: Nnfs, seconds: float = 10) -> int:
    """Return physical bytes once they have stopped falling (three equal looks in a row), or after the given time."""
    end = time.monotonic() + seconds
    seen = [target.physical()]
    while time.monotonic() < end:
        time.sleep(0.5)
        seen.append(target.physical())
        if len(seen) > 10 and len(set(seen[-6:])) == 1:
            break
    return min(seen[-3:])


def overhead(target: Target, quick: bool) -> Values:
    """Return (physical - payload) / files in bytes. Raises `Failed` if df's physical bytes differ from st_blocks."""
    assert isinstance(target, Nnfs)
    count = 2_000 if quick else 10_000
    small_files(target.root / "small", count)
    target.sync()
    settled(target)
    said = target.json("df")
    if abs(said["physical_bytes"] - target.physical()) > 1 << 20:
        raise Failed(f"df says {said['physical_bytes']} physical bytes, st_blocks {target.physical()}")
    return {"overhead": (said["physical_bytes"] - said["stored_bytes"]) / count}


@contextmanager
def sampled(target: Nnfs) -> Iterator[list[int]]:
    """Sample RssAnon of the daemon 50 times a second while the body runs."""
    seen: list[int] = [target.anonymous()]
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            try:
                seen.append(target.anonymous())
            except (OSError, Failed):
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def memory(target: Target, quick: bool) -> Values:
    """Return the peak of RssAnon in MiB while 4 GiB are written and 50,000 files created."""
    assert isinstance(target, Nnfs)
    with sampled(target) as seen:
        fio(target, "write", "--rw=write", "--bs=1M", "--end_fsync=1", "--size=1G" if quick else "--size=4G")
        after_data = max(seen)
        (target.root / "many").mkdir()
        each(5_000 if quick else 50_000, create, target.root / "many")
        target.sync()
    peaks = {"rss_peak": max(seen), "rss_data": after_data, "rss_idle": seen[0], "rss_end": target.anonymous()}
    return {key: value / 2**20 for key, value in peaks.items()}


def given_back(target: Target, quick: bool) -> Values:
    """Return the percentage of space that is back within 10 s of deleting a file, or 4,000 small ones of 8,000."""
    assert isinstance(target, Nnfs)
    target.sync()
    empty = settled(target)
    fio(target, "write", "--rw=write", "--bs=1M", "--end_fsync=1", "--size=64M" if quick else "--size=256M")
    target.sync()
    full = target.physical()
    os.unlink(target.root / "data")
    target.sync()
    values = {"back_big": 100 * (full - settled(target)) / (full - empty)}
    count = 2_000 if quick else 8_000
    empty = target.physical()
    small_files(target.root / "small", count)
    target.sync()
    full = target.physical()
    for number in range(0, count, 2):
        os.unlink(target.root / "small" / f"f{number}")  # the random ones: 2/3 or more of the bytes
    target.sync()
    values["back_half"] = 100 * (full - settled(target)) / (full - empty)
    shutil.rmtree(target.root / "small")
    target.sync()
    values["back_small"] = 100 * (full - settled(target)) / (full - empty)
    return values


ROWS = (
    Row(
        "overhead",
        overhead,
        (Figure("overhead", "overhead of a file of 1-4 KiB", "bytes", 600, less_is_better=True),),
        targets=("nnfs",),
    ),
    Row(
        "memory",
        memory,
        (
            Figure("rss_peak", "RssAnon, 4 GiB + 50,000 files: peak", "MiB", 300e6 / 2**20, less_is_better=True),
            Figure("rss_data", "  before the files", "MiB", less_is_better=True),
            Figure("rss_idle", "  just mounted", "MiB", less_is_better=True),
            Figure("rss_end", "  afterwards", "MiB", less_is_better=True),
        ),
        targets=("nnfs",),
        limit=900,
    ),
    Row(
        "space",
        given_back,
        (
            Figure("back_big", "space back <= 10 s after deleting a file", "%", 90),
            Figure("back_half", "  every second of 8,000 small files", "%"),
            Figure("back_small", "  the other ones, too", "%", 90),
        ),
        targets=("nnfs",),
    ),
)
