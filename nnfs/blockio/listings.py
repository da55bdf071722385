"""The order in which a tree is read: that in which its directories are listed, by most programs (tar, find, grep).

A `Walk` is the way of one reader through a tree, depth first: the rest of the directory that it reads, what lies below
the directories in between, listed for it before it does so itself, and then the rest of the directory above.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from nnfs.blockio.interfaces import Files
from nnfs.errors import NnfsError
from nnfs.store.schema import Inode

DIRECTORIES, ENTRIES = 64, 1 << 16  # whose order is remembered
SKIPPED = 8  # entries in a row that a reader may pass over: the kernel has their content
LEAST = 256 << 10  # plain bytes ahead of a reader that has read two files in order; doubled with each further one
WALKS = 4  # readers of trees at a time
PAGE = 64  # entries that are listed for a walk at a time
LARGE = 4096  # entries of a directory that is not listed for a walk: proving it would hold up requests
HIGHEST = 64  # directories that a walk goes up: what was moved meanwhile may lie below itself


@dataclass(slots=True, eq=False)
class Listing:
    """The files and directories in one directory, in their order."""

    directory: int
    entries: list[int] = field(default_factory=list)  # inodes
    read: int = -1  # the place of the file that was read last

    def note_read(self, place: int) -> bool:
        """Note that a file is read. Return whether it is among the next ones."""
        is_next = 0 < place - self.read <= SKIPPED
        self.read = place
        return is_next


class Walk:
    """The files that a reader will read next, in its order, and those of them that are fetched."""

    def __init__(self, coming: Iterator[Inode]) -> None:
        self.coming = coming  # files and directories of which nothing is fetched
        self.ahead = 0  # plain bytes of the files that are fetched and not read yet
        self._order: deque[tuple[int, int]] = deque()  # inodes and bytes of these files
        self._fetched: set[int] = set()

    def __contains__(self, ino: int) -> bool:
        """Return whether a file is fetched, and not read yet."""
        return ino in self._fetched

    def fetched(self, ino: int, size: int) -> None:
        """Note a file that is fetched."""
        if ino not in self._fetched:
            self.ahead += size
            self._order.append((ino, size))
            self._fetched.add(ino)

    def note_read(self, ino: int) -> None:
        """Note that a file is read that is fetched: those before it were passed over."""
        while ino in self._fetched:
            passed, size = self._order.popleft()
            self._fetched.remove(passed)
            self.ahead -= size


class Listings:
    """The directories that were listed lately, and the walks of those who read them."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._listings: OrderedDict[int, Listing] = OrderedDict()  # by directory
        self._places: dict[int, tuple[Listing, int]] = {}  # by entry
        self._walks: deque[Walk] = deque(maxlen=WALKS)
        self._streak = 0  # files that were read in order, in whatever directory

    def begin(self, directory: int) -> None:
        """Note that a directory is listed from its beginning."""
        self._drop(directory)
        while len(self._listings) >= DIRECTORIES:
            self._drop(next(iter(self._listings)))
        self._listings[directory] = Listing(directory)

    def listed(self, directory: int, ino: int) -> None:
        """Note the next file or directory of a listing."""
        listing = self._listings.get(directory)
        if listing is None or len(self._places) >= ENTRIES:
            return
        self._places[ino] = listing, len(listing.entries)
        listing.entries.append(ino)

    def _drop(self, directory: int) -> None:
        listing = self._listings.pop(directory, None)
        for ino in listing.entries if listing else ():
            if self._places.get(ino, (None,))[0] is listing:
                del self._places[ino]

    def read(self, ino: int) -> tuple[Walk, int] | None:
        """Note that a reader begins with a file. Return its walk, and how many bytes should be ahead there.

        None: nothing tells what is read next.
        """
        walk = next((walk for walk in self._walks if ino in walk), None)
        listing, place = self._places.get(ino, (None, 0))
        if walk is None and (listing is None or place == listing.read):
            return None
        is_next = listing is not None and listing.note_read(place)
        if walk is not None:
            walk.note_read(ino)
        elif listing is not None and is_next:
            walk = Walk(self._after(listing, place))
            self._walks.append(walk)
        self._streak = 0 if walk is None else self._streak + 1
        return None if walk is None else (walk, LEAST << min(self._streak - 1, 30))

    def _after(self, listing: Listing | None, place: int) -> Iterator[Inode]:
        """Yield what comes after a place of a listing, and then after that directory in the one above."""
        for _ in range(HIGHEST):
            if listing is None:
                return
            while place + 1 < len(listing.entries):
                place += 1
                yield from self._below(listing.entries[place])
            listing, place = self._places.get(listing.directory, (None, 0))

    def _below(self, top: int) -> Iterator[Inode]:
        """Yield an entry, and all below it if it is a directory, but for those that are gone or damaged."""
        open_ones: list[Iterator[int]] = [iter([top])]
        while open_ones:
            ino = next(open_ones[-1], None)
            if ino is None:
                open_ones.pop()
                continue
            with contextlib.suppress(NnfsError):
                inode = self._files.inode(ino)
                yield inode
                if inode.is_directory and inode.count <= LARGE:
                    open_ones.append(self._children(inode))

    def _children(self, directory: Inode) -> Iterator[int]:
        cookie = 0
        with contextlib.suppress(NnfsError):
            while page := self._files.children(directory, cookie, PAGE):
                yield from (ino for _, ino in page)
                cookie = page[-1][0]
