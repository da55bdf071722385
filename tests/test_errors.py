"""The one tree of errors: its drawing, and that nothing in nnfs raises a class from outside it."""

from __future__ import annotations

import ast
import builtins
import errno
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from nnfs import errors
from nnfs.errors import FsError, NnfsError, kept

PACKAGE = Path(errors.__file__).parent
LINE = re.compile(r"^    (?P<branches>[|` -]*)(?P<name>\w+) +(?P<errno>\w+) +(?P<code>\d+)(?: +\S.*)?$")
OWN = 0  # drawn as "own": the errno is the instance's

Node = tuple[str, str, int, int]  # class, its base, errno, exit code


def drawn(text: str) -> list[Node]:
    """The tree as a docstring draws it, in order."""
    path: list[str] = []
    nodes = []
    for line in text.splitlines():
        if found := LINE.match(line):
            depth = len(found["branches"]) // 4
            path[depth:] = [found["name"]]
            number = OWN if found["errno"] == "own" else getattr(errno, found["errno"])
            nodes.append((path[-1], path[-2] if depth else "Exception", number, int(found["code"])))
    return nodes


def real(kind: type[NnfsError]) -> Iterator[Node]:
    assert kind.__base__ is not None
    number = OWN if kind is FsError else kind.errno
    yield kind.__name__, kind.__base__.__name__, number, kind.exit_code
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from real(below)


def exceptions(sources: Iterable[str]) -> set[str]:
    """The exception classes that sources define, by the names of their bases."""
    known = {
        name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
    }
    classes = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    found: set[str] = set()
    while new := {
        one.name
        for one in classes
        if one.name not in found and any(ast.unparse(base).split(".")[-1] in known | found for base in one.bases)
    }:
        found |= new
    return found


def test_the_drawing_is_the_tree() -> None:
    assert errors.__doc__ is not None
    assert sorted(drawn(errors.__doc__)) == sorted(real(NnfsError))


def test_every_exception_is_in_the_tree() -> None:
    own = exceptions([(PACKAGE / "errors.py").read_text()])
    everywhere = exceptions(path.read_text() for path in PACKAGE.rglob("*.py"))
    assert own == {name for name, *_ in real(NnfsError)}
    assert everywhere - own == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("class A(Exception): ...", {"A"}),
        ("class A(errors.StoreError): ...\nclass StoreError(OSError): ...", {"A", "StoreError"}),
        ("def f():\n    class B(A): ...\nclass A(ValueError): ...", {"A", "B"}),
        ("class A: ...\nclass B(A, Generic[T]): ...", set()),
    ],
)
def test_exceptions_are_found(source: str, found: set[str]) -> None:
    assert exceptions([source]) == found


def test_a_class_that_is_not_drawn_is_noticed() -> None:
    assert errors.__doc__ is not None
    without = "\n".join(line for line in errors.__doc__.splitlines() if "StoreBusy" not in line)
    assert len(drawn(without)) == len(drawn(errors.__doc__)) - 1
    assert drawn("    Top   EIO   1\n    |-- A   EIO 2   text\n    |   `-- B own 3\n") == [
        ("Top", "Exception", errno.EIO, 1), ("A", "Top", errno.EIO, 2), ("B", "A", OWN, 3),
    ]  # fmt: skip


def test_an_errno_answer_keeps_its_errno() -> None:
    error = kept(FsError(errno.ENOTEMPTY))
    assert (error.errno, error.exit_code, str(error)) == (errno.ENOTEMPTY, 1, "Directory not empty")
