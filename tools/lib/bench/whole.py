"""Tables about the whole program: mounts, stores, names, tests."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench import coldtier, fs
from bench.coding import SETS
from bench.coldtier import COMPACTIONS, PATIENT, TREE
from bench.table import Case, Column, Line, Setting, Table, Task
from bench.targets import NNFS, Failed, Nnfs, Null, Target, command

STORED = ("enwik", "lang", "mail-md", "small", "logs", "data")


def fs_cases(setting: Setting) -> list[Case]:
    return [Case((), {"row": row.name, "quick": setting.is_quick}, key=row.name) for row in fs.ROWS]


def filesystem(task: Task) -> Iterator[Line]:
    """Measure a row of bench_fs on nnfs, and in this commit also on the filesystems that it is compared with."""
    base = Path(task["work"])
    row = next(row for row in fs.ROWS if row.name == task["row"])
    beside = [] if task["is_other"] else [Target(base), Null(base)]
    taken = fs.run(row, [*beside, Nnfs(base)], task["quick"])
    for problem in (values for each in taken.values() for values in each if isinstance(values, str)):
        raise Failed(problem)
    for figure in row.figures:
        values = {name: fs.median(each, figure.key) for name, each in taken.items()}
        title = figure.title.replace("  ", "... ", 1)  # indented: a part of the figure above
        yield Line((f"{title}, {figure.unit}",), values, figure.less_is_better)


def store_cases(setting: Setting) -> list[Case]:
    limit = 100_000 if setting.is_quick else 1_000_000
    return [Case((), {"corpus": str(setting.corpus.path(".")), "limit": limit}, compared=False)]


def store(task: Task) -> Iterator[Line]:
    """Measure a whole store, recompressed and read back, with the network and without it."""
    from bench import demo

    source, work, limit = Path(task["corpus"]), Path(task["work"]), task["limit"]
    sets = {name: demo.chosen(source / name, limit, 1) for name in STORED}
    result = demo.run(source, sets, limit, "compact=off", work)
    without = demo.run(source, sets, limit, "compact=off,neural=off", work)
    if not (result["equal"] and without["equal"]):
        raise Failed("files differ when they are read back")
    labels = {name: label for label, name in SETS.items()}
    for name, values in demo.figures(result, demo.classical(sets, limit)):
        yield Line((labels[name],), values)
    for label, each in (("the store, all metadata, no models", result), ("the same, neural=off", without)):
        hot, small = (demo.beside_models(each[tier]) / (1 << 20) for tier in ("hot", "cold"))
        plain = each["cold"]["logical_bytes"] / (1 << 20)
        yield Line((label,), {"plain": plain, "hot": hot, "cold": small, "bits": 8 * small / plain})


def model_cases(setting: Setting) -> list[Case]:
    first = next(path for path in sorted(setting.corpus.path(TREE[0]).rglob("*")) if path.is_file())
    return [Case((), {"text": str(first)}, compared=False)]


def models(task: Task) -> Iterator[Line]:
    """Measure the bytes that `nnfs df` counts for the model of a store whose network has coded a chunk of text."""
    target = Nnfs(Path(task["work"]), COMPACTIONS["neural"][0])
    with target.fresh():
        (target.root / "text").write_bytes(Path(task["text"]).read_bytes()[: 16 << 10])
        target.sync()
        command([*NNFS, "compact", str(target.root), "--wait", "--all"], PATIENT)
        both = target.json("df")["model_bytes"]
    if not both:
        raise Failed("the store has no model")
    yield Line(("the shipped model",), {"both": both / 1e6})


def names(_task: Task) -> Iterator[Line]:
    """Measure the CPU time of look-ups within the daemon."""
    from bench.names import measure

    for name, value in measure().items():
        yield Line((name,), {"us": value})


def coverage_cases(setting: Setting) -> list[Case]:
    return [] if setting.is_quick else [Case((), {}, compared=False)]


def coverage(_task: Task) -> Iterator[Line]:
    """Run the tests, traced."""
    tool = Path(__file__).resolve().parents[2] / "coverage"
    said = subprocess.run([tool], stdout=subprocess.PIPE, text=True, check=True).stdout
    for room, statements, share in re.findall(r"^\| (\w+) \| ([\d,]+) \| ([\d.]+) % \|$", said, re.MULTILINE):
        yield Line((room,), {"statements": float(statements.replace(",", "")), "share": float(share)})


TABLES = (
    coldtier.TABLE,
    Table(
        "fs",
        "Speed of the filesystem",
        "nullfs is an empty pyfuse3 filesystem in memory: the ceiling of any filesystem in Python. Lower: a plain "
        "directory. Trust factors of two, not percents.",
        ("",),
        tuple(Column(name, name) for name in ("lower", "nullfs", "nnfs")),
        fs_cases,
        filesystem,
    ),
    Table(
        "store",
        "What a store saves",
        "About 1 MB of each set (--quick: 100 KB), in MiB; zstd -19 and xz have the same files in chunks of 128 KiB. "
        "Two copies of the model come on top.",
        ("data",),
        (
            *(Column(key, title, 2) for key, title in (("plain", "plain"), ("hot", "zstd -3 (hot)"))),
            *(Column(key, title, 2) for key, title in (("zstd-19", "zstd -19"), ("xz", "xz"), ("cold", "nnfs, cold"))),
            Column("bits", "bits/byte", 3),
            Column("neural", "chunks neural, %", 0),
        ),
        store_cases,
        store,
    ),
    Table(
        "models",
        "The model in a store",
        "A store has two copies of each model that its blocks need, however much is stored.",
        ("model",),
        (Column("both", "two copies, MB", 1, less_is_better=True),),
        model_cases,
        models,
    ),
    Table(
        "names",
        "Cost of names",
        "Microseconds of CPU within the daemon's own layers, without FUSE: one directory of 10,000 files.",
        ("",),
        (Column("us", "us", 2, less_is_better=True),),
        lambda _setting: [Case((), {})],
        names,
    ),
    Table(
        "coverage",
        "What the tests run",
        "The share of the statements that tests run (tools/coverage), other processes included; not with --quick.",
        ("room",),
        (Column("statements", "statements", 0), Column("share", "run by tests, %", 1)),
        coverage_cases,
        coverage,
    ),
)
