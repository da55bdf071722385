"""Bits that flip in the data file of an open store, after everything in it was looked at and found right.

LMDB's map shares the page cache of the filesystem below, so a change through another descriptor shows at once. Each
answer is right or an error, and right again when the bit is.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from nnfs.background import scrubreads
from nnfs.errors import FsError, NnfsError, RecordDamaged
from nnfs.fs.apply import Applied, apply
from nnfs.fs.keysets import KeySet, KeySets
from nnfs.store import schema
from nnfs.store.blocks import ChunkChanges, Encoded
from nnfs.store.env import Store
from tests.damage.child import in_child
from tests.damage.kit import CHUNK, Sample
from tests.damage.pages import Span, Walk
from tests.damage.truth import Mounted, Offline, Truth, Verdict, judge
from tests.harness import FULL, Mount

PLACES = range(0, 400, 13) if FULL else (0, 7, 199, 399)  # of names, in the order of their cookies
MANY = "many"  # a directory of several leaf pages
FILES = ("large", "sparse", "copy", "d0/file-4", "d1/file-1")
CONTENT = {"map": ("large", "sparse"), "block": ("d0/file-4", "copy"), "inode": ("sparse",)}
LEAVES, BRANCHES = ("inode", "dentry", "xattr", "map", "block"), ("inode", "dentry", "map", "xattr")


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
        """What the daemon does, without data threads."""
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
    """Keys of branch pages lead look-ups elsewhere. What they point at is the engine's, which ends the process."""
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


def names_in(walk: Walk, ino: int) -> list[Span]:
    """Where the keys of a directory's dentries lie, in order."""
    spans = [s for s in walk.spans if (s.what, s.table) == ("key", "dentry")]
    return [s for s in spans if walk.content[s.start : s.start + 8] == schema.KEY.pack(ino)]


def test_every_bit_of_keys_of_names(folder: Path, sample: Sample, walk: Walk) -> None:
    """What the issue saw: 21 of 150 names, and ENOENT for a name that is there."""

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


def change_names(live: Live, truth: Truth, turn: str = "one") -> None:
    """Create, remove and rename in the large directory."""
    names, ino = live.view._names, live.view._inode(MANY).ino
    stats, listed = truth.stats, truth.names[MANY]
    for n in range(6):
        names.create(ino, f"{turn} {n}".encode(), 0o100644, 0, 0, 0)
        listed.add(f"{turn} {n}")
    for name in sorted(listed)[5:300:37]:
        names.unlink(ino, os.fsencode(name))
        listed.discard(name)
        stats.pop(f"{MANY}/{name}", None)
        truth.xattrs.pop(f"{MANY}/{name}", None)
    for name in sorted(listed)[10:300:61]:
        names.rename(ino, os.fsencode(name), ino, os.fsencode(f"{turn} {name}"), 0)
        listed.discard(name)
        listed.add(f"{turn} {name}")
        for found in (stats, truth.xattrs):
            found.pop(f"{MANY}/{name}", None)
    stats.pop(MANY, None)  # its times


@pytest.mark.parametrize("committed", [False, True])
def test_names_that_were_changed_meanwhile(folder: Path, sample: Sample, committed: bool) -> None:
    def work() -> int:
        noticed = 0
        with opened(folder, sample) as live:
            truth = part(sample.truth)
            truth.names = {**truth.names, MANY: set(truth.names[MANY])}
            ask(live, truth, "undamaged")
            change_names(live, truth)
            if committed:
                live.commit()
                change_names(live, truth, "two")
                live.commit()
            assert ask(live, truth, "changed").errors == 0
            keys = names_in(live.walk(), live.view._inode(MANY).ino)
            for span in keys[::57]:
                for at, bit in bits_of(span, random.Random(span.start), 12):
                    with live.flipped(at, bit):
                        noticed += ask(live, truth, f"bit {bit} at {at}").errors > 0
            assert ask(live, truth, "right again").errors == 0
        return noticed

    assert in_child(work, limit=240) > 25


