"""Command line of tools/bench_content: kinds of content that need a model of their own, by nnfs and by others."""

from __future__ import annotations

import argparse
import csv
import glob
import json
import math
import os
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.codec.coders import CLASSICAL
from bench.codec.running import run, task_of
from bench.codec.sample import Piece, pieces, sample

CHUNK = 128 << 10
EPILOG = """The files come from packages of Debian and PyPI, which are fetched once into --work (about 180 MB): GeoIP's
tables of 6-byte records, .mo files, DICOM pictures and an ECG of 12 channels, fonts, drums of 24 bits, columns of
numbers of CSV files as doubles, a tune that repeats a bar exactly, the pixels of a BMP. Each kind is a folder. A figure
is bits per byte; "ratio" is nnfs's codec by the best of the others. zpaq's journal is not counted."""


@dataclass(frozen=True)
class Source:
    """A package, and which of its files belong to a kind; `change` makes the kind's bytes of a file."""

    package: str  # of Debian, or of PyPI with "pip:" before it
    files: str
    change: Callable[[Path], Iterator[bytes]] = lambda path: iter([path.read_bytes()])


def doubles(path: Path) -> Iterator[bytes]:
    """Yield the columns of numbers of a CSV file, one after the other, as doubles."""
    with open(path, encoding="utf-8", errors="replace") as file:
        rows = list(csv.reader(file))[1:]
    whole = b""
    for column in range(max(map(len, rows), default=0)):
        values = np.array([number(row[column]) if column < len(row) else math.nan for row in rows])
        if np.isfinite(values).mean() > 0.9 and np.unique(values).size > 20:
            whole += values.astype("<f8").tobytes()
    if whole:
        yield whole


