"""tools/bench_packed PATH...: what files that are packed already would take in other forms.

JPEG: the size by libjxl's lossless transcoding and by Lepton, MB/s of one core (of the JPEG's bytes), and whether every
byte comes back; where there is a `jpegtran`, also the size by Lepton when each part of about a chunk must be decodable
alone. PNG, PDF, gzip and ZIP with all that are made like it: how much of their deflate streams zlib makes again bit for
bit, and what the plain content of these takes with xz. Libraries that are not installed are left out; the extra
`packed` names them.
"""

from __future__ import annotations

import argparse
import importlib
import lzma
import re
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

CHUNK = 131072
LEAST = 64  # bytes of a deflate stream
MOST = 8 << 20  # plain bytes of one
# zlib's level, memory level and strategy, the usual ones first:
SETTINGS = [(6, 8, 0), (9, 8, 0), (9, 9, 0), (6, 9, 0), (9, 8, 1), (9, 9, 1), (6, 8, 1)]
SETTINGS += [(level, memory, 0) for memory in (8, 9) for level in (1, 2, 3, 4, 5, 7, 8)]
_XZ = [{"id": lzma.FILTER_LZMA2, "preset": 9}]


class Repacker(NamedTuple):
    """A lossless codec for whole JPEG files."""

    name: str
    encode: Callable[[bytes], bytes]
    decode: Callable[[bytes], bytes]


def repackers() -> list[Repacker]:
    """Return those that are installed."""
    found = []
    for name, module, encode, decode in (
        ("libjxl", "imagecodecs", "jpegxl_encode_jpeg", "jpegxl_decode_jpeg"),
        ("Lepton", "lepton_jpeg_python", "compress_bytes", "decompress_bytes"),
    ):
        try:
            there: Any = importlib.import_module(module)
        except ImportError:
            sys.stderr.write(f"{name}: left out, there is no {module}\n")
            continue
        found.append(Repacker(name, getattr(there, encode), getattr(there, decode)))
    return found


# ---------------------------------------------------------------------------------------------------------------- JPEG


def jpeg_line(repacker: Repacker, files: list[bytes]) -> str:
    """Measure whole files."""
    count: Counter[str] = Counter()
    encoding = decoding = slowest = 0.0
    for data in files:
        begun = time.process_time()
        try:
            payload = repacker.encode(data)
        except Exception:  # noqa: BLE001 - each library has errors of its own
            count["refused"] += 1
            continue
        done = time.process_time()
        back = repacker.decode(payload)
        seconds = time.process_time() - done
        encoding, decoding, slowest = encoding + done - begun, decoding + seconds, max(slowest, seconds)
        count["wrong"] += bytes(back) != data
        count["plain"] += len(data)
        count["stored"] += len(payload)
    plain = max(1, count["plain"])
    return (
        f"{repacker.name}: {plain / 1e6:.1f} MB, {count['stored'] / plain - 1:+.1%}, refused {count['refused']}, wrong "
        f"{count['wrong']}; encoding {plain / 1e6 / max(encoding, 1e-9):.1f}, decoding "
        f"{plain / 1e6 / max(decoding, 1e-9):.1f} MB/s; slowest file {slowest:.2f} s to decode"
    )


