"""Snapshots, one thing at a time: what is kept and what is not, numbers and names, and who uses kept records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nnfs.constants import Policy
from nnfs.errors import UsageError
from nnfs.fs import apply as apply_module
from nnfs.fs import snapshots, swapping
from nnfs.fs.backup import backup
from nnfs.fs.blockfiles import BlockFiles
from nnfs.fs.candidates import Candidate, Look, Walk
from nnfs.fs.pasts import SNAPSHOTS
from nnfs.fs.policy import Rules
from nnfs.store import moments, schema
from nnfs.store.blocks import ChunkChanges, Swap, load_block
from nnfs.store.env import Store
from nnfs.store.moments import PAST
from nnfs.store.schema import Inode, MapNode
from tests.fs.kit import encoded
from tests.fs.pastkit import CONTENTS, World

SIZE = 500 * schema.MIN_CHUNK_SIZE


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "store", 1)
    yield made
    made.close()


def make(world: World, name: bytes, chunks: dict[int, bytes]) -> Inode:
    inode = world.names.create(schema.ROOT_INO, name, 0o100644, 0, 0, 0)
    inode.size = SIZE
    write(world, inode, chunks)
    return inode


def write(world: World, inode: Inode, chunks: dict[int, bytes]) -> None:
    content = {number: encoded(plain) for number, plain in chunks.items()}
    world.changes.setdefault(inode.ino, ChunkChanges()).chunks.update(content)
    inode.mtime += 1
    world.fs.touch(inode)


def take(world: World, name: bytes) -> moments.Moment:
    return world.amend(lambda work: snapshots.take(work, name, 7, world.fs.pasts.used))


def delete(world: World, *names: bytes) -> None:
    world.amend(lambda work: snapshots.begin_delete(work, names))
    while world.amend(snapshots.reap):
        pass


def kept(world: World, table: str) -> list[tuple[int, int]]:
    """Number of the snapshot and inode of the kept records of a table."""
    with world.store.read() as snapshot:
        keys = [schema.KEY.unpack(key[:8])[0] for key, _ in snapshot.range(table, schema.KEY.pack(PAST))]
    return [(key >> schema.INO_BITS, key & moments.INO_MASK) for key in keys]


def refs(world: World) -> dict[bytes, int]:
    """References of each block, by its content."""
    found = {}
    with world.store.read() as snapshot:
        for key, _ in snapshot.range("block", b""):
            block = load_block(snapshot, schema.KEY.unpack(key)[0])
            assert block is not None
            found[next(plain for plain in CONTENTS if encoded(plain).hash == block.hash)] = block.refs
    return found


# -- what is kept


def test_a_snapshot_takes_one_record(world: World) -> None:
    make(world, b"f", {0: CONTENTS[0]})
    world.commit()
    before = {table: world.store.entries(table) for table in moments.TABLES}
    moment = take(world, b"one")
    assert {table: world.store.entries(table) for table in moments.TABLES} == before
    assert (moment.number, moment.inodes, moment.logical) == (1, 2, len(CONTENTS[0]))
    assert world.store.superblock.ro_compat == moments.RO_SNAPSHOTS


def test_only_the_first_change_is_kept(world: World) -> None:
    inode = make(world, b"f", {0: CONTENTS[0], 1: CONTENTS[1], 70: CONTENTS[2]})
    take(world, b"one")
    write(world, inode, {0: CONTENTS[3]})
    world.commit()
    assert kept(world, "map") == kept(world, "inode") == [(1, inode.ino)]
    assert refs(world) == {CONTENTS[0]: 1, CONTENTS[1]: 2, CONTENTS[2]: 1, CONTENTS[3]: 1}
    write(world, inode, {0: CONTENTS[4]})
    world.commit()
    assert kept(world, "map") == kept(world, "inode") == [(1, inode.ino)]
    assert CONTENTS[3] not in refs(world)


def test_a_removed_file_moves_to_its_snapshot(world: World) -> None:
    """No reference changes, so no header of a block is written."""
    make(world, b"f", {0: CONTENTS[0], 70: CONTENTS[2]})
    take(world, b"one")
    with world.store.read() as snapshot:
        before = dict(snapshot.range("block", b""))
    world.names.unlink(schema.ROOT_INO, b"f")
    world.commit()
    with world.store.read() as snapshot:
        assert dict(snapshot.range("block", b"")) == before
    delete(world, b"one")
    assert world.store.entries("block") == world.store.entries("payload") == 0


def test_access_times_and_marks_of_recompression_are_no_changes(world: World) -> None:
    inode = make(world, b"f", {0: CONTENTS[0]})
    take(world, b"one")
    inode.atime += 5
    world.fs.touch(inode)
    world.commit()
    settled = swapping.Settled(inode.ino, inode.proof, inode.ctime, 17)
    world.amend(lambda work: swapping.settle(work, [settled]))
    assert kept(world, "inode") == []
    inode.mtime += 5
    world.fs.touch(inode)
    world.commit()
    assert kept(world, "inode") == [(1, inode.ino)]


def test_what_is_younger_is_not_kept(world: World) -> None:
    take(world, b"one")
    inode = make(world, b"f", {0: CONTENTS[0]})
    world.commit()
    write(world, inode, {0: CONTENTS[1]})
    world.commit()
    world.names.unlink(schema.ROOT_INO, b"f")
    world.commit()
    assert [ino for _, ino in kept(world, "inode")] == [schema.ROOT_INO]
    assert not kept(world, "map")
    assert not kept(world, "dentry")


def test_an_open_file_without_a_name_is_kept_for_those_who_show_it(world: World) -> None:
    """It lost its name between two snapshots: the second has no use for its chunks."""
    inode = make(world, b"f", {0: CONTENTS[0]})
    take(world, b"one")
    world.fs.remember(inode.ino)
    world.names.unlink(schema.ROOT_INO, b"f")
    world.commit()
    take(world, b"two")
    world.fs.forget(inode.ino, 1)
    world.commit()
    assert set(kept(world, "map")) == {(1, inode.ino)}
    delete(world, b"one")
    assert world.store.entries("block") == 0


def test_a_file_that_is_released_in_pieces(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that is taken meanwhile keeps nothing of it."""
    monkeypatch.setattr(apply_module, "RELEASE_NODES", 2)
    inode = make(world, b"f", {64 * number: CONTENTS[number] for number in range(7)})
    take(world, b"one")
    world.names.unlink(schema.ROOT_INO, b"f")
    assert world.commit().unfinished
    take(world, b"two")
    while not world.fs.active.empty:
        world.commit()
    assert set(kept(world, "map")) == {(1, inode.ino)}
    assert len(kept(world, "map")) == 7
    delete(world, b"one")
    assert world.store.entries("block") == 0


