"""Sets of keys in memory: sorted, bounded, true while names change."""

from __future__ import annotations

import random

import pytest

from nnfs.fs.keysets import KeySet, KeySets


def test_numbers_are_a_sorted_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnfs.fs.keysets.RUN", 4)
    rng = random.Random(6)
    for _ in range(30):
        model = {rng.randrange(100) for _ in range(rng.randrange(60))}
        numbers = KeySet(model)
        for _ in range(150):
            number = rng.randrange(100)
            if rng.random() < 0.5:
                model.add(number)
                numbers.add(number)
            else:
                model.discard(number)
                numbers.discard(number)
            ordered = sorted(model)
            assert len(numbers) == len(model)
            assert numbers.above(-1, 1000) == ordered
            low = rng.randrange(100)
            assert (low in numbers) == (low in model)
            assert numbers.above(low, 7) == [n for n in ordered if n > low][:7]
            assert list(numbers.between(low, low + 9)) == [n for n in ordered if low <= n <= low + 9]


def test_known_sets_are_bounded() -> None:
    known = KeySets(limit=1000)
    for ino in range(100):
        known.put(ino, KeySet(range(100)))
    kept = [ino for ino in range(100) if known.peek(ino) is not None]
    assert kept == list(range(93, 100))
    known.put(7, KeySet(range(5000)))
    assert [ino for ino in range(100) if known.peek(ino) is not None] == [7, 99]
    known.note(7, 6000, present=True)
    known.note(5, 1, present=True)
    found = known.get(7)
    assert found is not None
    assert 6000 in found
    for ino in (7, 99):
        known.drop(ino)
    assert known._size == 0
