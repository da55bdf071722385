"""The table about cold data in a mount: recompression of a tree and reading it back, beside the codec alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

from bench import demo
from bench.codec.sample import files, pieces
from bench.coding import coded, coding
from bench.table import Case, Column, Line, Setting, Table, Task
from bench.targets import NNFS, Nnfs, command

TREE = ("enwik", "lang", "mail-md", "small")  # text: the network codes all of it
PATIENT = 1e6  # seconds: the measurement has its own limit
COMPACTIONS = {  # by the codec that is to win: the mount's options, and those of `nnfs compact`
    "neural": ("compact=off,policy=cold", ["--all"]),
    "cm": ("compact=off,policy=cold,neural=off", ["--all"]),
    "ppm": ("compact=off,policy=cold", ["--all", "--quick"]),
}
LIMITS = {"neural": 4_000_000, "cm": 8_000_000, "ppm": 8_000_000}  # bytes of each set
LEAST = {"neural": 2 << 10, "cm": 2 << 10, "ppm": 8 << 10}  # bytes of a file: the codec would save too little of less
COPIES = {"neural": 1, "cm": 2, "ppm": 8}  # of the tree, each with other chunks: for half a minute of work
QUICK = 8  # --quick has one part in so many
WARM = 16 << 10  # bytes that are compacted, and read back, before the clock runs: then workers are at work
MORE = "--more"  # of a copy's name


def cold_cases(setting: Setting) -> list[Case]:
    common = {"corpus": str(setting.corpus.path(".")), "threads": setting.threads}
    return [
        Case((codec,), {"codec": codec, "limit": LIMITS[codec] // (QUICK if setting.is_quick else 1), **common})
        for codec in COMPACTIONS
    ]


def planted(source: Path, limit: int, least: int, copies: int, tree: Path) -> None:
    """Copy the text of larger files to a tree, some times over.

    In each further copy all files are turned by some bytes, so that no two chunks are equal.
    """
    for number in range(copies):
        top = tree / f"copy{number}"
        sets = {name: demo.chosen(source / name, limit, 1) for name in TREE}
        large = {name: [file for file in found if Path(file).stat().st_size >= least] for name, found in sets.items()}
        demo.copy(source, large, top, limit)
        for name in files(top) if number else ():
            plain = Path(name).read_bytes()
            turn = min(len(plain) // 2, 977 * number)
            Path(name).write_bytes(plain[turn:] + plain[:turn])


def compacted(root: Path, words: list[str]) -> float:
    """Compact a folder of a mount, and return the seconds that the task took."""
    begin = time.perf_counter()
    said = command([*NNFS, "compact", str(root), "--wait", "--json", *words], PATIENT)
    try:
        return float(json.loads(said.strip().splitlines()[-1])["seconds"])  # without the command's own start
    except (ValueError, KeyError, IndexError):  # an older commit's
        return time.perf_counter() - begin


def cold(task: Task) -> Iterator[Line]:
    """Measure recompression of a mount and cold reading with tar, beside the codec alone on the same chunks."""
    work, source = Path(task["work"]), Path(task["corpus"])
    tree = work / "tree"
    planted(source, task["limit"], LEAST[task["codec"]], COPIES[task["codec"]], tree)
    told = coded(coding(task["codec"], pieces(tree, 128 << 10, None), task["threads"]))
    options, words = COMPACTIONS[task["codec"]]
    target = Nnfs(work, options)
    with target.fresh():
        warm, copied = target.root / "warm", target.root / "tree"
        warm.mkdir()
        (warm / "text").write_bytes(Path(files(tree)[0]).read_bytes()[-WARM:])
        command(["cp", "-a", str(tree), str(copied)])
        target.sync()
        compacted(warm, words)
        compact_s = compacted(copied, words)
        target.cool()
        (warm / "text").read_bytes()
        begin = time.perf_counter()
        command(["sh", "-c", 'tar -cf - -C "$0" . | wc -c', str(copied)], PATIENT)  # not to /dev/null: tar knows it
        tar_s = time.perf_counter() - begin
    for label, seconds, alone_s in (
        ("recompression beside encoding and decoding", compact_s, told["encode_s"] + told["decode_s"]),
        ("tar of the cold tree beside decoding", tar_s, told["decode_s"]),
    ):
        mount, alone = (told["plain"] / each / 1000 for each in (seconds, alone_s))
        yield Line((label,), {"mount": mount, "codec": alone, "share": 100 * mount / alone})


TABLE = Table(
    "cold",
    "The cold tier through a mount",
    "A tree of text: up to 4 MB each of four sets for the network, 8 MB twice for cm, eight times for ppm (--quick: an "
    "eighth of that, which fills no batch of the network: its shares tell little then). Without files that a codec "
    "leaves alone for their size: below 2 KiB, for ppm 8. Workers are at work before the clock runs. The codec alone: "
    "the same chunks in one process, as many threads as cores, all at once.",
    ("codec", ""),
    (
        Column("mount", "through the mount, KB/s"),
        Column("codec", "codec alone, KB/s"),
        Column("share", "share, %", 0),
    ),
    cold_cases,
    cold,
)
