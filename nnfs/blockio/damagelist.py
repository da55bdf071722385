"""The list of a mount's damaged blocks: reads and scrubs add to it; status, scrub and commits look at it."""

from __future__ import annotations

import contextlib
import threading

from nnfs.errors import StoreDamaged
from nnfs.store.blocks import load_block
from nnfs.store.env import Store


class DamageList:
    """Numbers of blocks that were found damaged, and the reasons. Thread-safe: the commit thread and others use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reasons: dict[int, str] = {}

    def add(self, number: int, why: str) -> None:
        with self._lock:
            self._reasons[number] = why

    def remove(self, number: int) -> None:
        """Take a block off that has been read or repaired, or is gone. It need not be listed."""
        with self._lock:
            self._reasons.pop(number, None)

    def reason(self, number: int) -> str | None:
        """Return why a block is listed, None when it is not."""
        with self._lock:
            return self._reasons.get(number)

    def as_dict(self) -> dict[int, str]:
        """Return a copy of the list: reasons by number."""
        with self._lock:
            return dict(self._reasons)

    def __contains__(self, number: object) -> bool:
        with self._lock:
            return number in self._reasons

    def __len__(self) -> int:
        return len(self._reasons)

    def forget_gone(self, store: Store) -> None:
        """Take off the blocks that the store does not have any more. Call it in a thread."""
        with store.read() as snapshot:
            for number in self.as_dict():
                with contextlib.suppress(StoreDamaged):  # a block with a damaged header is there
                    if load_block(snapshot, number) is None:
                        self.remove(number)
