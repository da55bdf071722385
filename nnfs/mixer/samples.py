# mypy: disable-error-code="no-untyped-def,no-any-return,arg-type,assignment,operator"
"""Numbers in a row (sound, pixels, tables of integers): predicted by least squares, coded bit by bit, highest bit
first.

A sample is one or two bytes; `channels` of them are interleaved; with a `stride` they form rows. Six experts predict
each: least squares over the past with a long and with a short memory (in pictures the short one also learns the rows
above, around the place), three fixed predictors, and a blend of these by their errors nearby. Each expert's answer is
a logistic distribution around its prediction, as wide as its errors were in such surroundings; halving the interval
of values bit by bit turns it into a probability per bit. These meet bit histories of a few contexts in the logistic
domain, as in `mixing`. Least squares and cascaded experts follow OptimFROG, paq8px and GLICBAWLS (Meyer 2001), in
integers.

Units: predictions and errors are Q6 (1/64 of a step of the sample).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nnfs.mixer.compiling import njit
from nnfs.mixer.histories import NEXT
from nnfs.mixer.leastsquares import observe, solve
from nnfs.mixer.logistic import COARSE, FINE, LIMIT, SQUASH, STRETCH
from nnfs.mixer.mixing import learn_entry
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

_A = 0x2545F4914F6CDD1D
_B = 0x1B873593CC9E2D51
_C = 0x3C6EF372FE94F82B


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


@njit(cache=True, nogil=True)
def _at(s, p):
    return np.int64(s.value[p]) if p >= 0 else np.int64(0)


@njit(cache=True, nogil=True)
def level(v):
    """Return a class of a non-negative number: 4 to the octave."""
    n = np.int64(0)
    while v >= 8:
        v >>= 1
        n += 1
    return (n << 2) + v


@njit(cache=True, nogil=True)
def bottom_of(parameters):
    """Return the smallest value."""
    return -(np.int64(1) << (8 * parameters[BYTES] - 1)) if parameters[SIGNED] else np.int64(0)


@njit(cache=True, nogil=True)
def _gather(s, p, x):
    """Set the regressors of sample p, as differences to a base; return that."""
    channels, stride = s.parameters[CHANNELS], s.parameters[STRIDE]
    base = np.int64(0)
    if stride > 0:
        west = _at(s, p - channels)
        base = (west + (_at(s, p - stride) if p >= stride else west)) >> 1
    for i in range(s.parameters[COUNT]):
        q = p - s.offsets[i]
        x[i] = s.value[q] - base if q >= 0 else 0
    return base


@njit(cache=True, nogil=True)
def _fixed(s, p, c):
    """Set the means of the three fixed predictors."""
    channels, stride = s.parameters[CHANNELS], s.parameters[STRIDE]
    west, before = _at(s, p - channels), _at(s, p - 1)
    if stride == 0:
        west2, west3 = _at(s, p - 2 * channels), _at(s, p - 3 * channels)
        s.mean[2] = (2 * west - west2) << 6
        s.mean[3] = west << 6
        s.mean[4] = (3 * west - 3 * west2 + west3) << 6
        return
    north = corner = east = west
    if p >= stride:
        north, corner, east = _at(s, p - stride), _at(s, p - stride - channels), _at(s, p - stride + channels)
    high, low = max(west, north), min(west, north)
    s.mean[2] = (low if corner >= high else high if corner <= low else west + north - corner) << 6
    if c > 0:  # as the channel before it changed
        s.mean[3] = (west + before - _at(s, p - 1 - channels) + north + before - _at(s, p - 1 - stride)) << 5
    else:
        s.mean[3] = (west * 3 + north * 3 - 2 * corner) << 4
    s.mean[4] = (2 * west + east + 2 * north - corner - _at(s, p - 2 * stride + channels)) * 64 // 3


@njit(cache=True, nogil=True)
def _nearby(s, e, p):
    """Return 6 times the mean error of expert e around p."""
    channels, stride = s.parameters[CHANNELS], s.parameters[STRIDE]
    error = s.error[e]
    a = 2 * np.int64(error[p - channels]) if p >= channels else np.int64(0)
    if stride > 0:
        if p >= stride + channels:
            a += 2 * error[p - stride] + error[p - stride - channels] + error[p - stride + channels]
        return a
    if p > 3 * channels:
        a += 2 * error[p - 2 * channels] + 2 * error[p - 3 * channels]
        for i in range(4, 8):
            if p >= i * channels:
                a += error[p - i * channels]
        a >>= 1
    return a


@njit(cache=True, nogil=True)
def begin(s, p):
    """Predict sample p: means and widths of all experts, hashes of the contexts."""
    g = s.parameters
    channels = g[CHANNELS]
    c = (p + g[PHASE]) % channels
    bottom = bottom_of(g)
    top = bottom + (np.int64(1) << 8 * g[BYTES]) - 1
    base = _gather(s, p, s.x)
    for o in range(SOLVERS):
        a = np.int64(0)
        w = s.w[o, c]
        for i in range(g[COUNT]):
            a += w[i] * s.x[i]
        s.mean[o] = (a >> 14) + (base << 6)
    _fixed(s, p, c)
    total, weighted = np.int64(1), np.int64(0)
    for e in range(EXPERTS):
        a = _nearby(s, e, p)
        if e == BLEND:
            s.mean[e] = s.mean[0] + weighted // total
        else:
            share = (np.int64(1) << 40) // ((a + 16) * (a + 16))
            total += share
            weighted += share * (s.mean[e] - s.mean[0])
        s.mean[e] = min(max(s.mean[e], bottom << 6), top << 6)
        s.place[e] = min(level(a // 12), 255)
        width = max(s.spread[e, c, s.place[e]] * 185 >> 8, 300)  # mean error / (2 ln 2)
        s.narrow[e] = (np.int64(1) << 34) // width
    s.key[14], s.key[15] = c, base
    _contexts(s, p, c)


@njit(cache=True, nogil=True)
def _contexts(s, p, c):
    channels, stride = s.parameters[CHANNELS], s.parameters[STRIDE]
    west = _at(s, p - channels)
    north = _at(s, p - stride) if stride > 0 else _at(s, p - 2 * channels)
    h = s.hashed
    h[0] = s.mean[0] >> 6
    h[1] = s.mean[BLEND] >> 6
    h[2] = s.mean[1] >> 6
    h[3] = (west << 16) + north
    h[4] = s.mean[2] >> 6 << 16 | (_at(s, p - 1) - _at(s, p - 1 - channels)) & 0xFFFF
    h[5] = s.mean[0] >> 5 << 10 | s.place[0] << 1
    for i in range(CONTEXTS):
        h[i] = (h[i] * 8 + c + 1) * _B


@njit(cache=True, nogil=True)
def _below(s, e, v, bottom, bits):
    """Return expert e's probability of less than v, 2^32 + 2^20 being all: every value keeps a little of it."""
    d = ((v << 6) - 32 - s.mean[e]) * s.narrow[e] >> 12  # in the table's unit, with 8 bits below it
    d = min(max(d, -((LIMIT - 1) << 8)), (LIMIT - 1) << 8)
    i = (d >> 8) + LIMIT
    f = np.int64(FINE[i])
    return (f << 8) + (FINE[i + 1] - f) * (d & 255) + ((v - bottom) << 20 >> bits)


