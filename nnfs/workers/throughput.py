"""The throughput of a worker: seconds per MiB by operation and codec, from the times of its batches."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from nnfs.workers.board import WorkItem
from nnfs.workers.wire import Op

MIB = 1 << 20
LATELY = 8 * MIB  # plain bytes after which earlier ones count half


@dataclass(slots=True)
class _Batch:
    """The work items that the worker does together."""

    numbers: set[int]  # not answered yet
    since: float  # of the monotonic clock: its beginning, later by the time of what has overtaken it
    first: bool = False  # of its codec and model in this process, which opens them
    kind: tuple[Op, int] | None = None
    plain: int = 0  # bytes


class Throughput:
    """The batches that a worker has begun, and how long earlier ones took."""

    def __init__(self) -> None:
        self.encoding: dict[int, float] = {}  # seconds per MiB lately, by codec; replaced, never changed
        self.decoding: dict[int, float] = {}
        self._times: dict[tuple[Op, int], tuple[float, float]] = {}  # seconds, plain bytes
        self.forget_process()

    def forget_process(self) -> None:
        """Forget the batches and the opened codecs of a process that is gone. Measured figures stay."""
        self._batches: list[_Batch] = []  # begun and not wholly answered; the last one is the one under way
        self._opened: set[tuple[Op, int, bytes]] = set()

    @property
    def under_way(self) -> set[int]:
        """The numbers of the work items in the batch that the worker is doing now."""
        return self._batches[-1].numbers if self._batches else set()

    def begun(self, items: Mapping[int, WorkItem | None]) -> None:
        """Note a batch that begins: its work items by number, None for those that nobody waits for."""
        batch = _Batch(set(items), time.monotonic())
        for item in filter(None, items.values()):
            batch.first = (item.op, item.codec, item.model) not in self._opened
            batch.kind = item.op, item.codec
        self._batches.append(batch)

    def answered(self, number: int, item: WorkItem | None, *, is_coded: bool) -> None:
        """Note an answer, and measure its batch if that was the last one."""
        for batch in [batch for batch in self._batches if number in batch.numbers]:
            batch.numbers.remove(number)
            if item is not None and is_coded:
                batch.plain += item.plain
                self._opened.add((item.op, item.codec, item.model))
            if not batch.numbers:
                seconds = time.monotonic() - batch.since
                self._batches.remove(batch)
                for other in self._batches:
                    other.since += seconds
                if batch.plain and batch.kind and not batch.first:
                    self._measured(batch.kind, seconds, batch.plain)

    def _measured(self, kind: tuple[Op, int], seconds: float, plain: float) -> None:
        before = self._times.get(kind, (0.0, 0.0))
        seconds, plain = seconds + before[0], plain + before[1]
        share = 0.5 if plain > LATELY else 1.0
        self._times[kind] = share * seconds, share * plain
        op, codec = kind
        if op == Op.ENCODE:
            self.encoding = {**self.encoding, codec: seconds / plain * MIB}
        else:
            self.decoding = {**self.decoding, codec: seconds / plain * MIB}
