"""Checks of new payloads by another engine: one of each batch, and none of a batch is stored before that agrees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

BATCH = 4 << 20  # plain bytes, a worker's batch: one chunk of it is decoded by another engine, too,
SMALL = 16 << 10  # a small one where there is one: that engine is slow


class Proof(NamedTuple):
    """A payload that a worker decodes, and the batch that it belongs to."""

    codec: int
    batch: int


@dataclass(slots=True)
class Checks:
    """Checks of one codec by the reference engine. A batch is the payloads that are proved between two checks."""

    unchecked: int = BATCH  # plain bytes since a check began
    begun: int = 0
    open: set[int] = field(default_factory=set)  # batches of which no check has gone well yet
    again: list[int] = field(default_factory=list)  # batches whose check had no result: another payload is needed
    refuted: str = ""  # why nothing is encoded with this codec any more

    def join(self, plain: int) -> tuple[int, bool]:
        """Return the batch of one more payload, and whether it is the one that is checked."""
        if self.again:
            return self.again.pop(), True
        self.unchecked += plain
        is_due = self.unchecked >= (BATCH // 2 if plain <= SMALL else BATCH)
        if is_due:
            self.unchecked, self.begun = 0, self.begun + 1
            self.open.add(self.begun)
        return self.begun, is_due
