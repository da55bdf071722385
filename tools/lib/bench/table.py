"""A table of tools/bench: its entry in the list, the answers of measurements, and both as Markdown."""

from __future__ import annotations

import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.corpus import Corpus, opened

WIDTH = 100  # columns of prose in Markdown
REASON = 160  # characters of a problem that a cell shows
BLOCK = re.compile(r"(<!-- bench (\w+)((?: \w+)*) -->\n).*?(<!-- end of bench -->)", re.DOTALL)
FIGURE = re.compile(r"(<!-- figure (\w+) (\w+) -->).*?(<!-- end of figure -->)")
Task = dict[str, Any]  # JSON: it goes to another process


class Missing(Exception):
    """This commit or this machine lacks something that a measurement needs. The message names it."""


@dataclass(frozen=True)
class Column:
    """One column of figures. Without `digits`, three digits that matter."""

    key: str
    title: str
    digits: int | None = None
    less_is_better: bool = False


@dataclass(frozen=True)
class Line:
    """One line of a table: its first cells, and figures by the keys of columns."""

    labels: tuple[str, ...]
    values: Mapping[str, float | None]
    less_is_better: bool = False  # whatever the columns say


@dataclass(frozen=True)
class Case:
    """One measurement, in a process of its own: its function's argument, and the first cells of its lines."""

    labels: tuple[str, ...]
    task: Task
    level: str = ""  # of the native kernels, forced; empty: the commit's own choice
    key: str = ""  # by which a page may choose lines
    compared: bool = True  # with another commit


@dataclass(frozen=True)
class Answer:
    """The outcome of a case: lines, or the reason why there are none."""

    lines: tuple[Line, ...] = ()
    problem: str = ""
    is_missing: bool = False  # the problem is that something is not there


@dataclass(frozen=True)
class Setting:
    """The settings that all measurements of a run share."""

    work: Path
    data: Path
    levels: tuple[str, ...] = ()
    threads: int = 1
    is_quick: bool = False

    @cached_property
    def corpus(self) -> Corpus:
        """The files to compress. Raises `NoData`."""
        return opened(self.data, self.work)


@dataclass(frozen=True)
class Table:
    """An entry of the list: `cases` lists the measurements, `measure` does one, in a process that knows one commit."""

    name: str
    title: str
    note: str
    heads: tuple[str, ...]
    columns: tuple[Column, ...]
    cases: Callable[[Setting], list[Case]]
    measure: Callable[[Task], Iterable[Line]]
    rounds: int = 1  # times that each case is measured, in turns with the other commit's; the median counts


@dataclass(frozen=True)
class Result:
    """A case, its outcome, and its outcome in the other commit: None if that was not measured."""

    case: Case
    here: Answer
    other: Answer | None = field(default=None)


def merged(answers: Sequence[Answer]) -> Answer:
    """Return the medians of rounds: of those that have lines, else the first problem."""
    good = [answer for answer in answers if answer.lines]
    if not good:
        return answers[0]
    lines = []
    for line in good[0].lines:
        same = [other.values for answer in good for other in answer.lines if other.labels == line.labels]
        values = {key: median(each.get(key) for each in same) for key in line.values}
        lines.append(Line(line.labels, values, line.less_is_better))
    return Answer(tuple(lines))


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of the values that are there."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def number(value: float | None, digits: int | None = None) -> str:
    """Return a figure as text: "-" where there is none."""
    if value is None:
        return "-"
    if digits is not None:
        return f"{value:,.{digits}f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def times(here: float | None, other: float | None, *, less_is_better: bool) -> str:
    """Return how many times as good as the other figure one is: "-" where that cannot be said."""
    above, below = (other, here) if less_is_better else (here, other)
    return f"x {number(above / below)}" if above and below else "-"


def cells(columns: Sequence[Column], line: Line, other: Answer | None) -> Iterator[str]:
    """Yield the figures of a line, each with its ratio in brackets where there is another commit."""
    same = next((one.values for one in other.lines if one.labels == line.labels), {}) if other else {}
    for column in columns:
        here = line.values.get(column.key)
        text = number(here, column.digits)
        if other and here is not None and (column.key in same or not same):
            less = line.less_is_better or column.less_is_better
            text += f" ({times(here, same.get(column.key), less_is_better=less)})"
        yield text


def row(texts: Iterable[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(text.replace('|', '&#124;') for text in texts)} |"


def rows(table: Table, result: Result) -> Iterator[str]:
    """Yield the lines of a case: one that says why, where nothing could be measured."""
    if not result.here.lines:
        labels = (*(result.case.labels or (result.case.key,)), *[""] * len(table.heads))[: len(table.heads)]
        problem = " ".join(result.here.problem.split())[:REASON]
        yield row([*labels, problem, *["-"] * (len(table.columns) - 1)])
    for line in result.here.lines:
        yield row([*result.case.labels, *line.labels, *cells(table.columns, line, result.other)])


def block(table: Table, results: Sequence[Result], about: str, keep: Sequence[str] = ()) -> str:
    """Return the table with the sentence about its run; with `keep`, only the lines of cases that have these keys."""
    heads = [*table.heads, *(column.title for column in table.columns)]
    shown = [result for result in results if not keep or result.case.key in keep]
    lines = [row(heads), "|" + "---|" * len(heads), *(text for result in shown for text in rows(table, result))]
    return "\n".join([*(textwrap.wrap(about, WIDTH, break_on_hyphens=False)), "", *lines, ""])


def figure(table: Table, results: Sequence[Result], key: str) -> str | None:
    """Return the first figure of a column as text; None where nothing was measured. Raises `KeyError`."""
    column = {column.key: column for column in table.columns}[key]
    value = next((line.values.get(key) for result in results for line in result.here.lines), None)
    return None if value is None else number(value, column.digits)


def with_figures(page: str, figures: Mapping[str, Callable[[str], str | None]]) -> str:
    """Return a page with new figures between the marks `<!-- figure NAME KEY -->` and `<!-- end of figure -->`.

    `figures` gives for the name of a table a function from the key of a column to the text, None to keep the old one.
    """

    def one(found: re.Match[str]) -> str:
        made = figures[found[2]](found[3]) if found[2] in figures else None
        return found[0] if made is None else f"{found[1]}{made}{found[4]}"

    return FIGURE.sub(one, page)


def replaced(page: str, blocks: Mapping[str, Callable[[Sequence[str]], str]]) -> str:
    """Return a page with new tables between its marks, `<!-- bench NAME KEY... -->` and `<!-- end of bench -->`."""

    def one(found: re.Match[str]) -> str:
        made = blocks.get(found[2])
        return f"{found[1]}{made(found[3].split())}{found[4]}" if made else found[0]

    return BLOCK.sub(one, page)