def number(text: str) -> float:
    """Parse a number; what is none is not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def frames(path: Path, size: int) -> bytes:
    """Return the samples of a WAV file, if they have `size` bytes; else nothing."""
    try:
        with wave.open(str(path)) as sound:
            return sound.readframes(sound.getnframes()) if sound.getsampwidth() == size else b""
    except (wave.Error, EOFError):
        return b""


def deep(path: Path) -> Iterator[bytes]:
    """Yield a WAV file that has 24 bits a sample."""
    if frames(path, 3):
        yield path.read_bytes()


def tune(path: Path) -> Iterator[bytes]:
    """Yield drums that a sequencer plays: a bar, again and again, now and then with another stroke."""
    there = [frames(file, 2) for file in sorted(path.parent.glob("*.wav"))]
    strokes = [np.frombuffer(sound, "<i2") for sound in there if sound][:6]
    bar = np.zeros(30000, np.int32)
    for place, stroke in zip((0, 7500, 15000, 3750, 22500, 26250), strokes, strict=False):
        end = min(bar.size, place + stroke.size)
        bar[place:end] += stroke[: end - place] // 2
    for turn in range(8):
        own = bar.copy()
        if turn % 4 == 3:
            end = min(own.size, 20000 + strokes[0].size)
            own[20000:end] += strokes[0][: end - 20000] // 3
        yield own.clip(-32768, 32767).astype("<i2").tobytes()


def bitmap(path: Path) -> Iterator[bytes]:
    """Yield the pixels of a DICOM picture of bytes as a BMP of 24 bits has them: blue first, the lowest row first."""
    plain = path.read_bytes()
    side = 240, 320, 3
    size = math.prod(side)
    if len(plain) > size:
        yield np.frombuffer(plain[-size:], np.uint8).reshape(side)[::-1, :, ::-1].tobytes()


_NIBABEL, _PYDICOM = "nibabel/nicom/tests/data/[01].dcm", "pydicom/data/test_files"
KINDS: dict[str, tuple[Source, ...]] = {
    "records of 6 bytes": (Source("geoip-database", "usr/share/GeoIP/*.dat"),),
    "offsets": (
        Source("gnucash-common", "usr/share/locale/[def]*/LC_MESSAGES/*.mo"),
        Source("binutils-common", "usr/share/locale/[df]*/LC_MESSAGES/*.mo"),
    ),
    "16-bit pictures": (Source("pip:nibabel", _NIBABEL), Source("pip:pydicom", f"{_PYDICOM}/MR_small.dcm")),
    "16-bit channels": (Source("pip:pydicom", f"{_PYDICOM}/waveform_ecg.dcm"),),
    "TrueType": (Source("fonts-liberation", "usr/share/fonts/truetype/liberation/*.ttf"),),
    "24-bit sound": (Source("hydrogen-drumkits", "usr/share/hydrogen/data/drumkits/*/*.wav", deep),),
    "sound that repeats": (Source("hydrogen-drumkits", "usr/share/hydrogen/data/drumkits/Audiophob/99930*.wav", tune),),
    "doubles": (Source("pip:heartpy", "heartpy/data/*.csv", doubles), Source("pip:vega-datasets", "**/*.csv", doubles)),
    "bitmap": (Source("pip:pydicom", f"{_PYDICOM}/examples_rgb_color.dcm", bitmap),),
}


def unpacked(package: str, work: Path) -> Path:
    """Return the folder of a package, fetched and unpacked if it is not there yet."""
    folder = work / "packages" / package.removeprefix("pip:")
    if not folder.exists():
        store = work / "fetched" / folder.name
        store.mkdir(parents=True, exist_ok=True)
        if package.startswith("pip:"):
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", folder.name]
            subprocess.run(pip, cwd=store, check=True)
        else:
            subprocess.run(["apt-get", "download", "-q", package], cwd=store, check=True, stdout=subprocess.DEVNULL)
        (file,) = store.iterdir()
        made = folder.with_suffix(".part")
        made.mkdir(parents=True, exist_ok=True)
        wheel = [sys.executable, "-m", "zipfile", "-e", str(file), str(made)]
        subprocess.run(wheel if package.startswith("pip:") else ["dpkg-deb", "-x", str(file), str(made)], check=True)
        made.rename(folder)
    return folder


def filled(kind: str, work: Path) -> Path:
    """Return the folder with a kind's files."""
    folder = work / "kinds" / kind.replace(" ", "-")
    if not folder.exists():
        made = folder.with_suffix(".part")
        made.mkdir(parents=True, exist_ok=True)
        for source in KINDS[kind]:
            top = unpacked(source.package, work)
            for place in sorted(glob.glob(source.files, root_dir=top, recursive=True)):
                plain = b"".join(source.change(top / place))
                if plain:
                    (made / place.replace(os.sep, "_")[-80:]).write_bytes(plain)
        made.rename(folder)
    return folder


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser("bench_content", description=__doc__, epilog=EPILOG)
    parser.add_argument("--work", type=Path, required=True, help="the folder of what is fetched")
    parser.add_argument("--sample", metavar="N", type=int, default=8, help="at most N chunks of 128 KiB a kind (8)")
    parser.add_argument("--others", default="zstd-19,xz,brotli,zpaq", help=f"of: {','.join(CLASSICAL)}")
    parser.add_argument("--codecs", default="cm", help="of nnfs (cm)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of these (all)")
    parser.add_argument("--json", metavar="OUT", type=Path, help="write all sizes to this file")
    args = parser.parse_args()
    args.device, args.threads = "cpu", 1
    return args


def row(chosen: list[Piece], args: argparse.Namespace) -> dict[str, float]:
    """Measure one kind. Return the bits per byte of each codec that is there."""
    plain = sum(piece.length for piece in chosen)
    found: dict[str, float] = {}
    for name in (*args.others.split(","), *args.codecs.split(",")):
        told = run("bench.codec.child", task_of(name, chosen, args))
        found[name] = 8 * sum(told["stored"]) / plain if "stored" in told else math.nan
    return found


def main() -> int:
    """Print a line for each kind."""
    args = arguments()
    others, ours = args.others.split(","), args.codecs.split(",")
    heads = "".join(f"{name:>10}" for name in others) + "".join(f"{name:>10}{'ratio':>8}" for name in ours)
    print(f"{'kind':<20}{'chunks':>7}{heads}", flush=True)
    told: dict[str, dict[str, float]] = {}
    for kind in args.kinds.split(","):
        chosen = sample(pieces(filled(kind, args.work), CHUNK, None), args.sample, 1)
        found = told[kind] = row(chosen, args)
        best = min(found[name] for name in others if not math.isnan(found[name]))
        cells = [f"{found[name]:>10.3f}" + (f"{found[name] / best:>8.3f}" if name in ours else "") for name in found]
        print(f"{kind:<20}{len(chosen):>7}" + "".join(cells), flush=True)
    if args.json:
        args.json.write_text(json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
