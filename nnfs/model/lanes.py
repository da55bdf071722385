"""The cut of a chunk into lanes that are stepped together."""

from __future__ import annotations

LANE = 16384  # bytes of a lane at which a chunk is given another one
MAX_LANES = 8  # 16 and 32 are larger, and gain no time: a step of 8 lanes is so much shorter (tools/LOG.md)


def lanes_for(size: int) -> int:
    """Return the number of lanes of a chunk of `size` bytes."""
    return max(1, min(MAX_LANES, -(-size // LANE)))
