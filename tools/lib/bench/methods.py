"""The table of methods: what came before nnfs and what it is made of, on one text, beside what was published.

The text is the first 100,000 bytes of enwik8: the article that nnfs descends from measured its predictors on it.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from bench import programs
from bench.codec.child import processor_s
from bench.codec.sample import Piece
from bench.coding import coded, coding
from bench.table import Case, Column, Line, Missing, Setting, Table, Task
from nnfs.constants import PRODUCT_VARIABLE
from nnfs.workers.catalogue import Catalogue

SOURCE, SIZE, QUICK_SIZE = "enwik/enwik8_0-2000000", 100_000, 20_000
COLUMNS = 8  # of one step of the network
RECURRENT = "GRU 34,381 bytes, 44 s; LSTM 34,809 bytes, 59 s"


@dataclass(frozen=True)
class Method:
    """One row: how it is measured, with which argument, and the figure that was published for its like."""

    name: str
    how: str
    argument: Any = None
    published: str = ""


METHODS = (
    Method("gzip -9n", "program", ["gzip", "-9n"]),
    Method("tar, then gzip -9n", "tar", ["gzip", "-9n"]),
    *(Method(name, "codec", name) for name in ("zstd-19", "xz", "bzip2", "brotli", "ppmd", "zpaq")),
    *(Method(f"nnfs {name}", "codec", name) for name in ("ppm", "cm-light", "cm")),
    Method("nnfs network alone", "network", None, RECURRENT),
    Method("nnfs neural: network and mixer", "codec", "neural"),
    Method("nnfs neural in 1 lane", "lanes", 1),
    Method("nnfs neural in 32 lanes", "lanes", 32, "any order, 20 steps: +12 %"),
    Method("nnfs neural, network in JAX", "jax"),
)


def sized(stored: float, plain: int, encode_s: float, decode_s: float | None) -> Iterator[Line]:
    """Yield the line of a method."""
    total = None if decode_s is None else encode_s + decode_s
    values = {"stored": stored, "bits": 8 * stored / plain, "encode": encode_s, "decode": decode_s, "both": total}
    yield Line((), values)


def by_program(task: Task) -> Iterator[Line]:
    """Measure a program that takes bytes from its input; with `tar`, an archive of them."""
    plain = Piece(*task["pieces"][0]).read()
    given = plain
    if task["how"] == "tar":
        file = Path(task["work"], "text")
        file.write_bytes(plain)
        given = programs.run(["tar", "-c", "--owner=0", "--group=0", "-C", task["work"], "text"])
    made, encode_s = programs.timed(lambda: programs.run([*task["argument"], "-c"], given))
    back, decode_s = programs.timed(lambda: programs.run([task["argument"][0], "-dc"], made))
    if back != given:
        raise AssertionError("the program gave back other bytes")
    yield from sized(len(made), len(plain), encode_s, decode_s)


def by_codec(task: Task) -> Iterator[Line]:
    """Measure a codec by its name."""
    told = coded({**task, "codec": task["argument"] or "neural", "processor": True})
    yield from sized(sum(told["stored"]), told["plain"], told["encode_s"], told["decode_s"])


def in_lanes(task: Task) -> Iterator[Line]:
    """Measure the neural codec in another number of lanes than it takes: a decoder finds them in the payload."""
    with mock.patch("nnfs.codec.neural.lanes_for", lambda size: min(size, task["argument"])):
        yield from by_codec({**task, "argument": "neural"})


def in_jax(task: Task) -> Iterator[Line]:
    """Measure the neural codec with its network in JAX, the compilation included."""
    if importlib.util.find_spec("jax") is None:
        raise Missing("JAX is not installed (pip install 'nnfs[jax]')")
    with mock.patch.dict(os.environ, {PRODUCT_VARIABLE: "jax"}):
        yield from by_codec(task)


def network_alone(task: Task) -> Iterator[Line]:
    """Compute what an ideal coder would make of the network's frequencies, without the mixer."""
    from nnfs.model import features
    from nnfs.model.lanes import lanes_for

    plain = np.frombuffer(Piece(*task["pieces"][0]).read(), np.uint8)
    catalogue = Catalogue("cpu", 1)
    model = catalogue.find(*catalogue.resolve("neural")).model  # type: ignore[attr-defined]
    lanes = lanes_for(plain.size)
    past = features.Batch(plain[None].copy(), [plain.size], [lanes], model.weights.architecture.ngram_bits)
    length = int(past.lengths[0])
    targets = np.zeros(lanes * length, np.uint8)
    targets[: plain.size] = plain
    there = (np.arange(lanes * length) < plain.size).reshape(lanes, length).T
    grid, bits = targets.reshape(lanes, length).T, 0.0
    engine, room = model.engine(lanes, COLUMNS), features.room(COLUMNS, lanes)
    begin = processor_s()
    for t in range(0, length, COLUMNS):
        count = min(COLUMNS, length - t)
        past.follow(t, room, count)
        found = engine.forward(room.columns(0, count)).reshape(count, lanes, 256).astype(np.float64)
        right = np.take_along_axis(found, grid[t : t + count, :, None].astype(np.int64), 2)[..., 0]
        bits += float(np.log2(found.sum(2) / right)[there[t : t + count]].sum())
    yield from sized(math.ceil(bits / 8), plain.size, processor_s() - begin, None)


HOW: dict[str, Callable[[Task], Iterator[Line]]] = {
    "program": by_program, "tar": by_program, "codec": by_codec, "lanes": in_lanes, "jax": in_jax,
    "network": network_alone,
}  # fmt: skip


def cases(setting: Setting) -> list[Case]:
    """Return a case for each method. Raises `NoData`."""
    size = QUICK_SIZE if setting.is_quick else SIZE
    cut = [Piece(str(setting.corpus.path(SOURCE)), 0, size)]
    return [
        Case(
            (one.name, one.published), {**coding("", cut, 1), "how": one.how, "argument": one.argument}, compared=False
        )
        for one in METHODS
    ]


TABLE = Table(
    "methods",
    "Methods on one text",
    f"The first {SIZE:,} bytes of enwik8 (--quick: {QUICK_SIZE:,}) as one chunk, one thread, every row decoded and "
    "compared, in seconds of processor time; no row counts a model. The network alone: what an ideal coder would make "
    "of its frequencies. JAX: its compilation included.",
    ("method", "published"),
    (
        Column("stored", "bytes", 0, less_is_better=True),
        Column("bits", "bits/byte", 3, less_is_better=True),
        Column("encode", "encode, CPU s", 2, less_is_better=True),
        Column("decode", "decode, CPU s", 2, less_is_better=True),
        Column("both", "both, CPU s", 2, less_is_better=True),
    ),
    cases,
    lambda task: HOW[task["how"]](task),
)
