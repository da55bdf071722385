"""The state of a chunk of samples, for `nnfs.mixer.samples` and `nnfs.mixer.experts`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nnfs.mixer.startvalues import untrained_maps, untrained_refine

EXPERTS, BLEND = 6, 5
SOLVERS = 2
MOST = 32  # regressors
CONTEXTS = 6
INPUTS = 2 * EXPERTS + 2 * CONTEXTS + 8  # padded: a multiple of 8 makes the loops fast
CONSTANT = 2 * EXPERTS + 2 * CONTEXTS
SETS = 4
SET_STARTS = (0, 128, 640, 1152)
WEIGHTS = 1152 + 1024
REFINED = 1024
TABLE_BITS = 18
ROWS_ABOVE, AHEAD = 4, 8  # of the place, that the short memory learns too; pixels ahead of it

# Parameters of a chunk
SAMPLES, BYTES, CHANNELS, STRIDE, PHASE, SIGNED, COUNT, EVERY, RATE, FORGET = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
PARAMETERS = 12


class Samples(NamedTuple):
    """The state of one chunk."""

    parameters: Any  # (PARAMETERS,) int64
    value: Any  # (samples,) int32: as far as they are known
    offsets: Any  # (count,) int64: of the regressors, in samples back
    r: Any  # (SOLVERS, channels, MOST, MOST) int64: covariances
    b: Any  # (SOLVERS, channels, MOST) int64: with the target
    w: Any  # (SOLVERS, channels, MOST) int64: weights
    lower: Any  # (MOST, MOST) int64: scratch of the solver
    scratch: Any  # (3, MOST) int64
    x: Any  # (MOST,) int64: regressors
    mean: Any  # (EXPERTS,) int64, Q6
    narrow: Any  # (EXPERTS,) int64: 1 / scale of the distribution, Q22 / Q6
    place: Any  # (EXPERTS,) int64: in `spread`
    error: Any  # (EXPERTS, samples) int32, Q6
    spread: Any  # (EXPERTS, channels, 256) int64: mean error by that nearby, Q12
    weights: Any  # (WEIGHTS, INPUTS) int32
    weights_last: Any  # (16, SETS) int32
    refine: Any  # (REFINED, CERTAIN) uint32
    inputs: Any  # (INPUTS,) int32
    key: Any  # (16,) int64: choices made for this bit
    table: Any  # (CONTEXTS, 2^TABLE_BITS) uint8: bit histories
    maps: Any  # (CONTEXTS, 256) uint32
    hashed: Any  # (CONTEXTS,) int64
    seen: Any  # (CONTEXTS,) int64
    below: Any  # (EXPERTS, 3) int64: probability of less than the interval's start, end, middle


def regressors(channels: int, stride: int) -> list[int]:
    """Return how many samples back the regressors lie: the last 32, or the neighbours in a picture."""
    if stride == 0:
        return list(range(1, MOST + 1))
    here = [1, 2, 3, 4, 5, 6, 9] if channels > 1 else [1, 2, 3, 4]
    c = channels
    above = [0, 1, 2, 3, 6, -1, -2, -3, -4, -6] if c > 1 else [0, 1, 2, 3, -1, -2, -3]
    two_above = [-c, 0, c]
    offsets = here + [stride - d for d in above] + [2 * stride - d for d in two_above]
    return sorted({o for o in offsets if o > 0})[:MOST]


def start(
    count: int,
    size: int,
    channels: int,
    stride: int,
    phase: int,
    signed: bool,
    values: npt.NDArray[np.int32] | None = None,
) -> Samples:
    """Return the state of a chunk of `count` samples of `size` bytes; values: to encode them."""
    offsets = regressors(channels, stride)
    parameters = np.zeros(PARAMETERS, np.int64)
    every, short = (2, 6) if stride else (8, 7)
    parameters[:11] = count, size, channels, stride, phase, signed, len(offsets), every, 300, 10, short
    weights = np.zeros((WEIGHTS, INPUTS), np.int32)
    weights[:, :EXPERTS] = 65536 // (EXPERTS - 1)

    def zeros(*shape: int) -> npt.NDArray[np.int64]:
        return np.zeros(shape, np.int64)

    return Samples(
        parameters=parameters, value=np.zeros(count, np.int32) if values is None else values,
        offsets=np.array(offsets, np.int64),
        r=zeros(SOLVERS, channels, MOST, MOST), b=zeros(SOLVERS, channels, MOST), w=zeros(SOLVERS, channels, MOST),
        lower=zeros(MOST, MOST), scratch=zeros(3, MOST), x=zeros(MOST),
        mean=zeros(EXPERTS), narrow=zeros(EXPERTS), place=zeros(EXPERTS),
        error=np.zeros((EXPERTS, count), np.int32), spread=np.full((EXPERTS, channels, 256), 8 << 12),
        weights=weights, weights_last=np.full((16, SETS), 65536 // SETS, np.int32),
        refine=untrained_refine(REFINED, 20),
        inputs=np.zeros(INPUTS, np.int32), key=zeros(16),
        table=np.zeros((CONTEXTS, 1 << TABLE_BITS), np.uint8), maps=untrained_maps(CONTEXTS),
        hashed=zeros(CONTEXTS), seen=zeros(CONTEXTS), below=zeros(EXPERTS, 3),
    )  # fmt: skip
