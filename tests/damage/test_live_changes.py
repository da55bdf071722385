"""Damage beneath an open store, and requests that change it: nothing is stored over what is not found."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from nnfs.background import scrubreads
from nnfs.errors import FsError, RecordDamaged
from nnfs.fs.keysets import KeySets
from nnfs.store import schema
from nnfs.store.blocks import ChunkChanges, Encoded
from tests.damage.child import in_child
from tests.damage.kit import CHUNK, Sample
from tests.damage.live import MANY, Live, ask, bits_of, names_in, opened, part
from tests.damage.pages import Walk
from tests.damage.truth import Truth, judge


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
