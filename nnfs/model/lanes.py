"""How a chunk is cut into lanes that are stepped together."""

from __future__ import annotations

LANE = 8192  # bytes of a lane at which a chunk is given another one
MAX_LANES = 16  # 32 cost 0.3-2.6 % in size and, since a step of 16 takes half the time, gain no time (tools/LOG.md)


def lanes_for(size: int) -> int:
    """Return the number of lanes of a chunk of `size` bytes."""
    return max(1, min(MAX_LANES, -(-size // LANE)))
