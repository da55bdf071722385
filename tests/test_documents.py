"""The documents: links that lead somewhere, paths and names that exist, tables that say what the code says."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnfs import config, errors
from nnfs.cli.main import INTERRUPTED, build_parser
from nnfs.mount.reloading import LIVE
from tests.harness import REPO

OPERATING = REPO / "nnfs" / "OPERATING.md"
PAGES = [
    *REPO.glob("*.md"), *(REPO / "nnfs").glob("*.md"), REPO / "nnfs/store/FORMAT.md", REPO / "nnfs/codec/FORMAT.md",
]  # fmt: skip
WIDTH, README_LINES = 100, 150


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, without blocks of code."""
    is_code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            is_code = not is_code
        elif not is_code:
            yield number, line


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    heads = (line.lstrip("#").strip().lower() for _, line in prose(page) if line.startswith("#"))
    return {re.sub(r"[^\w -]", "", head).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_links_lead_somewhere(page: Path) -> None:
    text = "\n".join(line for _, line in prose(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_lines_are_wrapped(page: Path) -> None:
    long = [number for number, line in prose(page) if len(line) > WIDTH and not line.lstrip().startswith("|")]
    assert not long


@pytest.mark.parametrize("page", [*REPO.glob("*.md"), *(REPO / "nnfs").glob("*.md")], ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    """`nnfs/x/y.py`, or `x/y.py` within nnfs; a function behind it, as in `x/y.py`, `f`, is looked up where it is."""
    text = "\n".join(line for _, line in prose(page))
    for name in re.findall(r"`((?:[\w@.-]+/)+[\w@.-]+\.(?:py|md|c|h|toml|service|timer|svg))`", text):
        assert any((root / name).exists() for root in (REPO, REPO / "nnfs", page.parent)), name


def names_in(file: Path) -> set[str]:
    """Functions, classes and methods of a module, methods as `Class.method` as well."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one.name}" for one in node.body if hasattr(one, "name")}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {one.id for one in targets if isinstance(one, ast.Name)}
    return found


def test_answers_in_contributing_exist() -> None:
    """The table of questions has rows | question | `file` | `function`, ... |."""
    text = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+\? \| `([^`|]+\.py)` \| ([^|]+) \|", text, re.MULTILINE)
    assert len(rows) >= 7
    for file, functions in rows:
        known = names_in(REPO / file)
        for function in re.findall(r"`([\w.]+)`", functions):
            assert function in known, (file, function)


def test_the_readme_is_short() -> None:
    assert len((REPO / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


def tree(kind: type[errors.NnfsError]) -> set[int]:
    return {kind.exit_code}.union(*(tree(below) for below in kind.__subclasses__()))


def rows(head: str) -> list[list[str]]:
    """The cells of all tables below a heading of OPERATING.md."""
    text = OPERATING.read_text(encoding="utf-8").split(f"\n{head}\n", 1)[1]
    section = re.split(r"\n#+ ", text, maxsplit=1)[0]
    return [re.split(r"(?<!\\)\|", line.strip("|")) for line in section.splitlines() if line.startswith("| ")]


def test_every_exit_code_is_listed() -> None:
    codes = [int(cells[0]) for cells in rows("## Exit codes") if cells[0].strip().isdecimal()]
    end = codes.index(INTERRUPTED) + 1
    assert set(codes[:end]) == {0, INTERRUPTED, *tree(errors.NnfsError)}
    assert set(codes[end:]) == {0, 1, 4, 8, 16}


def test_every_option_is_listed_with_its_default() -> None:
    listed: dict[str, str] = {}
    for names, defaults, _ in rows("### Options of nnfs"):
        found = zip(re.findall(r"`(\w+)`", names), re.findall(r"`([\w.]+)`", defaults), strict=True)
        listed.update(found)
    assert {f"{name}={default}" for name, default in listed.items()} == {name for name, _ in config.described()}


def test_what_a_sighup_takes_over_is_listed() -> None:
    text = " ".join(OPERATING.read_text(encoding="utf-8").split())
    named = re.search(r"SIGHUP takes over (.*?)\. The others", text)
    assert named is not None
    assert set(re.findall(r"`(\w+)`", named[1])) == set(LIVE)


def test_every_command_is_listed() -> None:
    action = next(one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction))
    listed = {word for cells in rows("## Commands") for word in re.findall(r"`nnfs (\w+)", cells[0])}
    assert listed == set(action.choices)