@njit(cache=True, nogil=True)
def _experts(s, k, middle, bottom, bits):
    """Set the inputs of the experts for bit k."""
    x = s.inputs
    for e in range(EXPERTS):
        if k == 0:
            s.below[e, 0] = 0
            s.below[e, 1] = (np.int64(1) << 32) + (1 << 20)
        f = _below(s, e, middle, bottom, bits)
        s.below[e, 2] = f
        p = ((s.below[e, 1] - f) << 16) // (s.below[e, 1] - s.below[e, 0] + 1)
        p = min(max(p, 1), 65535)
        x[e] = STRETCH[p]
        x[EXPERTS + e] = (p - 32768) >> 5


@njit(cache=True, nogil=True)
def _histories(s, k, low):
    """Set the inputs of the contexts for bit k of a value in an interval that starts `low` above the bottom."""
    x = s.inputs
    for i in range(CONTEXTS):
        h = (s.hashed[i] + (low + (k + 1) * 0x50005) * _C) * _A
        h ^= h >> 29
        s.seen[i] = h & ((1 << TABLE_BITS) - 1)
        state = np.int64(s.table[i, s.seen[i]])
        x[2 * EXPERTS + i], x[2 * EXPERTS + CONTEXTS + i] = 0, 0
        if state > 0:
            p = np.int64(s.maps[i, state]) >> 10
            x[2 * EXPERTS + i] = COARSE[p >> 10]
            x[2 * EXPERTS + CONTEXTS + i] = (p - 2097152) >> 11


