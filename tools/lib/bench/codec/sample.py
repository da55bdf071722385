"""The choice of the chunks of files that are measured."""

from __future__ import annotations

import itertools
import os
import random
import tarfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Coded:
    """The result of a codec on some bytes of a path."""

    path: str
    codec: str
    plain_bytes: int
    stored_bytes: int


@dataclass(frozen=True)
class Piece:
    """One chunk: `length` bytes of a file, from an offset on."""

    path: str
    offset: int
    length: int

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            plain = file.read(self.length)
        if len(plain) != self.length:
            raise OSError(f"{self.path} has become shorter")
        return plain


def unpacked(archive: Path, folder: Path) -> Path:
    """Unpack a tar archive into a folder, and return that, or the only folder in it."""
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):  # 3.11.4, and not Debian 12's 3.11.2
            tar.extraction_filter = tarfile.data_filter
        tar.extractall(folder)
    top = list(folder.iterdir())
    return top[0] if len(top) == 1 and top[0].is_dir() else folder


def files(path: Path) -> list[str]:
    """Return the file itself, or all regular files below the folder, in an order that is the same on every machine."""
    if path.is_file():
        return [str(path)]
    found = (os.path.join(top, name) for top, _, names in os.walk(path) for name in names)
    return sorted(name for name in found if os.path.isfile(name) and not os.path.islink(name))


def pieces(path: Path, chunk: int, first: int | None) -> list[Piece]:
    """Return all chunks of a path. With `first`, one chunk of so many bytes from the beginning of each file."""
    cut = []
    for name in files(path):
        size = os.path.getsize(name)
        if first is not None:
            cut.append(Piece(name, 0, min(first, size)))
        else:
            cut += [Piece(name, at, min(chunk, size - at)) for at in range(0, size, chunk)]
    return [piece for piece in cut if piece.length]


def sample(cut: list[Piece], count: int | None, seed: int) -> list[Piece]:
    """Return at most `count` of the chunks, each with the same chance, so that stored / plain bytes is not biased.

    They are drawn one from each of `count` equal stretches of the list, large chunks first: so large and small ones,
    and all parts of a folder, are there in their shares, and the ratio varies little from seed to seed.
    """
    if count is None or count >= len(cut):
        return cut
    drawn = random.Random(seed)
    ordered = sorted(cut, key=lambda piece: (-(piece.length.bit_length()), piece.path, piece.offset))
    edges = [len(cut) * n // count for n in range(count + 1)]
    chosen = [ordered[drawn.randrange(a, b)] for a, b in itertools.pairwise(edges)]
    return sorted(chosen, key=lambda piece: (piece.path, piece.offset))
