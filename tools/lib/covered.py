"""Print the share of lines that tests ran, for each room of nnfs and in all: `covered.py REPORT.json`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any


def rooms(report: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Return (room, lines, lines that ran) of each room; modules beside the rooms are the room "nnfs"."""
    lines: Counter[str] = Counter()
    ran: Counter[str] = Counter()
    for name, file in report["files"].items():
        parts = Path(name).parts
        within = parts[parts.index("nnfs") + 1 :] if "nnfs" in parts else parts
        room = within[0] if len(within) > 1 else "nnfs"
        lines[room] += file["summary"]["num_statements"]
        ran[room] += file["summary"]["covered_lines"]
    return [(room, lines[room], ran[room]) for room in sorted(lines)]


def table(report: dict[str, Any]) -> list[str]:
    """Return the lines of the table."""
    found = rooms(report)
    total = ("all", sum(lines for _, lines, _ in found), sum(ran for _, _, ran in found))
    rows = [f"| {room} | {lines:,} | {100 * ran / max(1, lines):.1f} % |" for room, lines, ran in (*found, total)]
    return ["| room | statements | run by tests |", "|---|---|---|", *rows]


def main() -> int:
    with open(sys.argv[1], encoding="utf-8") as file:
        print("\n".join(table(json.load(file))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
