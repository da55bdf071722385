"""Answering a question: all names at once, roughly; then the best of them exactly, from proved records."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnfs.errors import StoreDamaged, UsageError
from nnfs.fs.search import words
from nnfs.fs.search.batch import FILE, Batch
from nnfs.fs.search.catalog import Catalog, Folders
from nnfs.fs.search.question import NO_FILTERS, Coarse, Filters, Question, chance, least_agreement
from nnfs.store import schema, vectors
from nnfs.store.env import Store
from nnfs.store.moments import PAST
from nnfs.store.schema import Dentry, Inode
from nnfs.store.txn import Snapshot

THREADS = 2
AT_ONCE = 512  # names that are looked at exactly, the best first
MOST = 10_000  # answers


@dataclass(frozen=True, slots=True)
class Wanted:
    """The number of answers that are wanted, and of which kind. After `seconds` the search ends with what it has."""

    filters: Filters = NO_FILTERS
    count: int = 20
    below: int = schema.ROOT_INO
    without: int = 0  # inode number of a file that is no answer
    seconds: float = 10.0


class Look(NamedTuple):
    """A batch as seen by a question: how well its names fit, and the signs of its vectors."""

    rows: int
    scores: list[words.Scores | None]  # of each word
    agreement: Coarse | None


@dataclass(slots=True)
class Answer:
    """The answers, best first; whether there may be more, and whether everything was looked at."""

    found: list[dict[str, Any]]
    more: bool = False
    complete: bool = True

    def as_dict(self) -> dict[str, Any]:
        return {"found": self.found, "more": self.more, "complete": self.complete}


def search(store: Store, catalog: Catalog, question: Question, wanted: Wanted) -> Answer:
    """Return the best answers to a question, as of the store's last commit. Slow: call it in a thread.

    Raises `UsageError`, and `StoreDamaged` for damaged pages. Names and files that are damaged are no answers.
    """
    if wanted.below >= PAST:
        raise UsageError("what is searched is what there is now, not a snapshot: give a path outside of it")
    catalog.refresh()
    until = time.monotonic() + wanted.seconds
    with store.read() as snapshot:
        return _Search(snapshot, catalog, question, wanted, until).run()


class _Search:
    """One question, within one read txn."""

    def __init__(self, snapshot: Snapshot, catalog: Catalog, question: Question, wanted: Wanted, until: float) -> None:
        self._snapshot, self._catalog, self._question = snapshot, catalog, question
        self._wanted, self._until = wanted, until
        self._folders = catalog.folders(snapshot)
        self._base = self._folders.path(wanted.below)
        self._lexical: list[Coarse] = []
        self._firsts = np.zeros(1, np.int64)  # of each batch: the number of its first row among all
        self._chance = 0.0

    def run(self) -> Answer:
        if self._base is None:
            raise UsageError("there is no such directory in the store any more")
        coarse = self._coarse()
        self._chance = chance(len(coarse))
        answer = Answer([])
        for rows in self._best_first(coarse):
            for score, key in sorted(self._exact(rows)):
                found = self._shown(-score, key)
                if found is None:
                    continue
                if len(answer.found) == self._wanted.count:
                    answer.more = True
                    return answer
                answer.found.append(found)
            if time.monotonic() > self._until:
                answer.complete = False
                break
        return answer

    def _coarse(self) -> Coarse:
        """Return about the scores of all names, 0 of those that are no answers."""
        looks = self._looks()
        self._firsts = np.cumsum(np.array([0, *(look.rows for look in looks)], np.int64))
        above, inside = self._above(looks), self._inside()
        if above is None and inside is None:
            self._lexical = [_lexical(look) for look in looks]
            found = [
                self._question.coarse(*one)
                for one in zip(self._lexical, (look.agreement for look in looks), strict=True)
            ]
            return np.concatenate(found)
        found = []
        for look, batch in zip(looks, self._catalog.batches(self._snapshot), strict=True):
            parents = _parents(batch, self._folders)
            lexical = _lexical(look, above, parents)
            coarse = self._question.coarse(lexical, look.agreement)
            if inside is not None:
                coarse[~inside[parents]] = 0
            self._lexical.append(lexical)
            found.append(coarse)
        return np.concatenate(found)

    def _looks(self) -> list[Look]:
        """Look at all batches: in several threads, if all are in memory."""
        least = least_agreement(self._catalog.rows)

        def look(batch: Batch) -> Look:
            scores = [words.scores(batch, word) for word in self._question.words]
            return Look(len(batch), scores, self._question.target.agreement(batch, least))

        batches = self._catalog.batches(self._snapshot)
        if not self._catalog.is_whole:
            return [look(batch) for batch in batches]
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(look, batches))

    def _above(self, looks: list[Look]) -> NDArray[np.int16] | None:
        """Return how well each word fits the names of each directory and those above it; None if none fits any."""
        folders = self._folders
        above = np.zeros((len(self._question.words), len(folders.inos)), np.int16)
        for place, look in enumerate(looks):
            here = slice(*np.searchsorted(folders.by_batch, (place, place + 1)))
            for number, scores in enumerate(look.scores):
                if scores is not None:
                    above[number, folders.order[here]] = scores[folders.rows[folders.order[here]]]
        if not above.any():
            return None
        return np.array([folders.inherited(row) // words.ABOVE for row in above], np.int16)

    def _inside(self) -> NDArray[np.bool_] | None:
        """Return for each directory whether it is where answers may lie, None where all are."""
        if self._wanted.below == schema.ROOT_INO:
            return None
        return self._folders.inherited((self._folders.inos == self._wanted.below).astype(np.int16)) > 0

    def _best_first(self, coarse: Coarse) -> Iterator[NDArray[np.int64]]:
        """Yield the rows with scores above 0, `AT_ONCE` at a time, the best first.

        Without filters, content alone makes answers only of the first ones.
        """
        rows = np.flatnonzero(coarse)
        if len(rows) > AT_ONCE:
            best = np.argpartition(coarse[rows], len(rows) - AT_ONCE)[len(rows) - AT_ONCE :]
            yield rows[best]
            rows = np.delete(rows, best)
            if self._wanted.filters == NO_FILTERS:
                rows = rows[np.concatenate(self._lexical)[rows] > 0]
            rows = rows[np.argsort(-coarse[rows], kind="stable")]
        for at in range(0, len(rows), AT_ONCE):
            yield rows[at : at + AT_ONCE]

    def _exact(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield the scores of rows, negative, and batch and row, for those that are answers."""
        places = np.searchsorted(self._firsts, rows, "right") - 1
        batches = {place: self._catalog.batch(self._snapshot, place) for place in np.unique(places).tolist()}
        at = [(place, row) for place, row in zip(places.tolist(), (rows - self._firsts[places]).tolist(), strict=True)]
        values = self._vectors([int(batches[place].inos[row]) for place, row in at])
        cosines = self._question.target.cosines(values)
        for (place, row), cosine in zip(at, cosines.tolist(), strict=True):
            lexical = int(self._lexical[place][row])
            score = self._question.score(batches[place].name(row), lexical, cosine, self._chance)
            if score:
                yield -score, (place, row)

    def _vectors(self, inos: list[int]) -> list[bytes]:
        """Return the vectors of files, "" for one that has none or has changed since."""
        keys = [schema.KEY.pack(ino) for ino in inos]
        records = vectors.some(self._snapshot, keys)
        found = []
        for ino, key in zip(inos, keys, strict=True):
            block = vectors.first_block(self._snapshot, ino) if key in records else 0
            vector = vectors.valid(key, records[key], block) if block else None
            found.append(vector.values if vector is not None else b"")
        return found

    def _shown(self, score: int, at: tuple[int, int]) -> dict[str, Any] | None:
        """Return an answer as it is shown, None for what is damaged, gone, or not wanted."""
        batch = self._catalog.batch(self._snapshot, at[0])
        key = batch.key(at[1])
        try:
            record = self._snapshot.get("dentry", key)
            dentry = Dentry.unpack(key, record) if record is not None else None
            inode = self._inode(dentry.ino) if dentry is not None else None
        except StoreDamaged:
            return None
        folder = self._folders.path(int(batch.parents[at[1]]))
        if dentry is None or inode is None or folder is None or inode.ino == self._wanted.without:
            return None
        path = (folder + b"/" + dentry.name).removeprefix(self._base or b"").lstrip(b"/")
        if not self._wanted.filters.passes(inode, path):
            return None
        return {
            "path": path.decode("utf-8", "surrogateescape"), "score": score, "ino": inode.ino, "mode": inode.mode,
            "size": inode.size if dentry.kind == FILE else 0, "mtime": inode.mtime, "uid": inode.uid,
        }  # fmt: skip

    def _inode(self, ino: int) -> Inode | None:
        record = self._snapshot.get("inode", schema.inode_key(ino))
        return Inode.unpack(ino, record) if record is not None else None


def _parents(batch: Batch, folders: Folders) -> NDArray[np.int64]:
    """Return the places of the rows' directories. Rows of one directory stand together."""
    firsts = np.concatenate(([0], np.flatnonzero(np.diff(batch.parents)) + 1)) if len(batch) else np.zeros(0, np.int64)
    counts = np.diff(np.append(firsts, len(batch)))
    return np.repeat(folders.index(batch.parents[firsts]), counts)


def _lexical(look: Look, above: NDArray[np.int16] | None = None, parents: NDArray[np.int64] | None = None) -> Coarse:
    """Return how well the words fit each row, 100 at most: by its own name, or by one of a directory above it."""
    total = np.zeros(look.rows, np.int16)
    for number, scores in enumerate(look.scores):
        inherited = above[number] if above is not None else None
        if inherited is not None and parents is not None and inherited.any():
            from_above = inherited[parents]
            total += from_above if scores is None else np.maximum(scores, from_above)
        elif scores is not None:
            total += scores
    return total if len(look.scores) < 2 else total // np.int16(len(look.scores))