def test_listings_that_go_on(folder: Path, sample: Sample, walk: Walk) -> None:
    def work() -> int:
        failed = 0
        with opened(folder, sample) as live:
            ino = live.view._inode(MANY).ino
            for place, span in list(enumerate(names_in(walk, ino)))[::9]:
                for at, bit in bits_of(span, random.Random(place), 4):
                    listing = live.view._names.entries(ino, 0)
                    seen = [next(listing)[1] for _ in range(100)]
                    with live.flipped(at, bit):
                        try:
                            seen += [name for _, name, _ in listing]
                        except RecordDamaged:
                            failed += 1
                            continue
                    assert {os.fsdecode(name) for name in seen[2:]} == sample.truth.names[MANY]
        return failed

    assert in_child(work, limit=240) > 50


def encoded(content: bytes) -> Encoded:
    from hashlib import blake2b

    return Encoded(blake2b(content).digest(), 0, len(content), content)


def test_nothing_is_stored_over_a_node_that_is_not_found(folder: Path, sample: Sample, walk: Walk) -> None:
    """A node's key is hit, and a chunk of that node is written: it must not become the node's only one."""

    def work() -> int:
        failed = 0
        with opened(folder, sample) as live:
            ino = live.view._inode("large").ino
            spans = [s for s in walk.spans if (s.what, s.table) == ("key", "map")]
            [hit] = [s for s in spans if walk.content[s.start : s.end] == schema.KEY2.pack(ino, 1)]
            for turn, (at, bit) in enumerate(bits_of(hit, random.Random(5), 40)):
                if turn == 20:  # from here on the commit has to look for itself
                    live.view.fs.nodes = KeySets()
                with live.flipped(at, bit):
                    inode = live.view._inode("large")
                    live.view.fs.touch(inode)
                    change = ChunkChanges(chunks={70: encoded(b"%d" % turn * 100)})
                    failed += ino in live.commit({ino: change}).failed
            live.forget()
            verdict = judge(live.view, Truth(data={"large": sample.truth.data["large"]}))
            assert (verdict.lies, verdict.errors) == ([], 0), verdict
        return failed

    assert in_child(work) == 40


def test_a_damaged_node_does_not_keep_a_file_from_growing(folder: Path, sample: Sample, walk: Walk) -> None:
    def work() -> None:
        with opened(folder, sample) as live:
            ino = live.view._inode("large").ino
            [hit] = [r for r in walk.of("map") if r.key == schema.KEY2.pack(ino, 1)]
            with live.flipped(hit.start + 20, 3):
                inode = live.view._inode("large")
                inode.size = 301 * CHUNK
                live.view.fs.touch(inode)
                content = b"behind" * 100
                assert live.commit({ino: ChunkChanges(chunks={300: encoded(content)})}).failed == {}
                [number] = live.view.fs.block_numbers(live.view._inode("large"), 300, 300)
                assert number

    in_child(work)


def test_an_inode_that_is_not_found_is_not_stored_twice_in_silence(folder: Path, sample: Sample, walk: Walk) -> None:
    def work() -> None:
        with opened(folder, sample) as live:
            inode = live.view._inode("large")
            [hit] = [s for s in walk.spans if (s.what, s.table) == ("key", "inode")
                     and walk.content[s.start : s.end] == schema.KEY.pack(inode.ino)]  # fmt: skip
            with live.flipped(hit.end - 1, 2):
                inode.mode ^= 0o11
                live.view.fs.touch(inode)
                assert inode.ino in live.commit().failed

    in_child(work)


