"""Amendments of recompression: payloads swapped under their numbers, marks, models kept and dropped."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from nnfs.codec.base import CM, NEURAL
from nnfs.fs import swapping
from nnfs.fs.swapping import Settled
from nnfs.store.blocks import ChunkChanges, Swap
from nnfs.store.schema import Block, Inode, State
from tests.fs.swapkit import FILE_B, A, B, block_at, checked, damage_files, forget, keep, swap, written
from tests.fs.test_apply import Files, chunk, files

__all__ = ["files"]  # a fixture


def test_a_swap_changes_the_block_and_what_its_file_occupies(files: Files) -> None:
    inode = written(files, 3, 4)
    before, old = inode.stored, block_at(files, inode, 3)
    assert swap(files, inode, 3) == 5 - old.stored
    new = block_at(files, inode, 3)
    assert (new.codec, new.stored, new.plain, new.hash, new.refs) == (CM, 5, old.plain, old.hash, old.refs)
    assert new.payload != old.payload
    assert inode.stored == before + 5 - old.stored
    with files.store.read() as snapshot:
        assert snapshot.payload(new.payload, 5) == b"small"
        assert snapshot.payload(old.payload, 5) == b""
    checked(files)


def test_a_block_that_has_changed_meanwhile_stays(files: Files) -> None:
    inode = written(files, 3)
    old = block_at(files, inode, 3)
    [number] = files.fs.block_numbers(inode, 3, 3)
    swap(files, inode, 3)
    stale = Swap(number, old.payload, (inode.ino, 3), CM, 0, b"late")
    assert files.amend(partial(swapping.swap, swaps=[stale])) == [None]
    gone = Swap(12345, 12345, (inode.ino, 3), CM, 0, b"late")
    assert files.amend(partial(swapping.swap, swaps=[gone])) == [None]
    checked(files)


def test_a_block_freed_in_the_same_commit_stays_free(files: Files) -> None:
    inode = written(files, 3)
    old = block_at(files, inode, 3)
    [number] = files.fs.block_numbers(inode, 3, 3)
    one = Swap(number, old.payload, (inode.ino, 3), CM, 0, b"late")
    results: list[Any] = []
    cut = {inode.ino: ChunkChanges(cut=0)}
    files.commit(cut, lambda work: results.append(swapping.swap(work, [one])))
    assert results == [[None]]
    checked(files)
    assert files.store.entries("payload") == 0


def test_nothing_smaller_is_remembered_until_the_payload_changes(files: Files) -> None:
    inode = written(files, 3)
    assert swap(files, inode, 3, data=None) == 0
    assert block_at(files, inode, 3).flags == Block.FLAG_TRIED
    swap(files, inode, 3)
    assert block_at(files, inode, 3).flags == 0
    checked(files)


def test_a_shared_block_is_told_to_one_file_only(files: Files) -> None:
    """The other one's figure is an estimate, and no error."""
    inode = written(files, 3)
    other = files.create(b"g")
    files.commit({other.ino: ChunkChanges(chunks={9: chunk(3)})})
    before = other.stored
    swap(files, inode, 3)
    assert (inode.stored, other.stored) == (5, before)
    checked(files)


def test_a_settled_file_is_so_until_it_changes(files: Files) -> None:
    inode = written(files, 3)
    files.amend(partial(swapping.settle, files=[Settled(inode.ino, inode.proof, inode.ctime, 77)]))
    assert inode.flags & Inode.FLAG_SETTLED
    assert inode.stored == 77
    files.commit({inode.ino: ChunkChanges(chunks={4: chunk(4)})})
    assert not inode.flags & Inode.FLAG_SETTLED
    files.amend(partial(swapping.settle, files=[Settled(inode.ino, inode.proof + 1, inode.ctime, 1)]))
    files.amend(partial(swapping.settle, files=[Settled(inode.ino, inode.proof, inode.ctime + 1, 1)]))
    assert not inode.flags & Inode.FLAG_SETTLED  # it was another content, or place, that had been looked at
    files.amend(partial(swapping.settle, files=[Settled(inode.ino, inode.proof, inode.ctime, 1)]))
    assert inode.flags & Inode.FLAG_SETTLED
    files.amend(partial(swapping.settle, files=[Settled(inode.ino, inode.proof, inode.ctime, 1, rung=0)]))
    assert not inode.flags & Inode.FLAG_SETTLED


