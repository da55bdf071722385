"""Codecs that cannot run here: they are out of the competition, which goes on with the others.

Each cause is logged once, with advice. A codec is tried again at the next mount, and when a
model has come or the shipped ones have changed.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from dataclasses import dataclass

from nnfs.codec import NAMES
from nnfs.codec.base import RUNGS
from nnfs.errors import CodecUnavailable, ModelMissing, NnfsError, WorkerError
from nnfs.fs import swapping
from nnfs.workers.catalogue import PRESETS

log = logging.getLogger(__name__)

IN_A_ROW = 3  # failures of a codec's workers, of any kind
BITS = {codec: swapping.bit(codec) << 8 for codec in RUNGS}  # of the settings: files were settled while it was out


@dataclass(frozen=True, slots=True)
class Outage:
    """The reason why a codec, with one model or with any, is not used."""

    codec: int
    model: bytes  # fingerprint
    why: str
    since: float

    @property
    def cure(self) -> str:
        """The advice for a person."""
        text = self.why.lower()
        if "model" in text and "fit" not in text:
            return f"put the shipped file back into {PRESETS}, or `nnfs model add` a whole one; then it is tried again"
        if "not installed" in text or "cannot be opened" in text or "no module" in text:
            return "install it (tools/run --torch cpu|cuda, or pip, brings torch), then mount again"
        if "memory" in text or "signal 9" in text:
            return "give it more memory, or mount with compact_threads=1 or neural=off"
        if "compute" in text or "self-test" in text:
            return "mount with device=cpu, and report this"
        return "mount again once that is repaired; `nnfs status` tells"


class Outages:
    """The codecs that cannot run, by codec and model."""

    def __init__(self) -> None:
        self._out: dict[tuple[int, bytes], Outage] = {}
        self._failures: Counter[tuple[int, bytes]] = Counter()
        self._shipped = _shipped()

    def has(self, codec: int, model: bytes) -> bool:
        """Return whether a codec is out."""
        return (codec, model) in self._out

    def failed(self, codec: int, model: bytes, error: NnfsError) -> bool:
        """Note that a codec has failed. Return whether it is out now."""
        key = codec, model
        if key in self._out:
            return True
        if isinstance(error, WorkerError):
            self._failures[key] += 1
        lacks = isinstance(error, CodecUnavailable | ModelMissing)
        if not lacks and self._failures[key] < IN_A_ROW:
            return False
        outage = self._out[key] = Outage(codec, model, str(error), time.time())
        log.error("codec %s is not used to compress: %s; %s", NAMES[codec], outage.why, outage.cure)
        return True

    def went_well(self, codec: int, model: bytes) -> None:
        """Note that a codec has worked."""
        self._failures.pop((codec, model), None)

    def clear(self) -> None:
        """Forget all outages, so that every codec is tried again."""
        self._out.clear()
        self._failures.clear()
        self._shipped = _shipped()

    def clear_if_shipped_anew(self) -> None:
        """Forget outages for lack of a model if other models are shipped by now."""
        if self._out and _shipped() != self._shipped:
            self.clear()

    @property
    def bits(self) -> int:
        """The codecs that are out, as bits of the state's settings."""
        return sum(BITS[codec] for codec in {codec for codec, _ in self._out})

    def summary(self) -> str:
        """Return in one line which codecs are out and why, "" when none is."""
        return "; ".join(f"codec {NAMES[one.codec]}: {one.why}; {one.cure}" for one in self._out.values())

    def report(self) -> list[dict[str, object]]:
        """Return the outages as `nnfs status` shows them."""
        return [
            {"codec": NAMES[one.codec], "model": one.model.hex(), "why": one.why, "cure": one.cure, "since": one.since}
            for one in self._out.values()
        ]


def _shipped() -> tuple[tuple[str, int, int], ...]:
    """Return names, sizes and times of the shipped models."""
    try:
        entries = sorted(os.scandir(PRESETS), key=lambda entry: entry.name)
        return tuple((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries)
    except OSError:
        return ()
