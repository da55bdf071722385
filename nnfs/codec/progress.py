"""How far this process's work has come: codecs count columns while they code, the worker tells its mount.

Any thread may count: one that gets lost is no harm, as long as the number moves when the work does.
"""

from __future__ import annotations

import enum


class Stage(enum.IntEnum):
    """What a worker is at."""

    OPENING = 1  # imports, compiling, self-tests, a model
    CODING = 2


columns = 0
stage = Stage.OPENING


def beat() -> None:
    """A column is done."""
    global columns  # noqa: PLW0603 - one process, one pulse
    columns += 1
