"""Bits that flip in the data file of an open store, after everything in it was looked at and found right.

LMDB's map shares the page cache of the filesystem below, so a change through another descriptor shows at once. Each
answer is right or an error, and right again when the bit is.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from nnfs.fs.keysets import KeySets
from nnfs.store import schema
from tests.damage.child import in_child
from tests.damage.kit import Sample
from tests.damage.live import FILES, MANY, ask, bits_of, names_in, opened, part
from tests.damage.pages import Span, Walk
from tests.damage.test_live_changes import change_names
from tests.damage.truth import Mounted, Verdict, judge
from tests.harness import FULL, Mount

PLACES = range(0, 400, 13) if FULL else (0, 7, 199, 399)  # of names, in the order of their cookies
CONTENT = {"map": ("large", "sparse"), "block": ("d0/file-4", "copy"), "inode": ("sparse",)}
LEAVES, BRANCHES = ("inode", "dentry", "xattr", "map", "block"), ("inode", "dentry", "map", "xattr")


def spans_of(walk: Walk, what: str, table: str, rng: random.Random) -> list[Span]:
    """The first, the middle and the last, and one more."""
    found = walk.classes().get((what, table), [])
    wanted = {0, len(found) // 2, len(found) - 1, rng.randrange(len(found))} if found else set()
    return [found[n] for n in sorted(wanted)]


def flip_all(folder: Path, sample: Sample, walk: Walk, what: str, table: str) -> tuple[int, int]:
    """Flip bits of a class of bytes, one at a time; return how many there were and how many caused errors."""
    rng, truth = random.Random(f"{what} {table}"), part(sample.truth, CONTENT.get(table, ()))
    most = 128 if FULL else 12

    def work() -> tuple[int, int]:
        noticed = flips = 0
        with opened(folder, sample) as live:
            assert ask(live, truth, "undamaged").errors == 0
            for span in spans_of(walk, what, table, rng):
                for at, bit in bits_of(span, rng, most):
                    story = f"bit {bit} of byte {at - span.start} of {span}"
                    with live.flipped(at, bit):
                        noticed += ask(live, truth, story).errors > 0
                    flips += 1
            assert ask(live, truth, "right again").errors == 0
        return flips, noticed

    return in_child(work, limit=240)


@pytest.mark.parametrize("what", ["key", "record"])
@pytest.mark.parametrize("table", LEAVES)
def test_records(folder: Path, sample: Sample, walk: Walk, table: str, what: str) -> None:
    flips, _ = flip_all(folder, sample, walk, what, table)
    assert flips >= 36


@pytest.mark.parametrize("table", BRANCHES)
def test_keys_of_branch_pages(folder: Path, sample: Sample, walk: Walk, table: str) -> None:
    """Damaged keys of branch pages mislead look-ups. Damaged pointers of the engine end the process."""
    rng, truth = random.Random(table), part(sample.truth, CONTENT.get(table, ()))
    spans = [s for s in walk.spans if (s.what, s.table) == ("branch node", table) and s.end - s.start > 8]

    def work() -> int:
        flips = 0
        with opened(folder, sample) as live:
            ask(live, truth, "undamaged")
            for span in rng.sample(spans, min(len(spans), 4)):
                for at, bit in bits_of(Span(span.what, table, span.start + 8, span.end), rng, 8):
                    with live.flipped(at, bit):
                        ask(live, truth, f"bit {bit} of byte {at - span.start} of {span}")
                    flips += 1
            assert ask(live, truth, "right again").errors == 0
        return flips

    if spans:
        assert in_child(work, limit=240) >= 8


def test_every_bit_of_keys_of_names(folder: Path, sample: Sample, walk: Walk) -> None:
    """A listing once had 21 of 150 names, and a name that is there got ENOENT."""

    def work() -> int:
        flips = 0
        with opened(folder, sample) as live:
            ino = live.view._inode(MANY).ino
            keys = names_in(walk, ino)
            names = {os.fsencode(name): f"{MANY}/{name}" for name in sample.truth.names[MANY]}
            seed = live.store.superblock.seed
            ordered = [names[name] for name in sorted(names, key=lambda name: schema.cookie_of(name, seed))]
            live.view.names(MANY)
            for place in PLACES:
                near = ordered[max(0, place - 2) : place + 3]
                for at, bit in bits_of(keys[place], random.Random(0), 128):
                    with live.flipped(at, bit):
                        verdict = Verdict()
                        verdict.ask("names", lambda: set(live.view.names(MANY)), sample.truth.names[MANY])
                        for path in near:
                            verdict.ask(path, partial(live.view.stat, path), sample.truth.stats[path])
                        assert verdict.lies == [], f"key {place}, byte {at - keys[place].start}, bit {bit}"
                        flips += verdict.errors > 0
            assert set(live.view.names(MANY)) == sample.truth.names[MANY]
        return flips

    assert in_child(work, limit=240) == len(PLACES) * 128


def test_names_loaded_beside_changes(folder: Path, sample: Sample) -> None:
    with opened(folder, sample) as live:
        truth = part(sample.truth)
        truth.names = {**truth.names, MANY: set(truth.names[MANY])}
        change_names(live, truth)
        fs, ino = live.view.fs, live.view._inode(MANY).ino
        fs._names = KeySets()
        with fs.loading(ino) as loading:
            loading.scan()
            change_names(live, truth, "two")
            live.commit()
            change_names(live, truth, "three")
        assert set(live.view.names(MANY)) == truth.names[MANY]
        assert len(fs.names_of(live.view._inode(MANY))) == len(truth.names[MANY]) == live.view._inode(MANY).count


def _flips(walk: Walk, ino: int) -> Iterator[tuple[str, int, int]]:
    keys = names_in(walk, ino)
    for place in (3, 150, 380):
        for byte, bit in ((2, 1), (7, 0), (8, 6), (10, 3), (15, 7)):
            yield f"key {place}, byte {byte}, bit {bit}", keys[place].start + byte, bit
    rng = random.Random(8)
    for what, table in (("key", "map"), ("key", "inode"), ("key", "xattr"), ("record", "dentry"), ("record", "map")):
        for span in spans_of(walk, what, table, rng):
            yield f"{what} {table}", rng.randrange(span.start, span.end), rng.randrange(8)


def test_through_a_mount(folder: Path, sample: Sample) -> None:
    truth, store = part(sample.truth, ("sparse", "large")), folder / "live-mounted"
    truth.stats.pop(MANY)
    for path in ("", *FILES):
        truth.stats.pop(path, None)
    store.mkdir()
    (store / "data.mdb").write_bytes(sample.content)
    with Mount(store, options=["noatime"]) as mount:
        mount.expect_log("(?i)damage|missing|block|not in the store")
        mount.deadline()
        view = Mounted(mount.path)
        assert judge(view, truth).lies == []
        fd = os.open(store / "data.mdb", os.O_RDWR)
        ino = os.stat(mount.path / MANY).st_ino
        walk = Walk(os.pread(fd, os.fstat(fd).st_size, 0))
        for story, at, bit in _flips(walk, ino):
            old = os.pread(fd, 1, at)
            mount.drop_caches()
            os.pwrite(fd, bytes([old[0] ^ 1 << bit]), at)
            verdict = judge(view, truth)
            os.pwrite(fd, old, at)
            assert verdict.lies == [], story
        os.close(fd)
        mount.drop_caches()
        verdict = judge(view, truth)
        assert (verdict.lies, verdict.errors) == ([], 0)
    shutil.rmtree(store)