def test_nothing_is_appended_behind_a_damaged_last_key(folder: Path, sample: Sample, walk: Walk) -> None:
    """It says less than it should: records that are there already would be there twice."""

    def work() -> None:
        with opened(folder, sample) as live:
            keys = [s for s in walk.spans if (s.what, s.table) == ("key", "inode")]
            last = max(keys, key=lambda s: walk.content[s.start : s.end])
            number = schema.KEY.unpack(walk.content[last.start : last.end])[0]
            high = number.bit_length() - 1
            inode, entries = live.view.fs.inode(number - (1 << high) + 40), live.store.entries("inode")
            with live.flipped(last.end - 1 - high // 8, high % 8):
                inode.mode ^= 0o11
                live.view.fs.touch(inode)
                live.commit()
                live.view._names.create(1, b"new", 0o100644, 0, 0, 0)
                live.commit()
            assert live.store.entries("inode") == entries + 1
            live.view.fs._inodes.clear()
            assert live.view.fs.inode(inode.ino).mode == inode.mode

    in_child(work)


def test_what_the_kernel_knows_is_damaged_when_it_is_not_found(folder: Path, sample: Sample, walk: Walk) -> None:
    def work() -> None:
        with opened(folder, sample) as live:
            ino = live.view._inode("large").ino
            live.view.fs.remember(ino)
            [hit] = [s for s in walk.spans if (s.what, s.table) == ("key", "inode")
                     and walk.content[s.start : s.end] == schema.KEY.pack(ino)]  # fmt: skip
            live.view.fs._inodes.clear()
            with live.flipped(hit.end - 1, 2), pytest.raises(RecordDamaged):
                live.view.fs.inode(ino)
            with pytest.raises(FsError):
                live.view.fs.inode(1 << 40)

    in_child(work)


def test_a_scrub_passes_no_block_by(folder: Path, sample: Sample, walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number in a damaged key is no place to go on from."""
    monkeypatch.setattr(scrubreads, "SLICE_BLOCKS", 4)
    monkeypatch.setattr(scrubreads, "SLICE_S", 1e9)
    keys = [s for s in walk.spans if (s.what, s.table) == ("key", "block")]

    def work() -> None:
        with opened(folder, sample) as live:
            for turn, span in enumerate(keys[3 : len(keys) - 8 : 11]):
                for byte, bit in ((5, turn % 8), (6, turn % 8), (7, turn % 8)):
                    with live.flipped(span.start + byte, bit):
                        at, seen, looks, damaged, is_last = 0, 0, 0, 0, False
                        while not is_last:
                            try:
                                look = scrubreads.look_at(live.store, at, False)
                            except RecordDamaged:  # the scrub ends with that
                                damaged, seen = 1, len(keys)
                                break
                            at, seen, is_last, looks = look.next, seen + look.blocks, look.is_last, looks + 1
                            damaged += len(look.damaged)
                            assert looks < len(keys), f"{span}, byte {byte}: it never ends"
                        assert damaged > 0, f"{span}, byte {byte}: nobody noticed"
                        assert seen >= len(keys) - 1, f"{span}, byte {byte}: {seen} of {len(keys)}"

    in_child(work, limit=240)


# -- names that are being loaded while they change


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


def test_numbers_are_a_sorted_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnfs.fs.keysets.RUN", 4)
    rng = random.Random(6)
    for _ in range(30):
        model = {rng.randrange(100) for _ in range(rng.randrange(60))}
        numbers = KeySet(model)
        for _ in range(150):
            number = rng.randrange(100)
            if rng.random() < 0.5:
                model.add(number)
                numbers.add(number)
            else:
                model.discard(number)
                numbers.discard(number)
            ordered = sorted(model)
            assert len(numbers) == len(model)
            assert numbers.above(-1, 1000) == ordered
            low = rng.randrange(100)
            assert (low in numbers) == (low in model)
            assert numbers.above(low, 7) == [n for n in ordered if n > low][:7]
            assert list(numbers.between(low, low + 9)) == [n for n in ordered if low <= n <= low + 9]


def test_known_sets_are_bounded() -> None:
    known = KeySets(limit=1000)
    for ino in range(100):
        known.put(ino, KeySet(range(100)))
    kept = [ino for ino in range(100) if known.peek(ino) is not None]
    assert kept == list(range(93, 100))
    known.put(7, KeySet(range(5000)))
    assert [ino for ino in range(100) if known.peek(ino) is not None] == [7, 99]
    known.note(7, 6000, present=True)
    known.note(5, 1, present=True)
    found = known.get(7)
    assert found is not None
    assert 6000 in found
    for ino in (7, 99):
        known.drop(ino)
    assert known._size == 0


# -- through a mount


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
        mount.expect_log("(?i)damage|missing|block")
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
