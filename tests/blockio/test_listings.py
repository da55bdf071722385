"""Files in the order in which their directories are listed."""

from __future__ import annotations

from itertools import islice

from nnfs.blockio.listings import DIRECTORIES, ENTRIES, LARGE, LEAST, SKIPPED, Listings, Walk
from nnfs.errors import FsError, RecordDamaged
from nnfs.store.schema import Inode


class Tree:
    """Directories below 100, files from 100 on; those of `gone` and `damaged` cannot be had."""

    def __init__(self, **directories: list[int]) -> None:
        self.directories = {int(name[1:]): entries for name, entries in directories.items()}
        self.gone, self.damaged = set[int](), set[int]()
        self.listed: list[int] = []

    def inode(self, ino: int) -> Inode:
        if ino in self.gone:
            raise FsError(2)
        inode = Inode(ino, 0o100644 if ino >= 100 else 0o040755, 0, 0, 0)
        inode.count = len(self.directories.get(ino, ()))
        return inode

    def children(self, directory: Inode, after: int, limit: int) -> list[tuple[int, int]]:
        if directory.ino in self.damaged:
            raise RecordDamaged("dentry", b"", "missing")
        self.listed.append(directory.ino)
        return list(enumerate(self.directories[directory.ino], 1))[after : after + limit]

    def block_numbers(self, inode: Inode, first: int, last: int) -> list[int]:
        raise NotImplementedError


def listed(tree: Tree, *directories: int) -> Listings:
    listings = Listings(tree)
    for directory in directories:
        again(listings, tree, directory)
    return listings


def again(listings: Listings, tree: Tree, directory: int) -> None:
    listings.begin(directory)
    for ino in tree.directories[directory]:
        listings.listed(directory, ino)


def ahead(listings: Listings, ino: int) -> int:
    """Return how many bytes should be ahead of a reader of a file; 0: nothing tells what is next."""
    found = listings.read(ino)
    return 0 if found is None else found[1]


def coming(listings: Listings, ino: int) -> list[int]:
    """Return what is to come behind a file that is read."""
    found = listings.read(ino)
    return [] if found is None else [inode.ino for inode in islice(found[0].coming, 10_000)]


def test_who_reads_in_order_gets_more_each_time() -> None:
    listings = listed(Tree(d1=list(range(100, 200))), 1)
    assert [ahead(listings, ino) for ino in (100, 101, 102, 104)] == [LEAST, 2 * LEAST, 4 * LEAST, 8 * LEAST]
    assert ahead(listings, 104) == 0  # the same again
    assert ahead(listings, 104 + SKIPPED) == 16 * LEAST
    assert ahead(listings, 105 + 2 * SKIPPED) == 0  # elsewhere
    assert ahead(listings, 106 + 2 * SKIPPED) == LEAST
    assert ahead(listings, 100) == 0
    assert ahead(listings, 5) == 0  # never listed


def test_a_directory_below_is_read_in_between() -> None:
    tree = Tree(d1=[100, 2, 101], d2=[200, 201])
    listings = listed(tree, 1)
    ahead(listings, 100)
    again(listings, tree, 2)
    assert [ahead(listings, ino) for ino in (200, 201, 101)] == [2 * LEAST, 4 * LEAST, 8 * LEAST]


def test_what_comes_is_what_lies_below_and_then_what_lies_above() -> None:
    tree = Tree(d1=[2, 5, 300], d2=[100, 3, 4, 101], d3=[200], d4=[], d5=[400, 401])
    assert coming(listed(tree, 1, 2), 100) == [3, 200, 4, 101, 5, 400, 401, 300]
    assert tree.listed.count(3) == 2  # the second time nothing follows
    assert coming(listed(tree, 2), 100) == [3, 200, 4, 101]  # nobody listed what is above


def test_a_reader_of_what_it_has_not_listed_yet_goes_on() -> None:
    tree = Tree(d1=[2, 3], d2=[100, 101], d3=[200, 201, 202])
    listings = listed(tree, 1, 2)
    found = listings.read(100)
    assert found
    walk = found[0]
    for inode in walk.coming:
        walk.fetched(inode.ino, 1000)
    assert listings.read(200) == (walk, 2 * LEAST)
    assert walk.ahead == 2000
    again(listings, tree, 3)
    assert listings.read(201) == (walk, 4 * LEAST)
    assert listings.read(202) == (walk, 8 * LEAST)
    assert walk.ahead == 0


def test_what_cannot_be_had_is_left_out() -> None:
    tree = Tree(d1=[100, 101, 2, 3, 4, 102], d2=[200], d3=[300], d4=list(range(1000, 1001 + LARGE)))
    tree.gone, tree.damaged = {101, 3}, {2}
    assert coming(listed(tree, 1), 100) == [2, 4, 102]
    assert not tree.listed  # the large one would hold up requests


def test_a_directory_that_was_moved_below_itself_ends() -> None:
    tree = Tree(d1=[100, 2], d2=[1])
    listings = listed(tree, 1, 2)
    tree.directories = {1: [], 2: []}
    assert len(coming(listings, 100)) < 1000


def test_what_is_ahead() -> None:
    walk = Walk(iter(()))
    for ino in range(1, 5):
        walk.fetched(ino, 1000)
    walk.fetched(4, 1000)  # a second name
    assert (4 in walk, 5 in walk, walk.ahead) == (True, False, 4000)
    walk.note_read(2)
    assert (1 in walk, 2 in walk, 3 in walk, walk.ahead) == (False, False, True, 2000)
    walk.note_read(2)
    assert walk.ahead == 2000
    walk.note_read(4)
    assert walk.ahead == 0


def test_a_listing_that_begins_again_replaces_the_first() -> None:
    tree = Tree(d1=[100, 101, 102])
    listings = listed(tree, 1)
    tree.directories[1] = [102, 100]
    again(listings, tree, 1)
    assert ahead(listings, 102)
    assert ahead(listings, 100)
    assert not ahead(listings, 101)


def test_little_is_remembered() -> None:
    listings = Listings(Tree())
    for directory in range(2 * DIRECTORIES):
        listings.begin(directory)
        for n in range(10):
            listings.listed(directory, 1000 * directory + n)
    assert len(listings._listings) == DIRECTORIES
    assert len(listings._places) == 10 * DIRECTORIES
    listings.begin(1)
    for ino in range(10**6, 10**6 + 2 * ENTRIES):
        listings.listed(1, ino)
    assert len(listings._places) == ENTRIES
