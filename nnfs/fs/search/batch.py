"""A batch: some thousand names in the order of the dentry table, as arrays that a question is compared with at once."""

from __future__ import annotations

import stat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnfs.store import schema, vectors
from nnfs.store.txn import Snapshot

ROWS = 8192  # names of a batch, as it is loaded: what is looked up again after a change
WORDS64 = vectors.DIMENSIONS // 64
SEPARATOR = 0x2F  # "/": no name has one
DIR, FILE = stat.S_IFDIR >> 12, stat.S_IFREG >> 12

_INO, _KIND, _NAME = slice(0, 8), 8, slice(17, -8)  # of a dentry's record
_VALUES = vectors.RECORD_SIZE - 8 - vectors.DIMENSIONS  # where a vector's numbers begin


class Folder(NamedTuple):
    """A directory among the names of a batch."""

    row: int
    ino: int
    parent: int
    name: bytes


class Batch:
    """Names with keys from `low` on. Nothing in it is proved: whatever is shown of it is looked up and proved first."""

    __slots__ = ("bits", "cookies", "folders", "inos", "known", "low", "names", "parents", "starts")

    def __init__(self, low: bytes, keys: list[bytes], records: list[bytes]) -> None:
        self.low = low
        at = np.frombuffer(b"".join(keys), ">u8").reshape(-1, 2)
        self.parents, self.cookies = at[:, 0].astype(np.uint64), at[:, 1].astype(np.uint64)
        self.inos = np.frombuffer(b"".join(record[_INO] for record in records), ">u8").astype(np.uint64)
        names = [record[_NAME] for record in records]
        self.names = folded(b"/" + b"".join(name + b"/" for name in names))
        self.starts = np.flatnonzero(np.frombuffer(self.names, np.uint8) == SEPARATOR).astype(np.uint32)
        self.folders = [
            Folder(row, int(self.inos[row]), int(self.parents[row]), names[row])
            for row, record in enumerate(records)
            if record[_KIND] == DIR
        ]
        self.bits = np.zeros((WORDS64, len(self)), np.uint64)
        self.known = np.zeros(len(self), np.bool_)

    def __len__(self) -> int:
        return len(self.inos)

    @property
    def nbytes(self) -> int:
        """The memory that it takes, about."""
        arrays = (self.parents, self.cookies, self.inos, self.starts, self.bits, self.known)
        return sum(array.nbytes for array in arrays) + len(self.names) + 300 * len(self.folders)

    def key(self, row: int) -> bytes:
        return schema.KEY2.pack(int(self.parents[row]), int(self.cookies[row]))

    def name(self, row: int) -> bytes:
        """Return a name as it is compared, folded."""
        return self.names[self.starts[row] + 1 : self.starts[row + 1]]

    def load_bits(self, snapshot: Snapshot) -> None:
        """Load the signs of the files' vectors, of all rows anew."""
        self.known[:] = False
        if not len(self):
            return
        unique, where = np.unique(self.inos, return_inverse=True)
        found = vectors.some(snapshot, [schema.KEY.pack(ino) for ino in unique.tolist()])
        sound = {key: record for key, record in found.items() if len(record) == vectors.RECORD_SIZE}
        if not sound:
            return
        bits = np.zeros((len(unique), WORDS64), np.uint64)
        known = np.zeros(len(unique), np.bool_)
        places = np.searchsorted(unique, np.frombuffer(b"".join(sound), ">u8").astype(np.uint64))
        records = np.frombuffer(b"".join(sound.values()), np.uint8).reshape(-1, vectors.RECORD_SIZE)
        bits[places] = signs(records[:, _VALUES : _VALUES + vectors.DIMENSIONS])
        known[places] = True
        self.bits, self.known = np.ascontiguousarray(bits[where].T), known[where]


def signs(values: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the signs of vectors (files, numbers) as bits: (files, words)."""
    return np.packbits(values < 128, axis=1).view(np.uint64)


def folded(text: bytes) -> bytes:
    """Return names without the difference of upper and lower case."""
    if text.isascii():
        return text.lower()
    return text.decode("utf-8", "surrogateescape").casefold().encode("utf-8", "surrogateescape")


def load(snapshot: Snapshot, low: bytes, high: bytes, most: int) -> tuple[Batch, bytes]:
    """Load at most `most` names with keys from `low` on and below `high`. Return them, and the key to go on with."""
    keys: list[bytes] = []
    records: list[bytes] = []
    end = high
    for key, record in snapshot.range("dentry", low, high):
        if len(keys) >= most:
            end = key
            break
        if len(key) == schema.KEY2.size and len(record) > _NAME.start + 8:
            keys.append(key)
            records.append(record)
    batch = Batch(low, keys, records)
    batch.load_bits(snapshot)
    return batch, end