def test_records_go_to_the_next_earlier_snapshot(world: World) -> None:
    inode = make(world, b"f", {0: CONTENTS[0]})
    take(world, b"one")
    take(world, b"two")
    write(world, inode, {0: CONTENTS[1]})
    world.commit()
    assert kept(world, "map") == [(2, inode.ino)]
    delete(world, b"two")
    assert kept(world, "map") == kept(world, "inode") == [(1, inode.ino)]
    assert refs(world) == {CONTENTS[0]: 1, CONTENTS[1]: 1}
    delete(world, b"one")
    assert kept(world, "map") == []
    assert refs(world) == {CONTENTS[1]: 1}
    assert world.store.superblock.ro_compat == 0


# -- numbers and names


def test_numbers_go_round(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "LAST_NUMBER", 3)
    taken = [take(world, b"s%d" % number).number for number in range(3)]
    assert taken == [1, 2, 3]
    with pytest.raises(UsageError, match="at most 3"):
        take(world, b"more")
    delete(world, b"s1")
    world.fs.pasts.used = {1, 3}  # nobody knows an inode of the second
    moment = take(world, b"again")
    assert moment.number == 2
    assert [one.name for one in world.fs.pasts.shown] == [b"s0", b"s2", b"again"]


def test_a_number_that_somebody_may_know_is_not_used(world: World) -> None:
    take(world, b"one")
    delete(world, b"one")
    assert take(world, b"two").number == 2


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"nul\0", b"n" * 256])
def test_names_that_are_refused(world: World, name: bytes) -> None:
    with pytest.raises(UsageError):
        take(world, name)
    assert world.store.moments == ()


def test_no_two_of_one_name_or_commit(world: World) -> None:
    take(world, b"one")
    with pytest.raises(UsageError, match="this name"):
        take(world, b"one")

    def twice(work: apply_module.Work) -> None:
        snapshots.take(work, b"two", 1)
        with pytest.raises(UsageError, match="try again"):
            snapshots.take(work, b"three", 1)

    world.amend(twice)
    assert [moment.name for moment in world.store.moments] == [b"one", b"two"]


