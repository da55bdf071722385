"""The table of pieces: 2,048 bytes of text, pictures and speech, each alone, by nnfs and by the programs made for them.

The design is that of "Language Modeling Is Compression" (Deletang and others, 2023): pieces of 2,048 bytes, so that a
predictor starts from nothing each time. Grey patches have 64 x 32 pixels, speech has 1,024 samples of 16 bits.
"""

from __future__ import annotations

import random
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import programs
from bench.coding import coded
from bench.corpus import Corpus, NoData
from bench.table import Case, Column, Line, Missing, Setting, Table, Task
from nnfs.mixer import startvalues
from nnfs.workers.catalogue import PRESETS, SUFFIX

PIECE, COUNT, QUICK_COUNT = 2048, 60, 8
SIDE = 64, 32  # pixels of a patch
RATE = 16000  # samples of speech in a second
WHOLE, QUICK_WHOLE = 1_000_000, 100_000  # bytes of text, and about as many of the others
GIGABYTE = 10**9
SPEECH = "audio/speechEmotion", "audio/recording1.wav", "audio/recording2.wav"
OURS = ("cm", "neural")
Grey = NDArray[np.uint8]


@dataclass(frozen=True)
class Kind:
    """One kind of content: where it comes from, what has been published for it, and the program made for it."""

    published: str
    takes: Callable[[Corpus, int, bool], Iterator[tuple[bytes, bytes]]]  # plain bytes, and a file for its program
    suffix: str = ".raw"  # of that file
    own: Callable[[Path], programs.Size] | None = None


def text(corpus: Corpus, count: int, is_whole: bool) -> Iterator[tuple[bytes, bytes]]:
    """Yield pieces of Wikipedia that lie equally far from each other; or its first bytes, as one."""
    plain = corpus.path("enwik/enwik8_0-2000000").read_bytes()
    if is_whole:
        yield plain[:count], b""
        return
    for k in range(count):
        at = len(plain) // count * k
        yield plain[at : at + PIECE], b""


