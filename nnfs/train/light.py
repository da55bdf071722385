"""Training of the values that codec 20 starts from (`nnfs.mixer.lightstate`). It needs the native kernels.

First the meanings of bit histories: how often a 1 followed each of them, in each context. Then the weights, as
`nnfs.train.mixing` does it: each chunk starts from an average, and moves it a little towards where it ended."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnfs.errors import CodecError
from nnfs.mixer import native
from nnfs.mixer.architecture import SETS
from nnfs.mixer.lightstate import CONTEXTS, INPUTS, ROWS, LightState, LightValues
from nnfs.mixer.startvalues import untrained_maps
from nnfs.train.mixing import LAST_STEP, STEP, trusted

SLOPES = (*range(8, 16), *range(20, 24))  # inputs without a weight at first


def untrained() -> LightValues:
    """Return what training begins with."""
    weights = np.full((ROWS, INPUTS), 16384, np.int32)
    weights[:, SLOPES] = 0
    maps = np.clip(untrained_maps(CONTEXTS) >> 16, 1, 65535).astype(np.uint16)
    maps[:, 0] = 0
    slot = np.arange(256)
    right = 65536 - 65536 // (4 + 4 * (slot >> 4))
    match_map = (np.where(slot & 1, right, 65536 - right) << 16 | 4).astype(np.uint32)
    return LightValues(maps, match_map, weights, np.full((256, SETS), 65536 // SETS, np.int32))


def train(plains: Sequence[bytes], first: LightValues | None = None) -> LightValues:
    """Return start values learnt from some chunks, as the codec encodes them (x86 code converted)."""
    kernels, state, now = native.kernels(), LightState(), first or untrained()
    if kernels is None:
        raise CodecError("training of codec 20 needs the native kernels: python -m nnfs.kernels.build")
    counts = np.zeros((CONTEXTS, 256, 2), np.uint32)
    for plain in plains:
        kernels.light_encode(state.start(plain, now), np.empty((len(plain), 8), np.uint16), counts)
    now = LightValues(_meanings(counts, now), now.match_map, now.weights, now.weights_last)
    weights, last = now.weights.astype(np.float64), now.weights_last.astype(np.float64)
    for i, plain in enumerate(plains):
        s = state.start(plain, now)
        kernels.light_encode(s, np.empty((len(plain), 8), np.uint16))
        step = STEP + (LAST_STEP - STEP) * i / len(plains)
        weights += step * (s.weights - weights)
        last += step * (s.weights_last - last)
        now = LightValues(
            now.maps, s.match_map.copy(), np.rint(weights).astype(np.int32), np.rint(last).astype(np.int32)
        )
    return LightValues(now.maps, trusted(now.match_map), now.weights, now.weights_last)


def _meanings(
    counts: np.ndarray[tuple[int, ...], np.dtype[np.uint32]], before: LightValues
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    """Return the probability of a 1 after each history: that counted, with what it was before counted as two bits."""
    zeros, ones = counts[..., 0].astype(np.float64), counts[..., 1].astype(np.float64)
    p = (ones + 2 * before.maps / 65536) / (zeros + ones + 2)
    maps = np.clip(np.rint(p * 65536), 1, 65535).astype(np.uint16)
    maps[:, 0] = 0
    return maps