def test_only_what_is_there_is_deleted(world: World) -> None:
    take(world, b"one")
    with pytest.raises(UsageError, match="no snapshot two"):
        world.amend(lambda work: snapshots.begin_delete(work, [b"one", b"two"]))
    assert not world.store.moments[0].deleting
    assert not world.amend(snapshots.reap)


# -- other parts


def everything(_inode: Inode, _rules: Rules, _now: int) -> Look:
    return Look(now=True)


def walked(world: World, *, kept: bool) -> list[Candidate]:
    walk = Walk(world.store, schema.ROOT_INO, Rules(Policy.AUTO), everything, lambda *_: True, kept=kept)
    found: list[Candidate] = []
    while (pieces := walk.next()) is not None:
        found += [candidate for piece in pieces for candidate in piece.candidates]
    return found


def test_recompression_finds_what_only_snapshots_have(world: World) -> None:
    inode = make(world, b"f", {0: CONTENTS[0], 1: CONTENTS[1], 70: CONTENTS[2]})
    gone = make(world, b"gone", {5: CONTENTS[4]})
    take(world, b"one")
    write(world, inode, {0: CONTENTS[3]})
    world.names.unlink(schema.ROOT_INO, b"gone")
    world.commit()
    live = {(one.ino, one.chunk) for one in walked(world, kept=False)}
    assert live == {(inode.ino, 0), (inode.ino, 1), (inode.ino, 70)}
    both = {(one.ino, one.chunk) for one in walked(world, kept=True)}
    assert both - live == {(PAST | inode.ino, 0), (PAST | gone.ino, 5)}


def test_swaps_of_kept_chunks(world: World) -> None:
    """A kept inode learns what its chunks take now. Nothing else of it changes."""
    inode = make(world, b"f", {0: CONTENTS[0]})
    take(world, b"one")
    write(world, inode, {0: CONTENTS[3]})
    world.commit()
    (found,) = [one for one in walked(world, kept=True) if one.ino >= PAST]
    data = CONTENTS[0]  # raw
    one = Swap(found.number, found.block.payload, (found.ino, found.chunk), 0, 0, data)
    change = world.amend(lambda work: swapping.swap(work, [one]))[0]
    assert change == len(data) - found.block.stored
    past = world.fs.pasts.past(found.ino).inode(inode.ino)
    assert past is not None
    assert past.stored == len(data)
    world.check_references()


def test_damage_is_named_by_the_path_in_a_snapshot(world: World) -> None:
    world.names.create(schema.ROOT_INO, b"d", 0o40755, 0, 0, 0)
    make(world, b"f", {3: CONTENTS[0]})
    world.names.rename(schema.ROOT_INO, b"f", world.inode("d").ino, b"g", 0)
    take(world, b"one")
    world.names.unlink(world.inode("d").ino, b"g")
    world.names.rename(schema.ROOT_INO, b"d", schema.ROOT_INO, b"other", 0)
    world.commit()
    with world.store.read() as snapshot:
        key, record = next(snapshot.range("map", schema.KEY.pack(PAST)))
        (block,) = MapNode.unpack(key, record).blocks.values()
    files = BlockFiles(world.store, [block])
    while files.next():
        pass
    assert files.paths() == {block: [f"/.nnfs/snapshots/one/d/g at {3 * schema.MIN_CHUNK_SIZE}"]}


def test_a_backup_has_them(world: World, tmp_path: Path) -> None:
    inode = make(world, b"f", {0: CONTENTS[0]})
    take(world, b"one")
    write(world, inode, {0: CONTENTS[1]})
    world.commit()
    (tmp_path / "copy").mkdir()
    backup(world.store, tmp_path / "copy/data.mdb")
    copy = World.__new__(World)
    copy.store, copy.path = Store.open(tmp_path / "copy"), tmp_path / "copy"
    copy._open()
    try:
        root = copy.fs.pasts.lookup(copy.fs.inode(SNAPSHOTS), b"one")
        assert root is not None
        assert copy.seen(root)["f"][2] == {0: CONTENTS[0]}
        assert copy.seen(copy.fs.inode(schema.ROOT_INO))["f"][2] == {0: CONTENTS[1]}
    finally:
        copy.close()


def test_a_version_that_knows_no_snapshots_only_reads(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Earlier versions know no bit of `ro_compat`."""
    take(world, b"one")
    assert not world.store.read_only
    monkeypatch.setattr(moments, "RO_SNAPSHOTS", 0)
    assert world.store.read_only
