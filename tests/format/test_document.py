"""The documents: the values that they state are what the second decoder computes, and their lines are short."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.format import example

DOCUMENTS = [example.DOCUMENT, example.ROOT / "nnfs/store/FORMAT.md"]


def test_examples_and_digests_are_what_the_decoder_computes() -> None:
    """`python -m tests.format.example` writes them; what changes there without a new codec id or profile is a bug."""
    text = example.DOCUMENT.read_text()
    assert example.filled(text) == text


@pytest.mark.parametrize("path", DOCUMENTS, ids=[path.parent.name for path in DOCUMENTS])
def test_lines_are_wrapped_at_100_columns(path: Path) -> None:
    """Except for rows of tables."""
    assert [line for line in path.read_text().splitlines() if len(line) > 100 and not line.startswith("|")] == []
