"""Texts of numbers and tables for people."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from nnfs import names

PATHS = ("store", "mountpoint", "log")  # fields that hold names


def size(number: int) -> str:
    """Return bytes with a binary unit and three digits: 17 -> "17 B", 1536 -> "1.50 KiB"."""
    if number < 1024:
        return f"{number} B"
    value, units = number / 1024, ["EiB", "PiB", "TiB", "GiB", "MiB", "KiB"]
    unit = units.pop()
    while value >= 1023.5 and units:
        value, unit = value / 1024, units.pop()
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def ratio(plain: int, stored: int) -> str:
    """Return plain bytes divided by stored bytes, as text."""
    return f"{plain / stored:.2f}" if plain and stored else "-"


def bits(plain: int, stored: int) -> str:
    """Return stored bits per plain byte, as text."""
    return f"{8 * stored / plain:.3f}" if plain else "-"


def span(seconds: float) -> str:
    """Return a duration in words: "3 d 4 h", "12 min 5 s"."""
    rest, parts = int(seconds), []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if rest >= length:
            parts.append(f"{rest // length} {unit}")
            rest %= length
    return " ".join([*parts, f"{rest} s"][:2])


def latency(seconds: float) -> str:
    """Return a short time with its unit."""
    for unit, length in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return "-"


def date(seconds: float) -> str:
    """Return a time of the wall clock to the minute, as text."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return a table with columns as narrow as possible; the first `left` columns are aligned left."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]

    def cell(column: int, text: str) -> str:
        return text.ljust(widths[column]) if column < left else text.rjust(widths[column])

    return "\n".join("  ".join(cell(n, text) for n, text in enumerate(line)).rstrip() for line in lines)


def pairs(items: Sequence[tuple[str, str]]) -> str:
    """Return a table of names and values."""
    width = max(len(name) for name, _ in items)
    return "\n".join(f"{name.ljust(width)}  {names.one_line(value)}" for name, value in items)


def flat(answer: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return the fields of an answer as names and values for `pairs`; lists are left out."""
    lines = []
    for name, value in answer.items():
        label = prefix + name.removesuffix("_bytes").replace("_", " ")
        if isinstance(value, Mapping):
            lines += flat(value, f"{label} ")
        elif name.endswith("_bytes") and isinstance(value, int):
            lines.append((label, size(value)))
        elif name == "rate" and isinstance(value, int | float):
            lines.append((label, f"{size(int(value))}/s"))
        elif name in ("uptime", "seconds", "eta") and isinstance(value, int | float):
            lines.append((label, span(value)))
        elif name == "since" and isinstance(value, float):
            lines.append((label, date(value)))
        elif isinstance(value, bool):
            lines.append((label, "yes" if value else "no"))
        elif not isinstance(value, list):
            shown = names.printable(str(value)) if name in PATHS else str(value)
            lines.append((label, "-" if value is None or value == "" else shown))
    return lines


def printed_json(answer: dict[str, Any] | list[dict[str, Any]], *, in_one_line: bool = False) -> None:
    """Print an answer as JSON: valid Unicode, whatever names are in it (`names.for_json`)."""
    print(json.dumps(names.for_json(answer), indent=None if in_one_line else 2), flush=in_one_line)
