"""Tables about codecs: speed, single chunks, starts, dictionaries, sizes, fitting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

from bench.codec.sample import Piece, pieces, sample
from bench.corpus import CHUNK, CONTENT
from bench.table import Case, Column, Line, Missing, Setting, Table, Task

THREADS = (1, 2)
BY_LEVEL = (("neural", "text"), ("cm", "text"))  # what is measured at all levels, not only at the best
CHUNKS = 16  # for each thread: fewer leave lanes of a batch empty
QUICK_CHUNK = 32 << 10  # bytes of the chunks of --quick, and of slow levels
SLOW = ("portable", "none")  # levels that are measured only where they are named
SMALL = 300  # bytes
TERABYTE, CORES = 10**12, (2, 16, 64)  # bytes, cores to compute with
CODECS = ("neural", "cm", "cm-light", "ppm")
OTHERS = ("zstd-3", "zstd-19", "xz", "brotli", "ppmd")  # codecs that nnfs does not use
SETS = {  # of the corpus, as the README names them
    "English text (enwik)": "enwik",
    "Russian, German, Chinese": "lang",
    "mail, Markdown": "mail-md",
    "small files": "small",
    "logs": "logs",
    "JSON, CSV, SQL": "data",
    "Silesia: dickens, mr, ooffice, osdb, xml": "silesia",
    "ELF, class, wasm": "bin",
    "photographs": "img",
    "sound": "audio",
    "compressed already": "comp",
}


def coding(codec: str, cut: list[Piece], threads: int) -> Task:
    """Return the task of a codec on some chunks."""
    return {"codec": codec, "pieces": [astuple(piece) for piece in cut], "device": "cpu", "threads": threads}


def coded(task: Task) -> dict[str, Any]:
    """Encode, decode and compare the chunks of a task, in this process. Raises `Missing`."""
    from bench.codec.child import measure

    told = measure(task)
    if "missing" in told:
        raise Missing(told["missing"])
    plain = sum(length for _, _, length in task["pieces"])
    told |= {"plain": plain, "bits": 8 * sum(told["stored"]) / plain}
    return told | {f"{way}_kbps": plain / told[f"{way}_s"] / 1000 for way in ("encode", "decode")}


def speeds(task: Task) -> Iterator[Line]:
    """Measure one codec, its size included."""
    told = coded(task)
    yield Line((), {key: told[key] for key in ("encode_kbps", "decode_kbps", "bits")})


def speed_cases(setting: Setting) -> list[Case]:
    cases = []
    for codec, contents in (("neural", ("text",)), ("cm", tuple(CONTENT)), ("cm-light", ("text",)), ("ppm", ("text",))):
        for content in contents:
            # ppm has one code for all levels; of cm's, one kind of content tells what a level is worth
            every = setting.levels if codec != "ppm" else ()
            for level in (every if (codec, content) in BY_LEVEL else every[:1]) or ("",):
                size = QUICK_CHUNK if setting.is_quick or level in SLOW else CHUNK
                for threads in THREADS:
                    cut = setting.corpus.chunks(content, CHUNKS * threads, size)
                    labels = (codec, content, level or "-", str(threads))
                    cases.append(Case(labels, coding(codec, cut, threads), level))
    return cases


def terabyte_cases(setting: Setting) -> list[Case]:
    size = QUICK_CHUNK if setting.is_quick else CHUNK
    cut = setting.corpus.chunks("text", CHUNKS * setting.threads, size)
    return [Case((codec,), coding(codec, cut, setting.threads)) for codec in reversed(CODECS)]


def terabyte(task: Task) -> Iterator[Line]:
    """Yield the hours in which a codec encodes and proves 1 TB, from the speed of all cores of this machine."""
    told = coded(task)
    core_hours = TERABYTE * task["threads"] / 3.6e6 * (1 / told["encode_kbps"] + 1 / told["decode_kbps"])
    yield Line((), {f"cores_{cores}": core_hours / cores for cores in CORES} | {"bits": told["bits"]})


def chunk_cases(setting: Setting) -> list[Case]:
    (piece,) = setting.corpus.chunks("text", 1)
    cut = [piece, Piece(piece.path, piece.offset, SMALL)]
    return [Case((codec, f"{one.length:,}"), coding(codec, [one], setting.threads)) for codec in CODECS for one in cut]


def chunk(task: Task) -> Iterator[Line]:
    """Measure one chunk through a worker, as a reader waits for it."""
    from bench.codec import latency

    (piece,) = (Piece(*each) for each in task["pieces"])
    row = latency.measure(piece.path, task["codec"], piece.read(), task["device"], task["threads"])
    if row is None:
        raise Missing(f"{piece.length} bytes do not become smaller")
    yield Line((), {"encode": row.encode_s, "decode": row.decode_s, "start": row.decode_with_start_s})


def start(task: Task) -> Iterator[Line]:
    """Measure a worker's start: until it answers, and until it also has its codecs and the model."""
    from nnfs.workers.pool import Pool, WorkerSpec

    for label, is_warm in (("until it answers", False), ("until its codecs and the model are open, too", True)):
        begin = time.perf_counter()
        with Pool([WorkerSpec("bench", "cpu", task["threads"], warm=is_warm)]) as pool:
            pool.ask("bench", timeout=None).result()
            yield Line((label,), {"seconds": time.perf_counter() - begin})


