"""The start values of the mixer, trained offline (`nnfs.train.mixing`).

Those of a mixer without a network are kept beside this module: they are part of codec 17, so they never change. Those
of a mixer beside a network are part of its model.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

from nnfs.mixer import architecture as a
from nnfs.mixer.contexts import CONTEXTS
from nnfs.mixer.histories import COUNTS
from nnfs.mixer.logistic import LIMIT, SQUASH

PATH = os.path.join(os.path.dirname(__file__), "mixing.npz")
STORED = ("maps", "match_maps", "weights", "weights_last")
CERTAIN = 33  # cells of a refining map: 180 units each from -2880 on


@dataclass(frozen=True)
class StartValues:
    """The start values of one chunk's mixer."""

    maps: npt.NDArray[np.uint32]  # (contexts, 256)
    match_maps: npt.NDArray[np.uint32]  # (matches, 512)
    weights: npt.NDArray[np.int32]  # (weights, inputs)
    weights_last: npt.NDArray[np.int32]  # (256, sets)
    refine: npt.NDArray[np.uint32]  # (maps, buckets)

    def rates(self, lanes: int) -> tuple[int, int, int, int]:
        """Return the parameters of learning for a chunk of this many lanes.

        They are the rate of the weights, that of the last weights, and the limits of the counts of both kinds of maps.
        """
        return (450 if lanes == 1 else 250, 60, 1023, 255)


@cache
def start_values() -> StartValues:
    """Return the stored start values of a mixer without a network. Those beside a network are in its model."""
    with np.load(PATH, allow_pickle=False) as stored:
        return replace(untrained(False), **{field: stored[field] for field in STORED})


def untrained_maps(contexts: int) -> npt.NDArray[np.uint32]:
    """Return maps from bit histories to the probabilities that their counts suggest."""
    counts = COUNTS.astype(np.int64)
    p = (counts[:, 1] * 10 + 4) * 4194303 // (counts.sum(1) * 10 + 8)
    return np.repeat((p << 10)[None], contexts, 0).astype(np.uint32)


def untrained_refine(maps: int, count: int) -> npt.NDArray[np.uint32]:
    """Return refining maps that change nothing yet, as if each entry had been seen `count` times."""
    steps = np.clip(np.arange(CERTAIN) * 180 - 2880, -LIMIT, LIMIT)
    return np.repeat((SQUASH[steps + LIMIT].astype(np.int64) << 16 | count)[None], maps, 0).astype(np.uint32)


def untrained(network: bool) -> StartValues:
    """Return plausible values to train from."""
    length = np.arange(512) >> 4
    right = 4194303 - 4194303 // (length * 2 + 3)
    match_maps = np.where(np.arange(512) & 1, right, 4194303 - right) << 10
    weights = np.zeros((a.WEIGHTS, a.INPUTS), np.int32)
    weights[:, :CONTEXTS] = 8192 if network else 16384
    weights[:, 2 * CONTEXTS : 2 * CONTEXTS + a.MATCHES] = 8192 if network else 16384
    weights[:, a.NETWORK] = 49152 if network else 0
    return StartValues(
        untrained_maps(CONTEXTS),
        np.repeat(match_maps[None], a.MATCHES, 0).astype(np.uint32),
        weights,
        np.full((256, a.SETS), 65536 // a.SETS, np.int32),
        untrained_refine(a.REFINED, 6),
    )
