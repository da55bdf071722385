"""Tables and answers for the tests of tools/bench."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tests.harness import REPO

sys.path.insert(0, str(REPO / "tools" / "lib"))

from bench.table import Answer, Case, Column, Line, Table, Task

SPEED, SECONDS = Column("kbps", "KB/s"), Column("s", "s", 2, less_is_better=True)


def nothing(_task: Task) -> Iterable[Line]:
    return ()


def table(*cases: Case, rounds: int = 1) -> Table:
    return Table("t", "A table", "Note.", ("codec", "what"), (SPEED, SECONDS), lambda _: list(cases), nothing, rounds)


def line(kbps: float | None, s: float | None, label: str = "all") -> Line:
    return Line((label,), {"kbps": kbps, "s": s})


CASE = Case(("cm",), {"size": 1}, key="first")
GOOD = Answer((line(150.4, 2),))