def dictionary(task: Task) -> Iterator[Line]:
    """Measure how long a worker takes to enter the dictionary of a fitted model."""
    from bench.codec.latency import timed
    from nnfs.model.dictionary import Dictionary

    (plain,) = (Piece(*each).read() for each in task["pieces"])
    Dictionary(plain)  # unmeasured: kernels may be compiled
    yield Line((f"a dictionary of {len(plain):,} bytes",), {"seconds": timed(lambda: Dictionary(plain))[0]})


def size_cases(setting: Setting) -> list[Case]:
    cut = setting.corpus.ten(setting.work)
    return [Case((codec,), coding(codec, cut, 1), compared=codec in CODECS) for codec in (*OTHERS, *CODECS[::-1])]


def set_cases(setting: Setting) -> list[Case]:
    cases = []
    for label, name in SETS.items():
        cut = sample(pieces(setting.corpus.path(name), CHUNK, None), 2 if setting.is_quick else 8, 1)
        cases.append(Case((label, str(len(cut))), coding("", cut, setting.threads), compared=False))
    return cases


def one_set(task: Task) -> Iterator[Line]:
    """Measure nnfs's codecs on the same chunks, and the smallest payload of each chunk, which a store would keep."""
    values: dict[str, float | None] = {}
    ours: list[list[int]] = [[length for _, _, length in task["pieces"]]]
    for codec in ("zstd-19", *CODECS):
        try:
            told = coded({**task, "codec": codec})
        except Missing:
            values[codec] = None
            continue
        values[codec] = told["bits"]
        ours += [told["stored"]] if codec in CODECS else []
    plain, stored = sum(ours[0]), sum(map(min, zip(*ours, strict=True)))
    yield Line((), values | {"smallest": 8 * stored / plain})


def fit_cases(setting: Setting) -> list[Case]:
    seconds = 60 if setting.is_quick else 1200
    return [
        Case((label,), {"path": str(setting.corpus.path(name)), "seconds": seconds}, compared=False)
        for label, name in SETS.items()
        if name in ("logs", "data")
    ]


def fitting(task: Task) -> Iterator[Line]:
    """Fit a model to one folder, and measure its gain."""
    from bench.fit import fitted, shipped, summary

    found = summary(fitted(task["path"], shipped(), task["seconds"]))
    sizes = {key: found[key] / 1000 for key in ("plain", "base", "fitted", "delta")}
    yield Line((), {**sizes, "less": found["twice"]})


ENCODE, DECODE = Column("encode_kbps", "encode, KB/s"), Column("decode_kbps", "decode, KB/s")
BITS = Column("bits", "bits/byte", 3, less_is_better=True)
SECONDS = Column("seconds", "s", less_is_better=True)

TABLES = (
    Table(
        "speed",
        "Speed of the cold codecs",
        f"{CHUNKS} chunks of 128 KiB for each thread (--quick: 32 KiB), 1 KB is 1,000 bytes. Level: the kernels that "
        "were forced.",
        ("codec", "content", "level", "threads"),
        (ENCODE, DECODE),
        speed_cases,
        speeds,
    ),
    Table(
        "terabyte",
        "One terabyte",
        "Hours to encode and prove 1 TB of text, computed from what all cores of this machine do together, for so many "
        "cores of its kind.",
        ("codec",),
        (*(Column(f"cores_{cores}", f"{cores} cores, h", less_is_better=True) for cores in CORES), BITS),
        terabyte_cases,
        terabyte,
    ),
    Table(
        "chunk",
        "One chunk through a worker",
        "Seconds from the request to the answer. With start: the worker is started for it.",
        ("codec", "bytes"),
        (
            Column("encode", "encode, s", less_is_better=True),
            Column("decode", "decode, s", less_is_better=True),
            Column("start", "decode with start, s", less_is_better=True),
        ),
        chunk_cases,
        chunk,
        rounds=3,
    ),
    Table(
        "start",
        "Start of a worker",
        "A new process, its imports, and for the second line the self-test and the shipped model.",
        ("",),
        (SECONDS,),
        lambda setting: [Case((), {"threads": setting.threads})],
        start,
        rounds=3,
    ),
    Table(
        "dictionary",
        "A dictionary is entered",
        "A worker does this once for each fitted model that it opens.",
        ("",),
        (SECONDS,),
        lambda setting: [Case((), coding("", setting.corpus.ten(setting.work)[:1], 1))],
        dictionary,
        rounds=3,
    ),
    Table(
        "size",
        "Size and speed on ten chunks",
        "Ten chunks of 128 KiB of ten kinds, one thread. ppmd is PPMd var. H of order 6 in 16 MB.",
        ("codec",),
        (BITS, ENCODE, DECODE),
        size_cases,
        speeds,
    ),
    Table(
        "sets",
        "Bits per byte of each kind of data",
        "Chunks of 128 KiB, drawn at random. Smallest: of nnfs's codecs, chunk by chunk, as a store would keep it.",
        ("set", "chunks"),
        tuple(Column(name, name, 3, less_is_better=True) for name in ("zstd-19", *CODECS[::-1], "smallest")),
        set_cases,
        one_set,
    ),
    Table(
        "fit",
        "Fitting",
        "A model fitted to a folder, on data that was held out; the delta is counted twice, as a store keeps it.",
        ("content",),
        (
            Column("plain", "plain, KB", 0),
            Column("base", "stored, shipped model, KB", 0, less_is_better=True),
            Column("fitted", "stored, fitted model, KB", 0, less_is_better=True),
            Column("delta", "delta, KB", 0, less_is_better=True),
            Column("less", "less, %", 1),
        ),
        fit_cases,
        fitting,
    ),
)
