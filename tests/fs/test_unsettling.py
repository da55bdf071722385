"""Files and blocks that recompression has to look at again, or need not; models that it may drop."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from nnfs.codec.base import CM, NEURAL
from nnfs.constants import Policy
from nnfs.fs import candidates, swapping
from nnfs.fs.apply import Work
from nnfs.fs.candidates import Ages, Look, Piece, Walk
from nnfs.fs.policy import MODEL, POLICY, Rules
from nnfs.fs.swapping import Settled
from nnfs.fs.xattrs import Xattrs
from nnfs.store import modelfiles, schema
from nnfs.store.blocks import ChunkChanges, Swap
from nnfs.store.schema import Inode, State
from tests.fs.swapkit import FILE_A, FILE_B, A, B, block_at, drop, keep, retire, swap, written
from tests.fs.test_apply import Files, chunk, chunks, damage, files

__all__ = ["files"]  # a fixture

DAY = 86400 * 10**9


def slices(files: Files) -> Iterator[list[Piece]]:
    """A walk over everything."""
    walk = Walk(files.store, schema.ROOT_INO, Rules(Policy.AUTO), lambda *_: Look(now=True), lambda *_: True)
    while (pieces := walk.next()) is not None:
        yield pieces


# -- the walk


def test_a_file_that_changes_between_two_slices_is_not_done(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "SLICE_BYTES", 1)
    inode = files.create(b"f")
    files.commit({inode.ino: ChunkChanges(chunks=chunks(0, 64, 128))})
    before, last = inode.proof, None
    for number, pieces in enumerate(slices(files)):
        assert len([one for piece in pieces for one in piece.candidates]) <= 1
        if number == 0:
            files.commit({inode.ino: ChunkChanges(chunks={0: chunk(77)})})  # nobody has looked at that one
        last = next((piece for piece in pieces if piece.last), last)
    assert last is not None
    assert last.proof == before != inode.proof
    files.amend(partial(swapping.settle, files=[Settled(last.ino, last.proof, last.ctime, last.stored)]))
    assert not inode.flags & Inode.FLAG_SETTLED


def test_what_the_mount_knows_of_reading_counts_beside_the_atime() -> None:
    inode = Inode(20, 0o100644, 0, 0, 0)
    now = 10 * DAY
    assert Ages(DAY, DAY).cold(inode, now)
    assert not Ages(DAY, DAY, {20: now - DAY // 2}.__getitem__).cold(inode, now)
    assert Ages(DAY, DAY, {20: now - 2 * DAY}.__getitem__).cold(inode, now)
    inode.atime = now - DAY // 2
    assert not Ages(DAY, DAY, {20: now - 2 * DAY}.__getitem__).cold(inode, now)


# -- what voids the marks


def is_unsettled(files: Files) -> bool:
    """Whether the marks have been voided since this was last asked."""
    files.commit()
    found = bool(files.store.state.flags & State.FLAG_UNSETTLED)
    files.amend(swapping.begin_pass)
    files.amend(swapping.end_pass)
    return found


@pytest.mark.parametrize(("name", "one", "other"), [(POLICY, b"hot", b"cold"), (MODEL, b"aa" * 64, b"bb" * 64)])
def test_an_attribute_set_to_what_it_is_voids_nothing(files: Files, name: bytes, one: bytes, other: bytes) -> None:
    inode, xattrs = files.create(b"f"), Xattrs(files.fs)
    xattrs.set(inode, b"user.other", b"hot")
    assert not is_unsettled(files)
    xattrs.set(inode, name, one)
    xattrs.set(inode, name, one)
    assert is_unsettled(files)
    xattrs.set(inode, name, one)
    assert not is_unsettled(files)
    xattrs.set(inode, name, other)
    assert is_unsettled(files)
    damage(files.store, "xattr", schema.KEY.pack(inode.ino) + name)
    files.commit()  # what the filesystem reads from is of the last one
    xattrs.set(inode, name, other)
    assert is_unsettled(files)
    xattrs.remove(inode, name)
    assert is_unsettled(files)


def test_a_model_that_comes_voids_the_marks(files: Files) -> None:
    """Directories may name it already, and their files were encoded with another one meanwhile."""
    add = partial(swapping.keep_model, fingerprint=A, data=FILE_A, base=None, now=7, wanted=True)
    number = files.amend(add)
    assert is_unsettled(files)
    assert files.amend(add) == number
    assert not is_unsettled(files)
    retire(files, number)
    assert is_unsettled(files)
    assert files.amend(add) == number
    assert is_unsettled(files)
    keep(files, B, FILE_B)  # as the shipped one is, when it is first used
    assert not is_unsettled(files)


def test_settings_that_have_changed_void_the_marks(files: Files) -> None:
    """So does a codec that was too slow for the files that were marked, and is quick enough now."""
    inode, one, other = written(files, 3), 0x1234567890AB0000, 0x1234567890AC0000

    def is_changed(digest: int, *fast: int) -> bool:
        return swapping.has_changed(files.store.state.settings, digest, sum(map(swapping.bit, fast)))

    def settle(*slow: int) -> None:
        mark = Settled(inode.ino, inode.proof, inode.ctime, 77)
        files.amend(partial(swapping.settle, files=[mark], digest=one, slow=sum(map(swapping.bit, slow))))

    assert not is_changed(one)
    assert not is_changed(other)  # nothing is marked yet
    settle()
    assert not is_changed(one + 1, CM, NEURAL)  # the lower bits are no part of it
    assert is_changed(other)
    settle(NEURAL)
    settle(CM)
    assert not is_changed(one)
    assert [is_changed(one, codec) for codec in (CM, NEURAL, CM + 1)] == [True, True, False]
    files.amend(partial(swapping.begin_pass, digest=one, fast=swapping.bit(NEURAL)))
    assert [is_changed(one, codec) for codec in (CM, NEURAL)] == [True, False]
    files.amend(partial(swapping.begin_pass, digest=other))
    assert not is_changed(other, CM, NEURAL)
    assert is_changed(one)
    files.check()


def test_blocks_of_a_codec_are_known(files: Files) -> None:
    def found() -> bool:
        with files.store.read() as snapshot:
            return swapping.has_blocks(snapshot, CM)

    inode = written(files, 3)
    assert not found()
    swap(files, inode, 3)
    assert found()
    damage(files.store, "total", schema.TOTAL_KEY.pack(CM, 0))
    assert found()
    swap(files, inode, 3, NEURAL)
    assert not found()


# -- models that go


def test_the_retired_base_of_a_living_delta_costs_no_look_at_all_blocks(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = keep(files)
    delta = keep(files, B, FILE_B, A)
    retire(files, base)
    with monkeypatch.context() as patch:
        patch.setattr(modelfiles, "needed", lambda _: pytest.fail("every header of the store was read"))
        assert drop(files) == []
    retire(files, delta)
    assert drop(files) == [delta, base]


def test_a_swap_of_the_same_commit_keeps_its_model(files: Files) -> None:
    """Its header is not in the table yet, and the totals may be wrong."""
    inode, number = written(files, 3), keep(files)
    swap(files, inode, 3, NEURAL, number)
    swap(files, inode, 3)
    retire(files, number)
    key = schema.TOTAL_KEY.pack(NEURAL, number)
    [block] = files.fs.block_numbers(inode, 3, 3)
    one = Swap(block, block_at(files, inode, 3).payload, (inode.ino, 3), NEURAL, number, b"payload")
    results: list[list[int]] = []

    def both(work: Work) -> None:
        swapping.swap(work, [one])
        work.blocks._totals[key].blocks = 0
        results.append(swapping.drop_models(work, {number}))

    files.commit({}, both)
    assert results == [[]]
