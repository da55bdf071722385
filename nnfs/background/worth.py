"""The least saving for which a chunk is recompressed: an absolute floor, whatever the policy."""

from __future__ import annotations

SECTOR = 512  # bytes of a disk's sector. Fragments of payloads are packed, so savings of many chunks add up
PER_SECOND = 1024  # bytes that a second of reading back must save
ASSUMED = 4.0 / (1 << 20)  # seconds per byte, before a codec has been measured


def least_saving(plain: int, seconds_per_mib: float | None = None) -> float:
    """Return the bytes that recompressing a chunk of `plain` bytes must save, by the speed of reading it back."""
    seconds = plain * (ASSUMED if seconds_per_mib is None else seconds_per_mib / (1 << 20))
    return max(SECTOR, PER_SECOND * seconds)
