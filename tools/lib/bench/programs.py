"""The programs that pieces of text, pictures and sound are compared with: what they make of files."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.codec.child import processor_s
from bench.table import Missing

PACKAGES = {"gzip": "gzip", "xz": "xz-utils", "optipng": "optipng", "zopflipng": "zopfli", "flac": "flac", "tar": "tar"}
SIGNATURE, CHUNK_HEAD = 8, 12  # of PNG: bytes before the first chunk; length, type and checksum of each


@dataclass(frozen=True)
class Size:
    """The bytes of a program's output, and how many of these are no content: signature, header, description."""

    stored: int
    frame: int = 0


def run(command: Sequence[str | Path], given: bytes | None = None) -> bytes:
    """Return a program's output. Raises `Missing` where it is not installed, `CalledProcessError` where it fails."""
    name = str(command[0])
    if not shutil.which(name):
        raise Missing(f"the program {name} is not installed (apt-get install {PACKAGES.get(name, name)})")
    return subprocess.run(command, input=given, capture_output=True, check=True).stdout


def gzip(file: Path) -> Size:
    return Size(len(run(["gzip", "-9nc", file])))


def lzma2(file: Path) -> Size:
    return Size(len(run(["xz", "--format=raw", "--lzma2=preset=9e", "-c", file])))


def png(file: Path) -> Size:
    """Return the smaller of what optipng and zopflipng make of a picture in PGM."""
    first, second = file.with_suffix(".png"), file.with_suffix(".zopfli.png")
    run(["optipng", "-quiet", "-o7", "-clobber", "-out", first, file])
    run(["zopflipng", "-y", first, second])
    whole = min((each.read_bytes() for each in (first, second)), key=len)
    return Size(len(whole), png_frame(whole))


def png_frame(whole: bytes) -> int:
    """Return the bytes of a PNG file that are not within IDAT chunks."""
    at, content = SIGNATURE, 0
    while at < len(whole):
        length = int.from_bytes(whole[at : at + 4])
        content += length if whole[at + 4 : at + 8] == b"IDAT" else 0
        at += CHUNK_HEAD + length
    return len(whole) - content


def flac(file: Path, rate: int = 16000) -> Size:
    """Return the size of raw samples of 16 bits, one channel, as FLAC."""
    raw = ["--force-raw-format", "--endian=little", "--sign=signed", "--channels=1", "--bps=16"]
    out = file.with_suffix(".flac")
    run(["flac", "-8", "--no-padding", "--silent", "-f", *raw, f"--sample-rate={rate}", "-o", out, file])
    whole = out.read_bytes()
    return Size(len(whole), flac_frame(whole))


def flac_frame(whole: bytes) -> int:
    """Return the bytes of a FLAC file before its first frame of sound: the mark, and blocks of metadata."""
    at = 4
    while at < len(whole):
        last, length = whole[at] & 128, int.from_bytes(whole[at + 1 : at + 4])
        at += 4 + length
        if last:
            break
    return at


def pgm(pixels: bytes, width: int, height: int) -> bytes:
    """Return grey pixels as a PGM file."""
    return b"P5\n%d %d\n255\n" % (width, height) + pixels


def timed(make: Callable[[], bytes]) -> tuple[bytes, float]:
    """Return what a program makes, and the seconds of processor time that it took."""
    begin = processor_s()
    made = make()
    return made, processor_s() - begin
