"""The rows of the table: the bounds of each figure, and the functions that measure them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.targets import Target

Values = dict[str, float]


@dataclass(frozen=True)
class Figure:
    """One line of the table. `must` and `wants` are bounds from below, or from above where less is better."""

    key: str
    title: str
    unit: str
    must: float | None = None
    wants: float | None = None
    less_is_better: bool = False

    def mark(self, value: float) -> str:
        """Return "FAIL", "must" or "wants": the best bound that the value keeps."""
        if self.must is None:
            return ""
        sign = -1 if self.less_is_better else 1
        if self.wants is not None and sign * value >= sign * self.wants:
            return "wants"
        return "must" if sign * value >= sign * self.must else "FAIL"


@dataclass(frozen=True)
class Row:
    """One measurement: it gives one or more figures, on the named targets, within so many seconds."""

    name: str
    measure: Callable[[Target, bool], Values]
    figures: tuple[Figure, ...]
    targets: tuple[str, ...] = ("lower", "nullfs", "nnfs")
    repeat: int = 1
    limit: float = 600
