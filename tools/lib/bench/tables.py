"""The list of tables that tools/bench prints. A new one is a new entry."""

from __future__ import annotations

from bench import coding, methods, piecewise, training, whole
from bench.table import Table

TABLES: tuple[Table, ...] = (*coding.TABLES, *training.TABLES, methods.TABLE, piecewise.TABLE, *whole.TABLES)


def named(name: str) -> Table:
    """Return the table of this name. Raises `KeyError`."""
    return {table.name: table for table in TABLES}[name]
