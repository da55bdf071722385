"""Expectations of a chunk before it is touched, for the time left: its kind, and the steps ahead of it."""

from __future__ import annotations

import logging
import time
from collections import Counter

from nnfs.background.tasks import Task
from nnfs.background.timeleft import Kind, Steps
from nnfs.codec import NAMES
from nnfs.codec.base import FIRST_COLD, NEURAL, RAW
from nnfs.store.schema import Block

log = logging.getLogger(__name__)

BUCKETS = 8  # classes of zstd's ratio: they tell text from repetitive data, where cm is tried, too
PER_CHUNK = 8 << 10  # bytes that a chunk counts for beside its own: beginning one takes time, however small it is
FEW = 0.02  # share of the bytes that zstd cannot make smaller, but that are encoded anyway


def kind_of(block: Block, *, thaw: bool) -> Kind:
    """Return the kind of a chunk: chunks of one kind take about the same time per byte."""
    if block.codec >= FIRST_COLD:
        return "thaw" if thaw else "cold", NAMES.get(block.codec, str(block.codec))
    if block.codec == RAW:
        return ("raw",)
    return "zstd", str(min(BUCKETS - 1, BUCKETS * block.stored // max(1, block.plain)))


def assumed(kind: Kind, codec: int) -> Steps:
    """Return the shares of a kind's bytes that go through each step, until its chunks have shown them."""
    if kind[0] == "thaw":
        return {f"decode {kind[1]}": 1.0, "look": 1.0}
    main = NAMES[codec]
    share = FEW if kind[0] == "raw" else 1.0
    steps = {"look": 1.0, f"encode {main}": share, f"prove {main}": 0.95 * share}
    if codec == NEURAL:
        repeats = kind[0] == "zstd" and int(kind[1]) <= BUCKETS // 4
        steps["encode cm"] = share * (0.7 if repeats else 0.2)
    return steps | ({f"decode {kind[1]}": 1.0} if kind[0] == "cold" else {})


def expect(task: Task, block: Block, *, thaw: bool, codec: int) -> None:
    """Add a chunk to those ahead of a task, which mostly tries them with this codec."""
    kind = kind_of(block, thaw=thaw)
    task.left.expect(kind, weight(block), assumed(kind, codec))


def weight(block: Block) -> int:
    """Return the bytes that a chunk counts for."""
    return block.plain + PER_CHUNK


class Way:
    """Records the steps that one chunk goes through. Call it when a step is done."""

    def __init__(self, task: Task, block: Block, *, thaw: bool) -> None:
        self._task, self._size, self._kind = task, weight(block), kind_of(block, thaw=thaw)
        self._steps: Counter[str] = Counter()

    def __call__(self, step: str) -> None:
        self._steps[step] += self._size
        log.debug("way %s %s %d", "-".join(self._kind), step.replace(" ", "-"), self._size)
        self._task.left.did(self._kind, step, self._size, time.monotonic())

    def end(self) -> None:
        """Note that the chunk is done, or has failed."""
        log.debug("way %s end %d", "-".join(self._kind), self._size)
        self._task.left.ended(self._kind, self._size, self._steps)
