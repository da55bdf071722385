"""The order in which a tree is read: that in which its directories were listed, by most programs (tar, find, grep)."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

DIRECTORIES, FILES = 64, 1 << 16  # whose order is remembered
SKIPPED = 8  # files in a row that a reader may pass over: the kernel has their content
LEAST = 256 << 10  # plain bytes ahead of a reader that has read two files in order; doubled with each further one


@dataclass(slots=True, eq=False)
class Listing:
    """The files of one directory in their order."""

    files: list[int] = field(default_factory=list)  # inodes
    read: int = -1  # the place of the file that was read last
    begun: int = 0  # the first place from which on nothing is fetched
    ahead: int = 0  # plain bytes of the files that are fetched and not read yet
    _sizes: deque[tuple[int, int]] = field(default_factory=deque)  # places and bytes of these files

    def fetched(self, place: int, size: int) -> None:
        """Note a file that is fetched."""
        self.begun = place + 1
        self.ahead += size
        self._sizes.append((place, size))

    def note_read(self, place: int) -> bool:
        """Note that a file is read. Return whether it is among the next ones."""
        is_next = 0 < place - self.read <= SKIPPED
        self.read = place
        if not is_next:
            self.begun, self.ahead = place + 1, 0
            self._sizes.clear()
        while self._sizes and self._sizes[0][0] <= place:
            self.ahead -= self._sizes.popleft()[1]
        self.begun = max(self.begun, place + 1)
        return is_next


class Listings:
    """The directories that were listed lately, and where their readers are."""

    def __init__(self) -> None:
        self._listings: OrderedDict[int, Listing] = OrderedDict()  # by directory
        self._places: dict[int, tuple[Listing, int]] = {}  # by file
        self._streak = 0  # files that were read in order, in whatever directory

    def begin(self, directory: int) -> None:
        """Note that a directory is listed from its beginning."""
        self._drop(directory)
        while len(self._listings) >= DIRECTORIES:
            self._drop(next(iter(self._listings)))
        self._listings[directory] = Listing()

    def listed(self, directory: int, ino: int) -> None:
        """Note the next file of a listing."""
        listing = self._listings.get(directory)
        if listing is None or len(self._places) >= FILES:
            return
        self._places[ino] = listing, len(listing.files)
        listing.files.append(ino)

    def _drop(self, directory: int) -> None:
        listing = self._listings.pop(directory, None)
        for ino in listing.files if listing else ():
            if self._places.get(ino, (None,))[0] is listing:
                del self._places[ino]

    def read(self, ino: int) -> tuple[Listing, int] | None:
        """Note that a reader begins with a file. Return its listing, and how many bytes should be ahead there.

        None: nothing tells what is read next.
        """
        listing, place = self._places.get(ino, (None, 0))
        if listing is None or place == listing.read:
            return None
        self._streak = self._streak + 1 if listing.note_read(place) else 0
        return (listing, LEAST << min(self._streak - 1, 30)) if self._streak else None
