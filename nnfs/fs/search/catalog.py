"""The names and the signs of all vectors of a store, in memory while somebody searches.

A catalog is a list of batches in the order of the dentry table. Changes by commits are noted, and the batches in which
they lie are loaded again before the next question. Batches beyond a limit of memory are not kept: each question reads
them from the store. One thread asks at a time; the loop may note changes meanwhile.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from nnfs.fs.search.batch import ROWS, Batch, Folder, load
from nnfs.store import schema
from nnfs.store.env import Store
from nnfs.store.moments import PAST
from nnfs.store.txn import Snapshot

END = schema.KEY.pack(PAST)  # the live tree's keys are below it
MOST_CHANGES = 100_000  # noted between two questions, then everything is loaded again
REST_S = 0.001  # after each batch: loading shares the interpreter with the event loop


class Folders:
    """All directories by their inode numbers: parents, paths."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        found = {schema.ROOT_INO: (-1, Folder(0, schema.ROOT_INO, schema.ROOT_INO, b""))}
        for place, batch in enumerate(batches):
            found.update((folder.ino, (place, folder)) for folder in batch.folders)
        self.inos = np.array(sorted(found), np.uint64)
        self._folders = [found[ino] for ino in self.inos.tolist()]
        batches_of = np.array([place for place, _ in self._folders], np.int64)
        self.order = np.argsort(batches_of, kind="stable")  # the directories by the batch that has them
        self.by_batch = batches_of[self.order]
        self.rows = np.array([folder.row for _, folder in self._folders], np.int64)
        self.parents = self.index(np.array([folder.parent for _, folder in self._folders], np.uint64))
        self._paths: dict[int, bytes] = {}

    def index(self, inos: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the places of directories in `inos`; that of the root for those that are not there."""
        places = np.minimum(np.searchsorted(self.inos, inos), len(self.inos) - 1)
        root = int(np.searchsorted(self.inos, np.uint64(schema.ROOT_INO)))
        return np.where(self.inos[places] == inos, places, root)

    def inherited(self, scores: NDArray[np.int16]) -> NDArray[np.int16]:
        """Return for each directory the largest score that it or one above it has."""
        best, parents = scores, self.parents
        for _ in range(len(parents).bit_length()):
            above = np.maximum(best, best[parents])
            further = parents[parents]
            if np.array_equal(above, best) and np.array_equal(further, parents):
                break
            best, parents = above, further
        return best

    def path(self, ino: int) -> bytes | None:
        """Return the path of a directory, "" for the root; None if there is no such directory, or no way to it."""
        way: list[int] = []
        at = ino
        while at not in self._paths and at != schema.ROOT_INO:
            place = int(np.searchsorted(self.inos, np.uint64(at)))
            if place >= len(self.inos) or int(self.inos[place]) != at or len(way) > len(self.inos):
                return None
            way.append(place)
            at = self._folders[place][1].parent
        path = self._paths.get(at, b"")
        for place in reversed(way):
            folder = self._folders[place][1]
            path = self._paths[folder.ino] = path + b"/" + folder.name
        return path


class Catalog:
    """The names of a store, as of its last commit when `refresh` is called. `limit` is in bytes of memory."""

    def __init__(self, store: Store, limit: int) -> None:
        self._store, self.limit = store, limit
        self._lows: list[bytes] = []
        self._batches: list[Batch | None] = []  # None: not kept
        self._folders: Folders | None = None
        self._lock = threading.Lock()
        self._keys: list[bytes] = []
        self._inos: list[int] = []
        self._is_lost = False  # changes were more than are noted
        self._is_loaded = False

    def note(self, keys: Iterable[bytes], inos: Iterable[int]) -> None:
        """Note that a commit has changed names, and vectors of files. Any thread may call it."""
        if not self._is_loaded:
            return
        with self._lock:
            self._keys.extend(keys)
            self._inos.extend(inos)
            if len(self._keys) + len(self._inos) > MOST_CHANGES:
                self._is_lost = True
                self._keys, self._inos = [], []

    def clear(self) -> None:
        """Let go of the memory: the next question loads everything again."""
        with self._lock:
            self._is_loaded, self._is_lost = False, False
            self._keys, self._inos = [], []
        self._lows, self._batches, self._folders = [], [], None

    @property
    def nbytes(self) -> int:
        """The memory that is taken."""
        return sum(batch.nbytes for batch in self._batches if batch is not None)

    @property
    def rows(self) -> int:
        """The number of names, about."""
        return sum(ROWS if batch is None else len(batch) for batch in self._batches)

    @property
    def is_whole(self) -> bool:
        """Whether everything is in memory."""
        return None not in self._batches

    def refresh(self, wait: Callable[[float], None] = time.sleep) -> None:
        """Load what is not loaded, and again what has changed. Raises `StoreDamaged` for damaged pages."""
        with self._lock:
            keys, inos, lost = self._keys, self._inos, self._is_lost
            self._keys, self._inos, self._is_lost = [], [], False
            fresh = not self._is_loaded or lost
            self._is_loaded = True  # from now on changes are noted
        try:
            if fresh:
                self._lows, self._batches, self._folders = [], [], None
                self._load(wait)
                keys, inos = [], []
            for place in sorted(self._stale(keys), reverse=True):
                self._reload(place)
            self._renew(inos)
        except BaseException:
            self.clear()
            raise

    def _load(self, wait: Callable[[float], None]) -> None:
        low, size = b"", 0
        while True:
            with self._store.read() as snapshot:
                batch, end = load(snapshot, low, END, ROWS)
            size += batch.nbytes
            self._lows.append(low)
            self._batches.append(batch if size <= self.limit else None)
            if end == END:
                return
            low = end
            wait(REST_S)

    def _stale(self, keys: Iterable[bytes]) -> set[int]:
        return {bisect.bisect_right(self._lows, key) - 1 for key in keys}

    def _reload(self, place: int) -> None:
        """Load a batch again; one that has grown becomes several."""
        self._folders = None
        if self._batches[place] is None:
            return
        low, high = self._lows[place], self._high(place)
        found: list[Batch] = []
        with self._store.read() as snapshot:
            while low != high:
                batch, low = load(snapshot, low, high, 2 * ROWS if not found else ROWS)
                found.append(batch)
        self._lows[place : place + 1] = [batch.low for batch in found]
        room = self.limit - self.nbytes + (self._batches[place] or found[0]).nbytes
        self._batches[place : place + 1] = [batch if batch.nbytes <= room else None for batch in found]

    def _high(self, place: int) -> bytes:
        return self._lows[place + 1] if place + 1 < len(self._lows) else END

    def _renew(self, inos: list[int]) -> None:
        """Load the vectors again of the batches that have one of these files."""
        if not inos:
            return
        changed = np.unique(np.array(inos, np.uint64))
        with self._store.read() as snapshot:
            for batch in self._batches:
                if batch is not None and np.isin(batch.inos, changed).any():
                    batch.load_bits(snapshot)

    def batches(self, snapshot: Snapshot) -> Iterator[Batch]:
        """Yield all batches. Those that are not kept are read from the store."""
        for place, batch in enumerate(self._batches):
            yield batch if batch is not None else load(snapshot, self._lows[place], self._high(place), 1 << 30)[0]

    def batch(self, snapshot: Snapshot, place: int) -> Batch:
        """Return one of the batches."""
        kept = self._batches[place]
        return kept if kept is not None else load(snapshot, self._lows[place], self._high(place), 1 << 30)[0]

    def folders(self, snapshot: Snapshot) -> Folders:
        """Return all directories."""
        if self._folders is None or not self.is_whole:
            self._folders = Folders(self.batches(snapshot))
        return self._folders