def test_marks_do_not_count_until_a_whole_pass_has_ended(files: Files) -> None:
    def unsettles(work: Any) -> None:
        work.state.flags |= State.FLAG_UNSETTLED

    def flags() -> int:
        return files.store.state.flags & ~State.ROUND_BITS

    files.amend(unsettles)
    files.amend(swapping.begin_pass)
    assert flags() == State.FLAG_UNSETTLING
    files.amend(unsettles)  # something has changed meanwhile
    files.amend(swapping.end_pass)
    assert flags() == State.FLAG_UNSETTLED
    files.amend(swapping.begin_pass)
    files.amend(swapping.end_pass)
    assert flags() == 0


def test_what_was_tried_before_a_change_is_tried_again(files: Files) -> None:
    """Blocks that were tried since are not, however often a pass is interrupted."""
    inode = written(files, 3)
    for _ in range(6):  # more rounds than their number can tell
        assert not block_at(files, inode, 3).was_tried(files.store.state.round)
        swap(files, inode, 3, data=None)
        assert block_at(files, inode, 3).was_tried(files.store.state.round)
        files.commit()
        assert block_at(files, inode, 3).was_tried(files.store.state.round)
        files.amend(swapping.begin_pass)
    files.amend(swapping.end_pass)
    checked(files)


def test_a_number_that_another_model_has_got_is_noticed(files: Files) -> None:
    inode, number = written(files, 3), keep(files)
    [block] = files.fs.block_numbers(inode, 3, 3)
    one = Swap(block, block_at(files, inode, 3).payload, (inode.ino, 3), NEURAL, number, b"x")
    assert files.amend(partial(swapping.swap, swaps=[one], fingerprints={number: B})) == [None]
    assert files.amend(partial(swapping.swap, swaps=[one], fingerprints={number: A})) != [None]


def rewritten(files: Files, at: int, **known: Any) -> tuple[int, set[int]]:
    """Write the content of a chunk once more, into another file: (its block, what that has made whole)."""
    other = files.create(b"again %d" % files.store.state.next_ino)
    applied = files.commit({other.ino: ChunkChanges(chunks={7: chunk(at), 8: chunk(at)})}, **known)
    [number] = set(files.fs.block_numbers(other, 7, 8))
    return number, applied.repaired


@pytest.mark.parametrize("lost", ["record", "file", "base"])
def test_content_whose_model_is_lost_is_stored_when_it_is_written_again(files: Files, lost: str) -> None:
    inode = written(files, 3, 4)
    base = keep(files)
    number = keep(files, B, FILE_B, A) if lost == "base" else base
    for at in (3, 4):
        swap(files, inode, at, NEURAL, number)
    assert rewritten(files, 4)[1] == set()  # all is well
    if lost == "record":
        forget(files, number)
    else:
        damage_files(files, base)
    [block] = files.fs.block_numbers(inode, 3, 3)
    assert rewritten(files, 3) == (block, {block})
    assert (block_at(files, inode, 3).codec, block_at(files, inode, 4).codec) == (0, NEURAL)
    with files.store.read() as snapshot:
        assert snapshot.payload(block_at(files, inode, 3).payload, 1000) == chunk(3).payload
    assert block_at(files, inode, 3).refs == 3


def test_content_whose_block_is_known_to_be_damaged_is_stored_when_it_is_written_again(files: Files) -> None:
    """Its stored bytes have their checksum: only decoding told."""
    inode = written(files, 3)
    swap(files, inode, 3)
    [block] = files.fs.block_numbers(inode, 3, 3)
    assert rewritten(files, 3, damaged={block + 1}) == (block, set())
    assert rewritten(files, 3, damaged={block}) == (block, {block})
    assert block_at(files, inode, 3).codec == 0
    files.check()
