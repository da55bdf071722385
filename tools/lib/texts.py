"""Rules of style that a program can check in texts, for tools/check.

- No sentence of a docstring, comment or document begins with a bare "What ..." or "Who ..." clause. Questions may.
- The first line of a docstring can be read alone: it ends its sentence, and does not begin with a word of `FRAGMENTS`,
  as "For threads." does.
- Documents (`*.md`) have lines of at most 100 columns, except tables, code, links and marks of tools/bench.
- The words of `UNUSED` are not used: DESIGN.md, "Words", has the one word for each thing.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 100
C_SUFFIXES = (".c", ".h", ".cu")
BEHIND = "\0"  # marks a comment behind code
Text = tuple[int, str]  # its line, and its words in one line
BARE = re.compile(r"(?:^|(?<=[.!?:;|]\s))[\"'(]*(?:What|Who|Whoever|Whatever|Whose)\b[^.?!]*(?:[.?!]|$)")
FRAGMENTS = frozenset(("And", "As", "But", "By", "For", "How", "Of", "Or", "Where", "With", "Without"))
UNUSED = re.compile(
    r"\b(?:so to speak|recod(?:e[sd]?|ing)|code[sd]? anew|mend(?:s|ed|ing)?|heal(?:s|ed|ing)?)\b", re.IGNORECASE
)


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of the docstrings of a module, its classes and its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def paragraphs(text: str, line: int) -> Iterator[Text]:
    """Yield the paragraphs and list items of a text that begins at `line`, each joined to one line."""
    words: list[str] = []
    begin = line
    for number, row in enumerate([*text.splitlines(), ""], line):
        is_item = re.match(r"\s*(?:[-*|] ?|\d+\. )", row) is not None
        if words and (not row.strip() or is_item):
            yield begin, " ".join(words)
            words = []
        if row.strip():
            begin = begin if words else number
            words.append(row.strip().lstrip("*-#| ") if is_item else row.strip())


def comments(source: str, mark: str = "#") -> Iterator[Text]:
    """Yield the comments of a source; comments on lines of their own that follow each other are one text."""
    found: list[Text] = []
    if mark == "#":
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                is_alone = not token.line[: token.start[1]].strip()
                found.append((token.start[0], token.string if is_alone else f"{BEHIND}{token.string}"))
    else:
        rows = enumerate(source.splitlines(), 1)
        found = [(number, row.strip()) for number, row in rows if row.strip().startswith(mark)]
    words: list[str] = []
    begin = last = 0
    for number, text in [*found, (-1, "")]:
        alone = not text.startswith(BEHIND)
        if words and not (alone and number == last + 1):
            yield begin, " ".join(words)
            words = []
        begin = begin if words else number
        words.append(text.removeprefix(BEHIND).lstrip(mark + "!").strip())
        last = number if alone else -1


def bare(texts: Iterator[Text]) -> Iterator[tuple[int, str]]:
    """Yield (line, fault) for sentences that begin with a bare clause, and for words that are not used."""
    for line, text in texts:
        plain = re.sub(r"`[^`]*`", "``", text)
        for found in BARE.findall(plain):
            if not found.rstrip().endswith("?"):
                yield line, f"a sentence begins with a bare clause: {found[:60]}"
        for word in UNUSED.findall(plain):
            yield line, f"another word is used for this thing (DESIGN.md): {word}"


def first_line(text: str) -> str:
    """Return the fault of a docstring's first line, "" if it can be read alone."""
    first = text.splitlines()[0]
    if first.split()[0].rstrip(",") in FRAGMENTS:
        return f"the first line of a docstring is a fragment: {first[:60]}"
    if first[-1] not in ".:)" and not first.startswith("::"):
        return f"the first line of a docstring does not end its sentence: {first[-60:]}"
    return ""


def in_python(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, fault) of a Python module."""
    for line, text in docstrings(ast.parse(source)):
        yield from bare(paragraphs(text, line))
        if fault := first_line(text):
            yield line, fault
    yield from bare(comments(source))


def in_document(page: str) -> Iterator[tuple[int, str]]:
    """Yield (line, fault) of a Markdown document."""
    rows, is_code = page.splitlines(), False
    for number, row in enumerate(rows, 1):
        if row.lstrip().startswith("```"):
            is_code, rows[number - 1] = not is_code, ""
        elif is_code:
            rows[number - 1] = ""
        elif len(row) > WIDTH and not row.lstrip().startswith(("|", "<!--", "[")):
            yield number, f"a line of {len(row)} columns, and the limit is {WIDTH}"
    yield from bare(paragraphs("\n".join(rows), 1))


def complaints(root: Path) -> Iterator[str]:
    """Yield a line for each fault in the files of a checkout."""
    for folder in ("nnfs", "tools", "tests"):
        for path in sorted((root / folder).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            for line, fault in in_python(source):
                yield f"{path.relative_to(root)}:{line}: {fault}"
    for path in sorted((root / "nnfs").rglob("*")):
        if path.suffix in C_SUFFIXES:
            for line, fault in bare(comments(path.read_text(encoding="utf-8"), "//")):
                yield f"{path.relative_to(root)}:{line}: {fault}"
    for path in (*root.glob("*.md"), *sorted((root / "nnfs").rglob("*.md"))):
        for line, fault in in_document(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(root)}:{line}: {fault}"


def main() -> int:
    """Print the faults. Return 1 if there are any."""
    found = list(complaints(ROOT))
    for complaint in found:
        print(complaint)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
