"""Checks of new payloads by another engine: one of each batch, and none of a batch is stored before that agrees.

The other engine is slow, and has one thread. So batches grow as long as it agrees: an engine that errs is found by the
first payloads, and has to be looked for again and again, but not all the time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

BATCH, BATCH_MOST = (
    4 << 20,
    64 << 20,
)  # plain bytes of the first batch, and of the longest: one chunk of each is checked
SMALL = 16 << 10  # bytes of a chunk that is checked before its time, since it takes the other engine less


class Proof(NamedTuple):
    """A payload that a worker decodes, and the batch that it belongs to."""

    codec: int
    batch: int


@dataclass(slots=True)
class Checks:
    """Checks of one codec by the reference engine. A batch is the payloads that are proved between two checks."""

    unchecked: int = BATCH  # plain bytes since a check began
    size: int = BATCH  # plain bytes of the batch: twice as many after each check that has gone well
    begun: int = 0
    open: set[int] = field(default_factory=set)  # batches of which no check has gone well yet
    again: list[int] = field(default_factory=list)  # batches whose check had no result: another payload is needed
    refuted: str = ""  # why nothing is encoded with this codec any more

    def join(self, plain: int) -> tuple[int, bool]:
        """Return the batch of one more payload, and whether it is the one that is checked."""
        if self.again:
            return self.again.pop(), True
        self.unchecked += plain
        is_due = self.unchecked >= (self.size // 2 if plain <= SMALL else self.size)
        if is_due:
            self.unchecked, self.begun = 0, self.begun + 1
            self.open.add(self.begun)
        return self.begun, is_due

    def agreed(self, batch: int) -> None:
        """Note that the other engine decodes a payload of a batch."""
        self.open.discard(batch)
        self.size = min(BATCH_MOST, 2 * self.size)
