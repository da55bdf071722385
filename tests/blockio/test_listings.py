"""Files in the order in which their directory was listed."""

from __future__ import annotations

from nnfs.blockio.listings import DIRECTORIES, FILES, LEAST, SKIPPED, Listings


def listed(directory: int, *files: int) -> Listings:
    listings = Listings()
    listings.begin(directory)
    for ino in files:
        listings.listed(directory, ino)
    return listings


def ahead(listings: Listings, ino: int) -> int:
    """Return how many bytes should be ahead of a reader of a file; 0: nothing tells what is next."""
    found = listings.read(ino)
    return 0 if found is None else found[1]


def test_who_reads_in_order_gets_more_each_time() -> None:
    listings = listed(1, *range(100, 200))
    assert [ahead(listings, ino) for ino in (100, 101, 102, 104)] == [LEAST, 2 * LEAST, 4 * LEAST, 8 * LEAST]
    assert ahead(listings, 104) == 0  # the same again
    assert ahead(listings, 104 + SKIPPED) == 16 * LEAST
    assert ahead(listings, 105 + 2 * SKIPPED) == 0  # elsewhere
    assert ahead(listings, 106 + 2 * SKIPPED) == LEAST
    assert ahead(listings, 100) == 0
    assert ahead(listings, 5) == 0  # never listed


def test_a_directory_below_is_read_in_between() -> None:
    listings = listed(1, *range(100, 110))
    ahead(listings, 100)
    listings.begin(2)
    for ino in range(200, 205):
        listings.listed(2, ino)
    assert [ahead(listings, ino) for ino in (200, 201, 101)] == [2 * LEAST, 4 * LEAST, 8 * LEAST]


def test_what_is_ahead() -> None:
    listings = listed(1, *range(100, 150))
    found = listings.read(100)
    assert found
    listing = found[0]
    assert (listing.begun, listing.ahead) == (1, 0)
    for place in range(1, 5):
        listing.fetched(place, 1000)
    assert (listing.begun, listing.ahead) == (5, 4000)
    listings.read(102)
    assert (listing.begun, listing.ahead) == (5, 2000)
    listings.read(107)
    assert (listing.begun, listing.ahead) == (8, 0)
    listing.fetched(8, 1000)
    listings.read(130)
    assert (listing.begun, listing.ahead) == (31, 0)


def test_a_listing_that_begins_again_replaces_the_first() -> None:
    listings = listed(1, 100, 101, 102)
    listings.begin(1)
    for ino in (102, 100):
        listings.listed(1, ino)
    assert ahead(listings, 102)
    assert ahead(listings, 100)
    assert not ahead(listings, 101)


def test_little_is_remembered() -> None:
    listings = Listings()
    for directory in range(2 * DIRECTORIES):
        listings.begin(directory)
        for n in range(10):
            listings.listed(directory, 1000 * directory + n)
    assert len(listings._listings) == DIRECTORIES
    assert len(listings._places) == 10 * DIRECTORIES
    listings.begin(1)
    for ino in range(10**6, 10**6 + 2 * FILES):
        listings.listed(1, ino)
    assert len(listings._places) == FILES
