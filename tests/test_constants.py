"""The names that several rooms need are written once, in nnfs/constants.py."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnfs import constants
from nnfs.constants import Policy

PACKAGE = Path(constants.__file__).parent
WORDS = ("control", "reserve", "thawed")  # mean other things, too
NAMES = {
    value
    for value in vars(constants).values()
    if isinstance(value, str) and value not in WORDS and not value.startswith("nnfs") and "\n" not in value
} - {constants.__file__, constants.__doc__}


def literals(source: str) -> Iterator[str]:
    """The texts and bytes that are literals in a source; docstrings are none, since they are longer."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            yield node.value.decode("latin-1") if isinstance(node.value, bytes) else node.value


def test_names_are_written_once() -> None:
    assert {"data.mdb", "user.nnfs.policy", "NNFS_PRODUCT"} <= NAMES
    again = {
        (str(path.relative_to(PACKAGE)), value)
        for path in PACKAGE.rglob("*.py")
        for value in literals(path.read_text())
        if value in NAMES and path != PACKAGE / "constants.py"
    }
    assert again == set()


@pytest.mark.parametrize("source", ['X = "data.mdb"', 'f(b"data.mdb")', '{"a": ["data.mdb"]}', 'X = f"{y}" "data.mdb"'])
def test_a_literal_is_found(source: str) -> None:
    assert any("data.mdb" in value for value in literals(source))


def test_policies_are_those_of_the_enum() -> None:
    assert constants.POLICIES == ("auto", "hot", "cold", "never") == tuple(policy.value for policy in Policy)
