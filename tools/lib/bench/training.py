"""Tables about training: its speed, and the loss curves of its engines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.codec.sample import unpacked
from bench.corpus import NoData
from bench.table import Case, Column, Line, Missing, Setting, Table, Task

ARCHIVE = "train.tar.xz"
MOST = 2 << 20  # bytes of each file
EVERY = 25  # steps from one line of a run's log to the next
STEP = 16 * 1024  # bytes of a step as it is by default, of all processes together
CURVE = 2000  # steps
MARKS = 4  # of a curve


def corpus(setting: Setting) -> str:
    """Write a corpus of the files that may be trained on, and return its path. Raises `NoData`."""
    from nnfs.train.corpus import ENTRY

    out = setting.work / "training-corpus"
    if out.with_suffix(".json").exists():
        return str(out)
    if not (setting.data / ARCHIVE).is_file():
        raise NoData(f"{setting.data} has no {ARCHIVE}")
    folder = unpacked(setting.data / ARCHIVE, setting.work / "train")
    entries, offset = [], 0
    with out.open("wb") as file:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            plain = path.read_bytes()[:MOST]
            entries.append((offset, len(plain), 0, 0, False))
            offset += file.write(plain)
    np.save(f"{out}.npy", np.array([entry for entry in entries if entry[1]], ENTRY))
    about = {"kinds": ["all"], "sources": ["corpus"], "weights": {"all": 1.0}, "licences": {"corpus": []}}
    out.with_suffix(".json").write_text(json.dumps(about))
    return str(out)


def run(task: Task) -> list[dict[str, float]]:
    """Train as the task's options say; return the lines of the first process's log. Raises `Missing`."""
    out = Path(task["out"])
    argv = [sys.executable, "-m", "nnfs.train", "network", task["corpus"], "--out", str(out), *task["options"]]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "training failed")
    return [json.loads(line) for line in (out / "log-0.jsonl").read_text().splitlines()]


def speed_cases(setting: Setting) -> list[Case]:
    steps = (3 if setting.is_quick else 9) * EVERY
    options = ["--steps", str(steps), "--processes", str(setting.threads)]
    task = {"corpus": corpus(setting), "options": options, "threads": setting.threads}
    return [Case((), task)]


def speed(task: Task) -> Iterator[Line]:
    """Measure the steps behind the first ones, which wait for a compiler and for memory."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        lines = run({**task, "out": folder})
    seconds, steps = lines[-1]["time"] - lines[0]["time"], lines[-1]["step"] - lines[0]["step"]
    rate = steps * STEP * task["threads"] / 2 / max(seconds, 1) / 1000
    yield Line((f"{task['threads']} processes",), {"all": rate, "core": rate / task["threads"]})


def curve_cases(setting: Setting) -> list[Case]:
    from nnfs.train.passes import ENGINES

    steps = CURVE // 10 if setting.is_quick else CURVE
    options = ["--steps", str(steps), "--batch", "1", "--passes", "1", "--processes", str(setting.threads)]
    path = corpus(setting)
    return [
        Case((engine,), {"corpus": path, "options": [*options, "--engine", engine]}, compared=False)
        for engine in ENGINES
    ]


def curve(task: Task) -> Iterator[Line]:
    """Train with one engine, and yield the mean bits per byte of each quarter of the steps."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        bits = [line["bits"] for line in run({**task, "out": folder})]
    parts = np.array_split(np.array(bits), MARKS)
    yield Line((), {f"part_{number}": float(part.mean()) for number, part in enumerate(parts, 1)})


TABLES = (
    Table(
        "training",
        "Speed of training",
        "Steps of the default network from random weights, a process for each core; 1 KB is 1,000 bytes.",
        ("",),
        (Column("all", "all cores, KB/s"), Column("core", "a core, KB/s")),
        speed_cases,
        speed,
    ),
    Table(
        "curve",
        "Loss curves of the training engines",
        f"{CURVE:,} steps of 1,024 bytes a process from the same random weights, on the same bytes: mean bits per byte "
        "of each quarter. `torch` computes what the trainer of commit 246b969 did.",
        ("engine",),
        tuple(Column(f"part_{n}", f"quarter {n}", 3, less_is_better=True) for n in range(1, MARKS + 1)),
        curve_cases,
        curve,
    ),
)
