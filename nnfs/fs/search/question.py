"""Questions: words, or a file that others are compared with; and the filters that answers must pass."""

from __future__ import annotations

import fnmatch
import math
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nnfs.errors import UsageError
from nnfs.fs.search import content, words
from nnfs.fs.search.batch import Batch, folded, signs
from nnfs.store.schema import Inode
from nnfs.store.vectors import DIMENSIONS

KINDS = {"f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK}
MOST_WORDS = 4  # of the name of a file that others are compared with
HALF = np.int16(DIMENSIONS // 2)

Coarse = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Filters:
    """Conditions that an answer must meet. Sizes are bytes, times ns; the path is a glob over paths below PATH."""

    kinds: frozenset[int] = frozenset()
    least: int = 0
    most: int | None = None
    since: int | None = None
    until: int | None = None
    path: bytes = b""
    owners: frozenset[int] = frozenset()

    def passes(self, inode: Inode, path: bytes) -> bool:
        """Return whether a file is wanted."""
        sizes = self.least <= inode.size and (self.most is None or inode.size <= self.most)
        times = (self.since is None or inode.mtime >= self.since) and (self.until is None or inode.mtime <= self.until)
        kinds = not self.kinds or stat.S_IFMT(inode.mode) in self.kinds
        owners = not self.owners or inode.uid in self.owners
        return sizes and times and kinds and owners and (not self.path or fnmatch.fnmatchcase(path, self.path))

    @classmethod
    def of(cls, request: dict[str, Any]) -> Filters:
        """Return the filters of a request. Raises `UsageError`."""
        try:
            return cls(
                frozenset(KINDS[kind] for kind in request.get("types", ())),
                int(request.get("least") or 0), _number(request.get("most")),
                _number(request.get("since")), _number(request.get("until")),
                str(request.get("glob") or "").encode("utf-8", "surrogateescape"),
                frozenset(int(owner) for owner in request.get("owners", ())),
            )  # fmt: skip
        except (KeyError, ValueError, TypeError) as error:
            raise UsageError(f"filters that are not understood: {error!r}") from error


NO_FILTERS = Filters()


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


class Target:
    """A vector that others are compared with; "" stands for none, which nothing is like."""

    def __init__(self, values: bytes) -> None:
        self._values = np.frombuffer(values, np.int8).astype(np.int32)
        self._bits = signs(np.frombuffer(values, np.uint8).reshape(1, -1))[0] if values else None

    def agreement(self, batch: Batch, least: int) -> Coarse | None:
        """Return by how many bits more than half the signs of a batch agree; 0 for less than `least`."""
        if self._bits is None or not batch.known.any():
            return None
        counts = [np.bitwise_count(column ^ word) for word, column in zip(self._bits, batch.bits, strict=True)]
        differing = (counts[0] + counts[1]).astype(np.int16)  # two of them fit into a byte
        differing += counts[2] + counts[3]
        agreement: Coarse = HALF - differing
        agreement *= (agreement >= least) & batch.known
        return agreement

    def cosines(self, others: Sequence[bytes]) -> NDArray[np.float64]:
        """Return the cosines with other vectors, 0 for one that is not there."""
        found = np.zeros(len(others))
        there = [place for place, values in enumerate(others) if values]
        if self._bits is None or not there:
            return found
        rows = np.frombuffer(b"".join(others[place] for place in there), np.int8).reshape(len(there), -1)
        wide = rows.astype(np.int32)
        lengths = np.sqrt((wide * wide).sum(axis=1) * float((self._values * self._values).sum()))
        found[there] = (wide @ self._values) / lengths
        return found


class Question(Protocol):
    """Something to be found. Scores are 1000 for the same thing, about."""

    words: list[bytes]  # that names are searched for
    target: Target

    def coarse(self, lexical: Coarse, agreement: Coarse | None) -> Coarse:
        """Return about the scores of a batch. `lexical` are those of the words, 100 at most for each name."""
        ...

    def score(self, name: bytes, lexical: int, cosine: float, chance: float) -> int:
        """Return the score of a name; 0 if it is no answer. Below `chance`, a cosine says nothing."""
        ...


class Words:
    """A question in words: names that have them come first, then files whose beginnings are about them."""

    def __init__(self, text: bytes) -> None:
        self.words = words.words_of(text)
        self.target = Target(content.of_words(text))
        if not self.words:
            raise UsageError("say what to look for: one word at least")

    def coarse(self, lexical: Coarse, agreement: Coarse | None) -> Coarse:
        return 10 * lexical if agreement is None else 10 * lexical + 3 * agreement

    def score(self, name: bytes, lexical: int, cosine: float, chance: float) -> int:
        return 10 * lexical + (round(400 * cosine) if cosine >= chance else 0)


class Likeness:
    """A file that others are compared with, by its beginning and, for less, by its name."""

    SAME_NAME = 0.5  # likeness of names above which content does not matter
    NAME = 0.2  # share of the name

    def __init__(self, name: bytes, head: bytes) -> None:
        self._name = words.Name(folded(name))
        self.target = Target(content.vector(head))
        stem = name.rpartition(b".")[0] or name
        self.words = sorted(words.words_of(stem), key=len)[-MOST_WORDS:]

    def coarse(self, lexical: Coarse, agreement: Coarse | None) -> Coarse:
        return lexical if agreement is None else lexical + 8 * agreement

    def score(self, name: bytes, lexical: int, cosine: float, chance: float) -> int:
        likeness = self._name.likeness(name)
        if cosine < chance and likeness < self.SAME_NAME:
            return 0
        return max(1, round(1000 * (cosine + self.NAME * likeness) / (1 + self.NAME)))


def chance(rows: int) -> float:
    """Return the largest cosine that vectors which share nothing are likely to have with one, if there are so many."""
    return math.sqrt(2 * math.log(max(2, rows)) / DIMENSIONS)


def least_agreement(rows: int) -> int:
    """Return the bits of agreement from which on a row is looked at: of so many, chance brings some thousand there."""
    return max(8, round(6 * math.sqrt(2 * math.log(max(1.0, rows / 4096)))))
