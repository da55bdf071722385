"""Placeholder until helper FSCK's lands."""

from __future__ import annotations

from typing import Any


class Scrub:
    """See FSCK."""

    def __init__(self, *args: Any) -> None:
        pass

    async def run(self, job: Any, deep: bool = False) -> None:
        """See FSCK."""