def grey(path: Path) -> Grey:
    """Return a PPM picture in grey, by ITU-R 601."""
    magic, size, _, pixels = path.read_bytes().split(b"\n", 3)
    width, height = map(int, size.split())
    if magic != b"P6" or len(pixels) != 3 * width * height:
        raise NoData(f"{path} is no PPM picture of bytes")
    colours = np.frombuffer(pixels, np.uint8).reshape(height, width, 3).astype(np.int64)
    return ((colours @ (299, 587, 114) + 500) // 1000).astype(np.uint8)


def patches(corpus: Corpus, count: int, is_whole: bool) -> Iterator[tuple[bytes, bytes]]:
    """Yield patches of photographs, drawn at random; or photographs of so many pixels together at least."""
    pictures = [grey(path) for path in sorted(corpus.path("img").glob("*.ppm"))]
    drawn, (width, height) = random.Random(1), SIDE
    while is_whole and count > 0:
        picture = pictures.pop(0)
        count -= picture.size
        yield picture.tobytes(), programs.pgm(picture.tobytes(), picture.shape[1], picture.shape[0])
    for _ in range(0 if is_whole else count):
        picture = drawn.choice(pictures)
        y, x = drawn.randrange(picture.shape[0] - height + 1), drawn.randrange(picture.shape[1] - width + 1)
        patch = picture[y : y + height, x : x + width].tobytes()
        yield patch, programs.pgm(patch, width, height)


def samples(path: Path) -> bytes:
    """Return the samples of a WAV file of speech."""
    with wave.open(str(path)) as sound:
        if (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) != (1, 2, RATE):
            raise NoData(f"{path} has not one channel of 16 bits and {RATE:,} samples a second")
        return bytes(sound.readframes(sound.getnframes()))


def speech(corpus: Corpus, count: int, is_whole: bool) -> Iterator[tuple[bytes, bytes]]:
    """Yield pieces of speech, drawn at random; or recordings of so many bytes together at least."""
    places = [corpus.path(name) for name in SPEECH]
    files = [file for place in places for file in (sorted(place.glob("*.wav")) if place.is_dir() else [place])]
    sounds, drawn = [samples(file) for file in files], random.Random(1)
    while is_whole and count > 0:
        sound = sounds.pop()
        count -= len(sound)
        yield sound, sound
    for _ in range(0 if is_whole else count):
        sound = drawn.choice(sounds)
        at = drawn.randrange((len(sound) - PIECE) // 2 + 1) * 2
        yield sound[at : at + PIECE], sound[at : at + PIECE]


KINDS = {
    "text": Kind("8.3 % (Chinchilla 70B)", text),
    "grey patches": Kind("43.4 % (Chinchilla 70B), PNG 58.5 %", patches, ".pgm", programs.png),
    "speech": Kind("16.4 % (Chinchilla 70B), FLAC 30.3 %", speech, ".flac.raw", programs.flac),
}


def cases(setting: Setting) -> list[Case]:
    """Return two cases for each kind. Raises `NoData`."""
    found = []
    for name, kind in KINDS.items():
        for is_whole in (False, True):
            small, large = (QUICK_WHOLE, WHOLE) if is_whole else (QUICK_COUNT, COUNT)
            count = small if setting.is_quick else large
            task = {"kind": name, "whole": is_whole, "count": count, "corpus": str(setting.corpus.folder)}
            labels = (name, "whole" if is_whole else f"{count} pieces", "" if is_whole else kind.published)
            found.append(Case(labels, task, compared=False))
    return found


def programs_of(kind: Kind, files: Sequence[tuple[Path, Path]]) -> dict[str, float | None]:
    """Return the bytes that each program makes of all files; None where it is missing."""

    def total(program: Callable[[Path], programs.Size], which: int) -> tuple[float, float] | None:
        try:
            sizes = [program(pair[which]) for pair in files]
        except Missing:
            return None
        return sum(size.stored for size in sizes), sum(size.stored - size.frame for size in sizes)

    own = total(kind.own, 1) if kind.own else None
    general = {"gzip": total(programs.gzip, 0), "lzma2": total(programs.lzma2, 0)}
    found = {key: made[0] if made else None for key, made in general.items()}
    return found | {"own": own[0] if own else None, "own_content": own[1] if own else None}


def ours(files: Sequence[tuple[Path, Path]]) -> dict[str, list[int]]:
    """Return the bytes that each codec of nnfs stores for each chunk of the files. Raises `Missing`."""
    cut = [
        [str(plain), at, min(128 << 10, plain.stat().st_size - at)]
        for plain, _ in files
        for at in range(0, plain.stat().st_size, 128 << 10)
    ]
    task: Task = {"pieces": cut, "device": "cpu", "threads": 1}
    return {codec: coded({**task, "codec": codec})["stored"] for codec in OURS}


def model_bytes(codec: str) -> int:
    """Return the bytes of what a codec has learnt beforehand, whichever data it codes."""
    path = Path(PRESETS, f"default{SUFFIX}") if codec == "neural" else Path(startvalues.PATH)
    return path.stat().st_size


def measured(task: dict[str, Any]) -> Iterator[Line]:
    """Measure one kind: per cent of its plain bytes."""
    kind, folder = KINDS[task["kind"]], Path(task["work"])
    files = []
    for number, (plain, file) in enumerate(kind.takes(Corpus(Path(task["corpus"])), task["count"], task["whole"])):
        pair = folder / f"{number:03}", folder / f"{number:03}{kind.suffix}"
        pair[0].write_bytes(plain)
        pair[1].write_bytes(file)
        files.append(pair)
    size = sum(plain.stat().st_size for plain, _ in files)
    found = programs_of(kind, files)
    stored = ours(files)
    found |= {codec: sum(own) for codec, own in stored.items()}
    smallest = sum(map(min, *stored.values()))
    model = max(model_bytes(codec) for codec in OURS)
    values = {key: None if made is None else 100 * made / size for key, made in found.items()}
    values["smallest"] = 100 * smallest / size
    values["with_model"] = 100 * (smallest + model) / size
    values["on_gigabyte"] = 100 * (smallest / size + model / GIGABYTE)
    yield Line((), {"plain": size / 1000, **values})


def percent(key: str, title: str) -> Column:
    """Return a column of per cents."""
    return Column(key, title, 1, less_is_better=True)


TABLE = Table(
    "pieces",
    "Pieces of 2,048 bytes, and whole files",
    "Per cent of the plain bytes, each piece coded alone; whole: a megabyte of text, photographs, recordings, by nnfs "
    "in chunks of 128 KiB. gzip is gzip -9n, LZMA2 is raw (xz --format=raw, preset 9e), PNG the smaller of optipng -o7 "
    "and zopflipng, FLAC flac -8 --no-padding; content: without signature, header and description. smallest: of cm and "
    "neural, piece by piece. The model's bytes count once: for these bytes alone, and for a gigabyte of such data. "
    "Published: on enwik9, ImageNet and LibriSpeech, which are other data, by 70 billion weights.",
    ("content", "", "published"),
    (
        Column("plain", "plain, KB", 0), percent("gzip", "gzip"), percent("lzma2", "LZMA2"),
        percent("own", "PNG or FLAC"), percent("own_content", "its content"), percent("cm", "cm"),
        percent("neural", "neural"), percent("smallest", "smallest"),
        percent("on_gigabyte", "with the model, of 1 GB"), percent("with_model", "with the model, of these bytes"),
    ),
    cases,
    measured,
)  # fmt: skip
