"""A cache of decoded blocks, with a hard limit."""

from __future__ import annotations

from collections import OrderedDict


class BlockCache:
    """Plain chunks by block number, the least recently used dropped first. No number is reused, so none goes stale."""

    def __init__(self, limit: int) -> None:
        self.limit = limit  # bytes
        self.bytes = 0
        self.hits = self.misses = self.evicts = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def get(self, number: int) -> bytes | None:
        plain = self._blocks.get(number)
        if plain is None:
            self.misses += 1
            return None
        self.hits += 1
        self._blocks.move_to_end(number)
        return plain

    def renew(self, number: int) -> int:
        """Have a block outlive all others. Return its length, 0 if it is not here."""
        if number not in self._blocks:
            return 0
        self._blocks.move_to_end(number)
        return len(self._blocks[number])

    def put(self, number: int, plain: bytes) -> None:
        """Keep a block, dropping the least recently used ones above the limit."""
        if number in self._blocks or len(plain) > self.limit:
            return
        self._blocks[number] = plain
        self.bytes += len(plain)
        self._evict()

    def set_limit(self, limit: int) -> None:
        """Take over another limit, which holds at once."""
        self.limit = limit
        self._evict()

    def _evict(self) -> None:
        while self.bytes > self.limit:
            self.bytes -= len(self._blocks.popitem(last=False)[1])
            self.evicts += 1

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, number: int) -> bool:
        return number in self._blocks

    def clear(self) -> None:
        self._blocks.clear()
        self.bytes = 0