def frame(jpeg: bytes) -> tuple[bool, int, int, int]:
    """Return of a JPEG: progressive or not, width, height, and rows of pixels in a row of its coding units.

    Raises IndexError or struct.error for what is none.
    """
    at = 2
    while jpeg[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + int(struct.unpack_from(">H", jpeg, at + 2)[0])
    height, width, components = struct.unpack_from(">HHB", jpeg, at + 5)
    return jpeg[at + 1] == 0xC2, width, height, 8 * max(jpeg[at + 11 + 3 * part] & 15 for part in range(components))


def parts(jpeg: bytes, width: int, height: int, unit: int) -> Iterator[bytes]:
    """Yield strips of a baseline JPEG, as JPEGs of about a chunk each."""
    rows, count = -(-height // unit), max(1, round(len(jpeg) / CHUNK))
    for part in range(count):
        top, end = rows * part // count * unit, min(height, rows * (part + 1) // count * unit)
        yield _jpegtran(jpeg, "-crop", f"{width}x{end - top}+0+{top}")


def _jpegtran(jpeg: bytes, *arguments: str) -> bytes:
    command = ["jpegtran", "-copy", "none", *arguments]
    return subprocess.run(command, input=jpeg, capture_output=True, check=True).stdout


def parts_line(repacker: Repacker, files: list[bytes]) -> str:
    """Measure what it costs when each chunk must be decodable alone, on files of two chunks and more."""
    count: Counter[str] = Counter()
    for data in files:
        progressive, width, height, unit = frame(data)
        count["progressive"] += progressive
        count["bytes of progressive"] += progressive * len(data)
        if progressive or len(data) < 2 * CHUNK:
            continue
        bare = _jpegtran(data)  # strips have no metadata either
        count["plain"] += len(bare)
        count["whole"] += len(repacker.encode(bare))
        count["parts"] += sum(len(repacker.encode(part)) for part in parts(bare, width, height, unit))
    plain = count["plain"]
    if not plain:
        return f"{repacker.name}: no baseline file of 256 KiB and more"
    return (
        f"{repacker.name}, baseline files of 256 KiB and more without metadata: {plain / 1e6:.1f} MB, whole "
        f"{count['whole'] / plain - 1:+.1%}, as parts of 128 KiB {count['parts'] / plain - 1:+.1%}; progressive: "
        f"{count['progressive']} of {len(files)} files, {count['bytes of progressive'] / 1e6:.1f} MB"
    )


# ------------------------------------------------------------------------------------------------------------- deflate


def streams(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the deflate streams of a file with their plain content."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        found = [_image_data(data)[2:]]
    elif data.startswith(b"PK"):
        found = []
        for match in re.finditer(b"PK\3\4", data):
            if data[match.start() + 8 : match.start() + 10] == b"\x08\0":
                found.append(data[match.start() + 30 + sum(struct.unpack_from("<HH", data, match.start() + 26)) :])
    elif data.startswith(b"\x1f\x8b\x08"):
        found = [data[10:] if not data[3] else data[data.index(b"\0", 10) + 1 :]]  # plain, or with a name alone
    else:
        found = [data[match.end() :] for match in re.finditer(rb"stream\r?\n[\x48\x58\x68\x78].", data, re.DOTALL)]
    for raw in found:
        unpacker = zlib.decompressobj(-15)
        try:
            plain = unpacker.decompress(raw, MOST)
        except zlib.error:
            continue
        if unpacker.eof and len(raw) - len(unpacker.unused_data) >= LEAST:
            yield raw[: len(raw) - len(unpacker.unused_data)], plain


def _image_data(png: bytes) -> bytes:
    at, found = 8, b""
    while at + 8 <= len(png):
        size = int(struct.unpack_from(">I", png, at)[0])
        found += png[at + 8 : at + 8 + size] if png[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + size
    return found


def made_again(raw: bytes, plain: bytes) -> bool:
    """Return whether zlib makes a stream again with some of its settings."""
    for level, memory, strategy in SETTINGS:
        packer = zlib.compressobj(level, zlib.DEFLATED, -15, memory, strategy)
        if packer.compress(plain) + packer.flush() == raw:
            return True
    return False


def deflate_line(suffix: str, files: list[bytes]) -> str:
    """Measure the deflate streams of files of one kind."""
    count: Counter[str] = Counter()
    for data in files:
        for raw, plain in streams(data):
            count["all"] += len(raw)
            if made_again(raw, plain):
                count["exact"] += len(raw)
                count["xz"] += len(lzma.compress(plain, lzma.FORMAT_RAW, filters=_XZ))
    size = sum(map(len, files))
    return (
        f"{suffix}: {size / 1e6:.1f} MB, deflate {count['all'] / max(1, size):.0%} of it; zlib makes "
        f"{count['exact'] / max(1, count['all']):.0%} again; their content by xz "
        f"{count['xz'] / max(1, count['exact']) - 1:+.0%}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/bench_packed", description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files, and folders of files")
    named = [name for path in parser.parse_args().paths for name in (path.rglob("*") if path.is_dir() else [path])]
    kinds: dict[str, list[bytes]] = {}
    for path in sorted(path for path in named if path.is_file()):
        data = path.read_bytes()
        suffix = ".jpg" if data.startswith(b"\xff\xd8\xff") else path.suffix.lower()
        kinds.setdefault(suffix, []).append(data)
    for suffix, files in sorted(kinds.items()):
        if suffix != ".jpg":
            print(deflate_line(suffix, files))
            continue
        for repacker in repackers():
            print(jpeg_line(repacker, files))
            if repacker.name == "Lepton" and shutil.which("jpegtran"):
                print(parts_line(repacker, files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
