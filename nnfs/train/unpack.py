"""Reading of raw folders and archives as plain files.

A *unit* counts as one source: a first-level folder of a root, or one archive with all that is packed inside it.
Archives are read as streams, in memory; nothing is unpacked to disk.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, NamedTuple

_ARCHIVE = re.compile(r"\.(deb|tar|tgz|tbz2|txz|tar\.(gz|xz|bz2)|zip|jar|whl|crate|egg|gem)$", re.IGNORECASE)
_ZIPS = (".zip", ".jar", ".whl", ".egg")
_STREAMS: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),  # type: ignore[dict-item,return-value]
    ".dz": lambda stream: gzip.GzipFile(fileobj=stream),  # type: ignore[dict-item,return-value]
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
_VERSION = re.compile(r"([_-]v?\d|\.orig|\.tar).*$")
DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    RuntimeError,
)
MAX_MEMBER = 64 << 20  # bytes: larger members of archives are left packed
WHOLE_ARCHIVE = 40 << 20  # packed bytes: of larger archives only a share of the members is read
MAX_UNIT = 160 << 20  # plain bytes read of one archive
MAX_DEPTH = 3

Wanted = Callable[[str, int], bool]  # by the name and size of a member: worth reading?


class Candidate(NamedTuple):
    """A plain file that may go into the corpus."""

    name: str  # within its source, without the suffix of its compression
    size: int  # bytes, as stored
    load: Callable[[int], bytes]  # the first so many plain bytes; raises one of `DAMAGED`


class Unit(NamedTuple):
    """One source: its name, where it was found, and how to list its files."""

    source: str
    label: str
    archive: str | None  # path
    files: list[Candidate]  # when it is no archive


def units(root: str) -> list[Unit]:
    """Return the units in a root folder, or of a single archive. Nothing is unpacked yet."""
    if _ARCHIVE.search(root):
        return [Unit(source_of(root), root, root, [])]
    base = os.path.basename(os.path.abspath(root))
    folders: dict[str, list[Candidate]] = {}
    found = []
    for path, name, size in _walk(root):
        if _ARCHIVE.search(path):
            found.append(Unit(source_of(path), path, path, []))
        else:
            first, slash, _ = name.partition("/")
            file = _plain(f"{base}/{name}", size, partial(io.FileIO, path))
            folders.setdefault(f"{base}/{first}" if slash else base, []).append(file)
    return found + [Unit(source, root, None, files) for source, files in folders.items()]


def source_of(archive: str) -> str:
    """Return the name of a package by the name of its archive: without version and suffix."""
    return _VERSION.sub("", os.path.splitext(os.path.basename(archive))[0]) or os.path.basename(archive)


def listing(unit: Unit, wanted: Wanted = lambda _name, _size: True) -> list[Candidate]:
    """Return the files of a unit, also of archives inside it, in the order of a hash of their names.

    Of a damaged archive the readable part is listed, without a message.
    """
    files = list(unit.files)
    if unit.archive is not None:
        share = min(1.0, WHOLE_ARCHIVE / max(1, os.path.getsize(unit.archive)))
        budget = MAX_UNIT
        for file in _members(unit.archive, partial(io.FileIO, unit.archive), "", share, wanted, 1):
            files.append(file)
            if (budget := budget - file.size) < 0:
                break
    return sorted(files, key=lambda file: zlib.crc32(_octets(file.name)))


def _members(
    name: str, opener: Callable[[], IO[bytes]], prefix: str, share: float, wanted: Wanted, depth: int
) -> Iterator[Candidate]:
    """Yield the plain files of an archive, one in 1/share of them, with `prefix` before their names."""
    low = name.lower()
    with contextlib.suppress(*DAMAGED):
        walk = (
            _deb(name) if low.endswith(".deb") and depth == 1 else _zip(opener) if low.endswith(_ZIPS) else _tar(opener)
        )
        for member, size, read in walk:
            nested = _ARCHIVE.search(member) is not None
            if size > MAX_MEMBER or not (nested or (_chosen(member, share) and wanted(member, size))):
                continue
            data = read()
            if nested and depth < MAX_DEPTH:
                part = min(share, WHOLE_ARCHIVE / max(1, size))
                inner = f"{prefix}{member}/"
                yield from _members(member, lambda data=data: io.BytesIO(data), inner, part, wanted, depth + 1)  # type: ignore[misc]
            else:
                yield _plain(prefix + member, size, lambda data=data: io.BytesIO(data))  # type: ignore[misc]


Walk = Iterator[tuple[str, int, Callable[[], bytes]]]


def _deb(path: str) -> Walk:
    if shutil.which("dpkg-deb") is None:
        raise OSError("dpkg-deb is not installed")
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        try:
            assert child.stdout is not None
            yield from _tar(lambda: child.stdout)  # type: ignore[arg-type,return-value]
        finally:
            child.kill()


def _tar(opener: Callable[[], IO[bytes]]) -> Walk:
    with opener() as stream, tarfile.open(fileobj=stream, mode="r|*", bufsize=1 << 20) as packed:
        for member in packed:
            if member.isreg():
                yield member.name.removeprefix("./"), member.size, lambda m=member: _all(packed.extractfile(m))  # type: ignore[misc]


def _zip(opener: Callable[[], IO[bytes]]) -> Walk:
    with opener() as stream, zipfile.ZipFile(stream) as packed:
        for member in packed.infolist():
            if not member.is_dir():
                yield member.filename, member.file_size, lambda m=member: packed.read(m)  # type: ignore[misc]


def _all(stream: IO[bytes] | None) -> bytes:
    return stream.read() if stream is not None else b""


def _plain(name: str, size: int, opener: Callable[[], IO[bytes]]) -> Candidate:
    stem, suffix = os.path.splitext(name)
    unpacked = None if _ARCHIVE.search(name) else _STREAMS.get(suffix)

    def load(limit: int) -> bytes:
        with opener() as stream:
            return stream.read(limit) if unpacked is None else unpacked(stream).read(limit)

    return Candidate(name if unpacked is None else stem, size, load)


def _chosen(name: str, share: float) -> bool:
    return zlib.crc32(_octets(name)) < share * (1 << 32)


def _octets(name: str) -> bytes:
    return name.encode(errors="surrogateescape")


def _walk(root: str) -> Iterator[tuple[str, str, int]]:
    """Yield (path, name within the root, size) of all regular files."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                with contextlib.suppress(OSError):
                    yield path, os.path.relpath(path, root), os.path.getsize(path)
