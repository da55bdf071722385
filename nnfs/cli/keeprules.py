"""The rules of `nnfs snapshot prune --keep`: which snapshots stay."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

PREFIX = "auto-"  # of the names that create gives, which are UTC: those that prune looks at

PERIODS = {
    "last": "", "hourly": "%Y-%m-%d %H", "daily": "%Y-%m-%d", "weekly": "%G-%V", "monthly": "%Y-%m", "yearly": "%Y",
}  # fmt: skip

Rules = Mapping[str, int]


def rules(text: str) -> Rules:
    """Parse rules such as `hourly=24,daily=30`, for argparse."""
    found: dict[str, int] = {}
    for word in text.split(","):
        period, _, number = word.partition("=")
        if period not in PERIODS or not number.isdigit() or not int(number):
            names = ", ".join(PERIODS)
            raise argparse.ArgumentTypeError(f"{word!r}: give PERIOD=N with N from 1 on, and a period of {names}")
        found[period] = int(number)
    return found


def kept(known: Mapping[str, float], wanted: Rules) -> set[str]:
    """Return the names that stay. `known` are times of creation, in unix seconds, by name.

    A rule `daily=30` keeps the newest snapshot of each of the last 30 days that have any, by local time.
    """
    newest_first = sorted(known, key=lambda name: (known[name], name), reverse=True)
    stay: set[str] = set()
    for period, number in wanted.items():
        seen: list[str] = []
        for name in newest_first:
            place = time.strftime(PERIODS[period], time.localtime(known[name])) if PERIODS[period] else name
            if len(seen) < number and place not in seen:
                seen.append(place)
                stay.add(name)
    return stay
