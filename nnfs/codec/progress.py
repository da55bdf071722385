"""Progress of this process: codecs count columns while they code, and the worker tells its mount.

Any thread may count. A lost count does no harm, as long as the number grows while work is done.
"""

from __future__ import annotations

import enum


class Stage(enum.IntEnum):
    """The stage of a worker's work."""

    OPENING = 1  # imports, compiling, self-tests, a model
    CODING = 2


columns = 0
stage = Stage.OPENING


def beat() -> None:
    """Count a column that is done."""
    global columns  # noqa: PLW0603 - one process, one pulse
    columns += 1
