"""Building a corpus from raw folders and packages: classified, deduplicated, without the data of benchmarks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from nnfs.train import media, provenance
from nnfs.train.corpus import CHUNK, ENTRY
from nnfs.train.filekinds import FORM_SHARE, HEAD, KINDS, SMALL, classify, excluded, form, guess
from nnfs.train.shingles import STRIDE, Seen, shingles
from nnfs.train.unpack import DAMAGED, Candidate, Unit, listing, units

MIN_FILE = 64
REPEATED = 0.5  # share of shingles seen before from which on a file is a near duplicate
SAME_NAME = 3  # archives taken of one package name
HELD_OUT = 100  # one file in so many


@dataclass
class Options:
    """The options of a build: roots, output and bounds."""

    out: str
    roots: list[str]  # hand-picked: taken before the packages
    packages: list[str] = field(default_factory=list)  # more roots, mixed with each other
    exclude_content: list[str] = field(default_factory=list)
    size: int = 800 << 20  # bytes wanted in all
    max_foreign: float = 0.03  # share of shingles that a file may have in common with the excluded content


class Builder:
    """The writer of one corpus. Call `run`; afterwards the counters tell how many files were left out and why."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.dropped: Counter[str] = Counter()
        self._digests: set[bytes] = set()
        self._seen = Seen()
        self._foreign = Seen()
        self._kind_bytes: Counter[str] = Counter()
        self._source_bytes: Counter[tuple[str, str]] = Counter()
        self._form_bytes: Counter[tuple[str, str]] = Counter()
        self._entries: list[tuple[int, int, int, int, bool]] = []
        self._sources: dict[str, int] = {}
        self._licences: dict[str, str] = {}
        self._offset = 0

    def run(self) -> None:
        """Build the corpus. Raises OSError when a root or the output cannot be read or written."""
        for folder in self.options.exclude_content:
            self._learn_foreign(folder)
        work = _few_of_a_name(_mixed(self.options.roots) + _mixed(self.options.packages))
        began = time.monotonic()
        with open(self.options.out, "wb") as out:
            for number, unit in enumerate(work):
                for data, kind, name in self._unit(unit):
                    out.write(data)
                    self._entries.append(
                        (self._offset, len(data), list(KINDS).index(kind), self._source(unit), _held(data))
                    )
                    self._offset += len(data)
                    self._count(data, kind, unit.source, name)
                if number % 25 == 0 or number == len(work) - 1:
                    _say(f"{time.monotonic() - began:6.0f} s {number + 1}/{len(work)} {self._offset >> 20} MiB")
        self._finish()

    # ---------------------------------------------------------------------------------------------- one unit, one file

    def _unit(self, unit: Unit) -> Iterator[tuple[bytes, str, str]]:
        if excluded(unit.source) or excluded(os.path.basename(unit.label)):
            self.dropped["excluded by name"] += 1
            return
        files = listing(unit, lambda name, size: self._worth(unit.source, name, size))
        self._licences.setdefault(unit.source, provenance.licence(files))
        for file in files:
            try:
                if self._worth(unit.source, file.name, file.size):
                    yield from self._file(unit.source, file)
            except (*DAMAGED, SyntaxError) as error:
                self.dropped[f"unreadable: {type(error).__name__}"] += 1

    def _worth(self, source: str, name: str, size: int) -> bool:
        """Return whether a file is worth reading, by its name."""
        kind = guess(name)
        if size < MIN_FILE or (kind is not None and size > SMALL and self._full(kind, source, form(name))):
            self.dropped["too short" if size < MIN_FILE else f"enough of {kind}"] += 1
            return False
        return True

    def _file(self, source: str, file: Candidate) -> Iterator[tuple[bytes, str, str]]:
        if excluded(file.name):
            self.dropped["excluded by name"] += 1
            return
        head = file.load(HEAD)
        kind = classify(file.name, len(head) if len(head) < HEAD else max(file.size, HEAD), head)
        if kind is None or excluded("", head):
            self.dropped["unwanted or packed" if kind is None else "excluded by content"] += 1
            return
        if self._full(kind, source, form(file.name)):
            self.dropped[f"enough of {kind}"] += 1
            return
        versions: Iterator[tuple[bytes, str]] = iter(
            [(_stretch(file, KINDS[kind].longest), file.name)] if kind != "image" else []
        )
        if kind == "image":
            versions = (
                (data, f"{file.name}.{suffix}") for suffix, data in media.pictures(file.load(1 << 28), file.name)
            )
        for data, name in versions:
            if (why := self._unfit(data, kind)) is None:
                yield data, kind, name
            else:
                self.dropped[why] += 1

    def _full(self, kind: str, source: str, shape: str) -> bool:
        want = self.options.size * KINDS[kind].weight / 100 * KINDS[kind].keep
        return (
            self._kind_bytes[kind] >= want
            or self._source_bytes[kind, source] >= want * KINDS[kind].source_share
            or (shape in FORM_SHARE and self._form_bytes[kind, shape] >= want * FORM_SHARE[shape])
        )

    def _unfit(self, data: bytes, kind: str) -> str | None:
        """Return the reason why data does not fit, None for data that does; remember the latter."""
        if len(data) < MIN_FILE:
            return "too short"
        digest = hashlib.blake2b(data, digest_size=16).digest()
        if digest in self._digests:
            return "exact duplicate"
        marks = shingles(data)
        if self._foreign.share(marks) > self.options.max_foreign:
            return "shares content with what is excluded"
        if kind != "log" and self._seen.share(marks) > REPEATED:
            return "near duplicate"
        self._digests.add(digest)
        self._seen.add(marks)
        return None

    def _count(self, data: bytes, kind: str, source: str, name: str) -> None:
        self._kind_bytes[kind] += len(data)
        self._source_bytes[kind, source] += len(data)
        self._form_bytes[kind, form(name)] += len(data)

    def _source(self, unit: Unit) -> int:
        return self._sources.setdefault(unit.source, len(self._sources))

    def _learn_foreign(self, folder: str) -> None:
        for unit in units(folder):
            for file in listing(unit):
                with contextlib.suppress(*DAMAGED):
                    self._foreign.add(shingles(file.load(1 << 30)))

    # ------------------------------------------------------------------------------------------------------ at the end

    def _finish(self) -> None:
        index = np.array(self._entries, ENTRY)
        with open(self.options.out + ".npy", "wb") as file:
            np.save(file, index)
        about = {
            "kinds": list(KINDS),
            "weights": {kind: KINDS[kind].weight for kind in KINDS},
            "sources": list(self._sources),
            "licences": self._licences,
            "bytes": {kind: self._kind_bytes[kind] for kind in KINDS},
            "dropped": dict(self.dropped.most_common()),
            "excluded_content": self.options.exclude_content,
            "chunk": CHUNK,
            "shingle_stride": STRIDE,
        }
        with open(self.options.out + ".json", "w", encoding="utf-8") as text:
            json.dump(about, text, indent=1, ensure_ascii=False)
        with open(self.options.out + ".txt", "w", encoding="utf-8") as text:
            text.write(provenance.report(index, list(KINDS), list(self._sources), self._licences, self.dropped))


def build(options: Options) -> None:
    """Build the corpus that `options` describe. Raises OSError."""
    Builder(options).run()


def _stretch(file: Candidate, most: int) -> bytes:
    """Return all of a file, or `most` bytes of it from a multiple of the chunk size on."""
    data = file.load(1 << 28)
    if len(data) <= most:
        return data
    rng = random.Random(zlib.crc32(file.name.encode(errors="surrogateescape")))
    start = rng.randrange((len(data) - most) // CHUNK + 1) * CHUNK
    return data[start : start + most]


def _held(data: bytes) -> bool:
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest()) % HELD_OUT == 0


def _mixed(roots: list[str]) -> list[Unit]:
    found = [unit for root in roots for unit in units(root)]
    return sorted(found, key=lambda unit: zlib.crc32(unit.source.encode(errors="surrogateescape")))


def _few_of_a_name(work: list[Unit]) -> list[Unit]:
    """Return the units with at most `SAME_NAME` archives of one package: builds repeat each other."""
    count: Counter[str] = Counter()
    kept = []
    for unit in work:
        count[unit.source] += unit.archive is not None
        if unit.archive is None or count[unit.source] <= SAME_NAME:
            kept.append(unit)
    return kept


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
