"""An open store and its truth, asked while bytes beneath it change."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from nnfs.errors import NnfsError
from nnfs.fs.apply import Applied, apply
from nnfs.store import schema
from nnfs.store.blocks import ChunkChanges
from nnfs.store.env import Store
from tests.damage.kit import Sample
from tests.damage.pages import Span, Walk
from tests.damage.truth import Offline, Truth, Verdict, judge

MANY = "many"  # a directory of several leaf pages
FILES = ("large", "sparse", "copy", "d0/file-4", "d1/file-1")


class Live:
    """A copy of the sample, open, and its file."""

    def __init__(self, store: Path) -> None:
        self.store = Store.open(store)
        self.view = Offline(self.store)
        self._fd = os.open(store / "data.mdb", os.O_RDWR)

    @contextlib.contextmanager
    def flipped(self, at: int, bit: int) -> Iterator[None]:
        """One bit is wrong within."""
        old = os.pread(self._fd, 1, at)
        os.pwrite(self._fd, bytes([old[0] ^ 1 << bit]), at)
        try:
            yield
        finally:
            os.pwrite(self._fd, old, at)

    def forget(self) -> None:
        """Inodes that nothing has changed are read again."""
        dirty = self.view.fs.active.inodes
        for ino in [ino for ino in self.view.fs._inodes if ino not in dirty]:
            del self.view.fs._inodes[ino]

    def walk(self) -> Walk:
        size = os.fstat(self._fd).st_size
        return Walk(os.pread(self._fd, size, 0))

    def close(self) -> None:
        os.close(self._fd)
        self.view.fs.close()
        self.store.close()

    def commit(self, chunks: dict[int, ChunkChanges] | None = None) -> Applied:
        """Do as the daemon, without data threads."""
        frozen = self.view.fs.freeze()
        applied, _ = apply(self.store, frozen, chunks or {}, 0, 0, nodes=self.view.fs.nodes)
        self.view.fs.committed(applied)
        return applied


@contextlib.contextmanager
def opened(folder: Path, sample: Sample) -> Iterator[Live]:
    store = folder / "live"
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    (store / "data.mdb").write_bytes(sample.content)
    live = Live(store)
    yield live
    live.close()


def part(truth: Truth, read: tuple[str, ...] = ()) -> Truth:
    """A large directory with some of its files, files with attributes, and the content of those in `read`."""
    paths = [f"{MANY}/{name}" for name in sorted(truth.names[MANY])[::60]]
    wanted = {"", MANY, *paths, *FILES} & truth.stats.keys()
    return Truth(
        {path: names for path, names in truth.names.items() if path in ("", MANY, "d0")},
        {path: found for path, found in truth.stats.items() if path in wanted},
        {},
        {path: found for path, found in truth.xattrs.items() if path in wanted},
        {path: data for path, data in truth.data.items() if path in read},
    )


def ask(live: Live, truth: Truth, story: str) -> Verdict:
    live.forget()
    verdict = judge(live.view, truth)
    for name in ("no such name", "another", "a rather long name, so that a page holds few of them 400"):
        with contextlib.suppress(FileNotFoundError, NnfsError):
            live.view.stat(f"{MANY}/{name}")
            verdict.lies.append(f"{name} is there")
    assert verdict.lies == [], f"{story}: " + "\n".join(verdict.lies[:5])
    return verdict


def bits_of(span: Span, rng: random.Random, most: int) -> list[tuple[int, int]]:
    every = [(at, bit) for at in range(span.start, span.end) for bit in range(8)]
    return every if len(every) <= most else sorted(rng.sample(every, most))


def names_in(walk: Walk, ino: int) -> list[Span]:
    """Return the places of the keys of a directory's dentries, in order."""
    spans = [s for s in walk.spans if (s.what, s.table) == ("key", "dentry")]
    return [s for s in spans if walk.content[s.start : s.start + 8] == schema.KEY.pack(ino)]
