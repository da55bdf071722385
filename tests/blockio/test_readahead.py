"""Read-ahead: blocks that are fetched before a reader asks for them."""

from __future__ import annotations

import random

import pytest

from nnfs.blockio.readahead import FEWEST, FILES, MOST, NEAR, Around, Sequences

NONE = range(11_000, 12_000)  # block numbers without blocks


def fetched(around: Around, number: int, there: set[int]) -> set[int]:
    """Return the blocks that reading a block fetches, of those that exist and are not fetched yet."""
    after, before, count = around.read(number)
    found = [near for near in [*after, *before] if near not in there and near not in NONE][:count]
    around.fetched(found)
    return set(found)


def test_one_file_brings_nothing() -> None:
    around = Around()
    for number in (1000, 5000, 5000, 1, 9000):
        assert not fetched(around, number, set())


@pytest.mark.parametrize("order", ["forwards", "backwards", "any"])
def test_who_reads_a_tree_finds_almost_all_of_it_there(order: str) -> None:
    around, there, numbers = Around(), set[int](), list(range(10_000, 11_000))
    if order == "backwards":
        numbers.reverse()
    elif order == "any":  # directories of 500 files
        numbers = [n for at in (0, 500) for n in random.Random(at).sample(numbers[at : at + 500], 500)]
    missed, most = 0, 0
    for number in numbers:
        missed += number not in there
        there.add(number)
        found = fetched(around, number, there)
        assert number not in around
        assert all(abs(near - number) <= NEAR + 1 for near in found)
        there |= found
        most = max(most, len(found))
    assert missed < 0.15 * len(numbers)
    assert most <= MOST
    assert order == "any" or most > FEWEST


def test_what_is_not_read_is_not_fetched_for_ever() -> None:
    """Half of what was fetched waits to be read: nothing more until it is, or something is missing."""
    around = Around()
    fetched(around, 100, set())
    first = fetched(around, 101, {100})
    assert len(first) == FEWEST
    there = {100, 101} | first
    for number in (102, 103, 104):
        assert not fetched(around, number, there)
    second = fetched(around, 105, there)
    assert len(second) == 2 * FEWEST
    assert not fetched(around, 106, there | second)
    assert len(fetched(around, 160, there | second)) == FEWEST


def test_who_reads_few_of_many_files_brings_few() -> None:
    around, there = Around(), set[int]()
    for number in range(10_000, 100_000, 200):
        found = fetched(around, number, there)
        there |= found | {number}
        assert len(found) <= FEWEST
    assert len(around._unread) < 2000


def test_a_reader_that_goes_on_gets_more_each_time() -> None:
    sequences = Sequences(16)
    ahead = [sequences.read(1, 100 * n, 100 * (n + 1), 1) for n in range(6)]
    assert ahead == [2, 4, 8, 16, 16, 16]
    assert sequences.read(1, 5000, 5100, 1) == 0  # elsewhere
    assert sequences.read(1, 0, 100, 5) == 5  # from the beginning again, with large requests


def test_only_so_many_readers_are_remembered() -> None:
    sequences = Sequences(16)
    for ino in range(1000):
        sequences.read(ino, 0, 100, 1)
    assert len(sequences._next) == FILES
