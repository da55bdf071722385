"""The files that tools/bench compresses: the development corpus, and the chunks of it that are measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.codec.sample import Piece, files, pieces, sample, unpacked

ARCHIVE = "dev.tar.xz"
CHUNK = 128 << 10
TEN: dict[str, tuple[str, int]] = {  # a file, or a folder whose files follow each other; and where the chunk begins
    "csv": ("data/birdstrikes.csv", 0),
    "German": ("lang/de/mann_zauberberg.txt", 0),
    "dickens": ("silesia/dickens", 0),
    "elf": ("bin/elf/etree.cpython-311-x86_64-linux-gnu.so", 400_000),
    "enwik": ("enwik/enwik8_0-2000000", 0),
    "json": ("data/movies.json", 0),
    "log": ("logs/BGL_2k.log", 0),
    "xml": ("silesia/xml", 0),
    "mail": ("mail-md", 0),
    "small files": ("small", 0),
}
CONTENT: dict[str, tuple[str, ...]] = {  # the kinds that `cm` codes each in its own way, and where they are found
    "text": ("enwik", "lang", "mail-md", "silesia/dickens"),
    "sound": ("audio",),
    "x86": ("bin/elf",),
    "records": ("silesia/osdb",),
}


class NoData(Exception):
    """The files to compress are not there. The message tells what to give."""


@dataclass(frozen=True)
class Corpus:
    """The unpacked corpus: a folder for each set."""

    folder: Path

    def path(self, name: str) -> Path:
        """Return the place of a set or file. Raises `NoData`."""
        place = self.folder / name
        if not place.exists():
            raise NoData(f"{self.folder} has no {name}: --data names a folder with {ARCHIVE}, or with its sets")
        return place

    def chunks(self, content: str, count: int, size: int = CHUNK) -> list[Piece]:
        """Return whole chunks of one kind of content. Raises `NoData` where there are too few."""
        cut = [piece for name in CONTENT[content] for piece in pieces(self.path(name), size, None)]
        whole = [piece for piece in cut if piece.length == size]
        if len(whole) < count:
            raise NoData(f"{self.folder} has {len(whole)} chunks of {content}, and {count} are measured")
        return sample(whole, count, 1)

    def ten(self, work: Path) -> list[Piece]:
        """Write ten chunks of ten kinds to files, and return them. Raises `NoData`."""
        folder = work / "ten"
        folder.mkdir(exist_ok=True)
        return [Piece(str(file), 0, file.stat().st_size) for file in (self._one(name, folder) for name in TEN)]

    def _one(self, name: str, folder: Path) -> Path:
        place, begin = TEN[name]
        plain = bytearray()
        for file in files(self.path(place)):
            with open(file, "rb") as reads:
                reads.seek(begin)
                plain += reads.read(CHUNK - len(plain))
            if len(plain) == CHUNK:
                break
        (folder / name).write_bytes(plain)
        return folder / name


def opened(data: Path, work: Path) -> Corpus:
    """Return the corpus in a folder, unpacked below `work` if it is an archive there. Raises `NoData`."""
    if (data / ARCHIVE).is_file():
        return Corpus(unpacked(data / ARCHIVE, work / "corpus"))
    if not data.is_dir():
        raise NoData(f"{data} is not there: --data names a folder with {ARCHIVE}, or with its sets")
    return Corpus(data)
