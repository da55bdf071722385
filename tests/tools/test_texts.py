"""Tests of tools/lib/texts.py: faults of style are found, and good texts pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.kit import lib

texts = lib("texts")


def faults(source: str) -> list[int]:
    return [line for line, _ in texts.in_python(source)]


@pytest.mark.parametrize(
    "sentence",
    ["What a scrub reads.", "It is there. Who changes it waits.", "A rule: What is new.", "Whatever comes is kept"],
)
def test_a_bare_clause_is_found(sentence: str) -> None:
    assert faults(f'x = 1\n\n\ndef f():\n    """Return it.\n\n    {sentence}\n    """\n') == [7]
    assert faults(f"x = 1\n# {sentence}\n") == [2]
    assert faults(f"x = 1  # {sentence}\n") == [1]
    assert [line for line, _ in texts.in_document(f"# Head\n\n* {sentence}\n")] == [3]


@pytest.mark.parametrize(
    "sentence", ["What is new?", "It says what is new.", "Tell who it was.", "`What` is a name.", "Whatsoever."]
)
def test_other_sentences_pass(sentence: str) -> None:
    assert faults(f'"""Return it.\n\n{sentence}\n"""\n# {sentence}\n') == []
    assert list(texts.in_document(sentence)) == []


def test_a_sentence_over_two_lines_is_one() -> None:
    assert faults("# It ends. What goes on\n# here, is a question?\n") == []
    assert faults("# It ends. What goes on\n# here is none.\n") == [1]
    assert faults("x = 1  # It ends. What goes on\n# here, is another comment?\n") == [1]


@pytest.mark.parametrize("first", ["For threads.", "Of a table.", "And the next one.", "Return the", "How it ends."])
def test_a_first_line_is_a_statement(first: str) -> None:
    assert faults(f'def f():\n    """{first}"""\n') == [2]


@pytest.mark.parametrize("word", ["recoded", "mends", "healing", "code anew"])
def test_words_outside_the_table_are_found(word: str) -> None:
    assert faults(f"# It is {word}.\n") == [1]
    assert faults(f"# `{word}` is a name, and recommended.\n") == []


def test_documents_are_wrapped_but_for_tables_and_code() -> None:
    long = "x " * 60
    assert [line for line, _ in texts.in_document(f"a\n{long}\n```\n{long}\n```\n| {long} |\n{long}\n")] == [2, 7]


def test_all_folders_are_read(tmp_path: Path) -> None:
    for name in ("nnfs/store/a.py", "tests/a.py", "tools/lib/a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# What is this.\n")
    (tmp_path / "nnfs/kernels/src").mkdir(parents=True)
    (tmp_path / "nnfs/kernels/src/a.c").write_text(
        "// It is there.\n// Who calls it waits.\nint x; // What is not alone\n"
    )
    for name in ("README.md", "nnfs/codec/FORMAT.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("Who is this.\n")
    told = [line.partition(":")[0] for line in texts.complaints(tmp_path)]
    assert told == [
        "nnfs/store/a.py",
        "tools/lib/a.py",
        "tests/a.py",
        "nnfs/kernels/src/a.c",
        "README.md",
        "nnfs/codec/FORMAT.md",
    ]