@njit(cache=True, nogil=True)
def predict(s, k, low):
    """Return the probability (1/65536) that bit k is 1 of a value in [low, low + 2^(bits - k))."""
    g, key, x = s.parameters, s.key, s.inputs
    bits, bottom = 8 * g[BYTES], bottom_of(g)
    width = np.int64(1) << (bits - k)
    middle = low + (width >> 1)
    _experts(s, k, middle, bottom, bits)
    _histories(s, k, low - bottom)
    x[CONSTANT] = 256
    z = ((middle << 6) - 32 - s.mean[0]) * s.narrow[0] >> 18  # where the middle lies, in 1/1024 of a width
    z = (min(max(-level(-z) if z < 0 else level(z), -31), 31) + 32) >> 1
    ratio = min(level((width << 6) * s.narrow[0] >> 22) >> 1, 15)
    activity = min(s.place[0] >> 1, 31)
    key[0] = SET_STARTS[0] + (key[14] & 7) * 16 + k
    key[1] = SET_STARTS[1] + ratio * 32 + z
    key[2] = SET_STARTS[2] + activity * 16 + k
    key[3] = SET_STARTS[3] + (((low - bottom) >> (bits - k) | 1 << k) if k < 10 else 0)
    total = np.int64(0)
    for j in range(SETS):
        w = s.weights[key[j]]
        dot = np.int64(0)
        for i in range(INPUTS):
            dot += np.int64(x[i]) * np.int64(w[i])
        dot = min(max(dot >> 16, -LIMIT), LIMIT)
        key[4 + j] = dot
        total += dot * s.weights_last[k, j]
    total = min(max(total >> 16, -LIMIT), LIMIT)
    key[8] = total
    cell, part = (total + 2880) // 180, (total + 2880) % 180
    key[9], key[10], key[11] = ratio * 32 + z, 512 + activity * 16 + k, cell + (part >= 90)
    a = np.int64(0)
    for m in range(9, 11):
        a += (s.refine[key[m], cell] >> 10) * (180 - part) + (s.refine[key[m], cell + 1] >> 10) * part
    return min(max((2 * np.int64(SQUASH[total + LIMIT]) + a // (180 * 64)) >> 2, 1), 65535)


@njit(cache=True, nogil=True)
def learn_bit(s, k, bit):
    """Teach weights, histories and maps bit k."""
    key, x = s.key, s.inputs
    target = np.int64(bit) << 16
    last = (target - SQUASH[key[8] + LIMIT]) * 40 >> 8
    for j in range(SETS):
        s.weights_last[k, j] += key[4 + j] * last + 32768 >> 16
        e = (target - SQUASH[key[4 + j] + LIMIT]) * s.parameters[RATE] >> 8
        w = s.weights[key[j]]
        for i in range(INPUTS):
            w[i] += np.int32(np.int64(x[i]) * e + 32768 >> 16)
    for i in range(CONTEXTS):
        state = s.table[i, s.seen[i]]
        if state:
            learn_entry(s.maps, i, np.int64(state), bit, 1023)
        s.table[i, s.seen[i]] = NEXT[state, bit]
    learn_entry(s.refine, key[9], key[11], bit, 255)
    learn_entry(s.refine, key[10], key[11], bit, 255)
    for e in range(EXPERTS):
        s.below[e, 1 - bit] = s.below[e, 2]


@njit(cache=True, nogil=True)
def learn_sample(s, p):
    """Teach the experts sample p, which is in `value` now."""
    g = s.parameters
    v, c = np.int64(s.value[p]), s.key[14]
    channels, stride = g[CHANNELS], g[STRIDE]
    for e in range(EXPERTS):
        error = abs((v << 6) - s.mean[e])
        s.error[e, p] = error
        spread = s.spread[e, c]
        spread[s.place[e]] += ((error << 6) - spread[s.place[e]]) >> 5
    for o in range(SOLVERS):
        r, b = s.r[o, c], s.b[o, c]
        observe(r, b, g[COUNT], s.x, v - s.key[15], g[FORGET + o])
        if o == 1 and stride > 0:
            for row in range(1, ROWS_ABOVE + 1):
                q = p - row * stride + AHEAD * channels
                if stride < q < p:
                    base = _gather(s, q, s.scratch[2])
                    observe(r, b, g[COUNT], s.scratch[2], s.value[q] - base, g[FORGET + o])
        if p // channels % g[EVERY] == 0:
            solve(r, b, s.w[o, c], g[COUNT], s.lower, s.scratch[0], s.scratch[1])


@njit(cache=True, nogil=True)
def encode_path(s, out):
    """Set `out` (samples, bits) uint16 to the probabilities of 1 along the bits of `value`."""
    bits, bottom = 8 * s.parameters[BYTES], bottom_of(s.parameters)
    for p in range(s.value.size):
        begin(s, p)
        low = bottom
        for k in range(bits):
            out[p, k] = predict(s, k, low)
            half = np.int64(1) << (bits - k - 1)
            bit = np.int64(s.value[p] >= low + half)
            learn_bit(s, k, bit)
            low += bit * half
        learn_sample(s, p)


def regressors(channels: int, stride: int) -> list[int]:
    """Return how many samples back the regressors lie: the last 32, or the neighbours in the plane."""
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
    parameters[:11] = (
        count,
        size,
        channels,
        stride,
        phase,
        signed,
        len(offsets),
        2 if stride else 8,
        300,
        10,
        6 if stride else 7,
    )
    weights = np.zeros((WEIGHTS, INPUTS), np.int32)
    weights[:, :EXPERTS] = 65536 // (EXPERTS - 1)

    def zeros(*shape: int) -> npt.NDArray[np.int64]:
        return np.zeros(shape, np.int64)

    return Samples(
        parameters,
        np.zeros(count, np.int32) if values is None else values,
        np.array(offsets, np.int64),
        zeros(SOLVERS, channels, MOST, MOST),
        zeros(SOLVERS, channels, MOST),
        zeros(SOLVERS, channels, MOST),
        zeros(MOST, MOST),
        zeros(3, MOST),
        zeros(MOST),
        zeros(EXPERTS),
        zeros(EXPERTS),
        zeros(EXPERTS),
        np.zeros((EXPERTS, count), np.int32),
        np.full((EXPERTS, channels, 256), 8 << 12),
        weights,
        np.full((16, SETS), 65536 // SETS, np.int32),
        untrained_refine(REFINED, 20),
        np.zeros(INPUTS, np.int32),
        zeros(16),
        np.zeros((CONTEXTS, 1 << TABLE_BITS), np.uint8),
        untrained_maps(CONTEXTS),
        zeros(CONTEXTS),
        zeros(CONTEXTS),
        zeros(EXPERTS, 3),
    )
