"""Words in names: how well the words of a question fit names, and how alike two names are."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from nnfs.fs.search.batch import Batch, folded

# How well a word fits a name: it is the name, or all before its ending; one of its words; the beginning of one; a part.
WHOLE, WORD, BEGINNING, PART = 100, 80, 60, 40
ABOVE = 2  # a directory's name counts so many times less for what lies below it
AT_ONCE = 3  # letters of a word that are compared in all places
ENDING = 3  # weight of a name's ending beside that of three letters

_IN_WORDS = np.zeros(256, np.bool_)
_IN_WORDS[[*range(0x30, 0x3A), *range(0x61, 0x7B), *range(0x80, 0x100)]] = True  # digits, letters, all that is no ASCII

Scores = NDArray[np.int16]


def words_of(text: bytes) -> list[bytes]:
    """Return the words of a question, each once: what stands between white space and slashes."""
    return list(dict.fromkeys(folded(text).replace(b"/", b" ").split()))


def scores(batch: Batch, word: bytes) -> Scores | None:
    """Return how well a word fits each name of a batch, None if it fits none."""
    places = _places(batch, word)
    if not len(places):
        return None
    found = np.zeros(len(batch), np.int16)
    text = np.frombuffer(batch.names, np.uint8)
    before, after = text[places - 1], text[places + len(word)]
    begins, ends = ~_IN_WORDS[before], ~_IN_WORDS[after]
    value = np.where(begins, np.where(ends, WORD, BEGINNING), PART).astype(np.int16)
    value[(before == ord("/")) & ((after == ord("/")) | (after == ord(".")))] = WHOLE
    rows = np.searchsorted(batch.starts, places, "right") - 1
    np.maximum.at(found, rows, value)
    return found


def _places(batch: Batch, word: bytes) -> NDArray[np.int64]:
    """Return where a word stands in the names of a batch. numpy lets go of the GIL, which `bytes.find` does not."""
    text = np.frombuffer(batch.names, np.uint8)
    end = len(text) - len(word)  # a separator follows the last name
    if end <= 0:
        return np.zeros(0, np.int64)
    found = text[:end] == word[0]
    for offset, letter in enumerate(word[1:AT_ONCE], start=1):
        found &= text[offset : end + offset] == letter
    places = np.flatnonzero(found)
    for offset, letter in enumerate(word[AT_ONCE:], start=AT_ONCE):
        places = places[text[places + offset] == letter]
    return places


class Name:
    """A name that others are compared with: by their groups of three letters, and by the ending."""

    def __init__(self, name: bytes) -> None:
        groups = _groups(name)
        self._counts = Counter(groups)
        self._ending = _ending(name)
        self._length = math.sqrt(len(groups) + ENDING * ENDING)

    def likeness(self, name: bytes) -> float:
        """Return the cosine between two names, about: 1 for equal ones, 0 for those that share nothing."""
        groups, count = _groups(name), self._counts.get
        shared = sum(count(group, 0) for group in groups)
        if self._ending and _ending(name) == self._ending:
            shared += ENDING * ENDING
        return min(1.0, shared / (self._length * math.sqrt(len(groups) + ENDING * ENDING)))


def _groups(name: bytes) -> list[bytes]:
    text = b" " + name + b" "
    return [text[at : at + 3] for at in range(len(text) - 2)]


def _ending(name: bytes) -> bytes:
    stem, dot, ending = name.rpartition(b".")
    return ending if dot and stem else b""
