"""The view of `nnfs top` on a terminal: the last lines, and below them each kind of request."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nnfs.cli import tables

KEPT, OPERATIONS = 15, 12  # lines, and kinds of requests, at most
AROUND = 7  # lines of the terminal that headings and frames take

Rates = dict[str, Any]


class View:
    """A view that is drawn anew for each interval, and stays on the terminal at the end."""

    def __init__(
        self, title: str, headings: Mapping[str, str], shown: Callable[[Rates], dict[str, str]],
        console: Console | None = None,
    ) -> None:  # fmt: skip
        self._title, self._headings, self._shown = title, headings, shown
        self._console = console or Console(highlight=False)
        self._lines: deque[dict[str, str]] = deque(maxlen=KEPT)
        self._live = Live(console=self._console, auto_refresh=False)
        self._live.start()

    def __call__(self, found: Rates) -> None:
        self._lines.append(self._shown(found))
        room = max(2, self._console.height - AROUND)
        operations = self._operations(found, room // 3)
        lines = self._table(room - min(OPERATIONS, room // 3, len(found["by_operation"])))
        self._live.update(Group(Text(self._title, style="dim", no_wrap=True), lines, operations), refresh=True)

    def close(self) -> None:
        """Leave the last view on the terminal."""
        self._live.stop()

    def _table(self, room: int) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in self._headings.values():
            table.add_column(heading, justify="right", no_wrap=True)
        for line in list(self._lines)[-max(1, room) :]:
            style = "red" if line["errors"] != "0" else None
            table.add_row(*(Text(line[name]) for name in self._headings), style=style)
        return table

    def _operations(self, found: Rates, room: int) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading, side in (("request", "left"), ("per s", "right"), ("99 % in", "right")):
            table.add_column(heading, justify=side, no_wrap=True)  # type: ignore[arg-type]
        ordered = sorted(found["by_operation"].items(), key=lambda item: -item[1])
        for name, rate in ordered[: min(OPERATIONS, max(1, room))]:
            table.add_row(name, f"{rate:.0f}", tables.latency(found["p99_by_operation"][name]))
        return table
