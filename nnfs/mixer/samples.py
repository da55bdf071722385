# mypy: disable-error-code="no-untyped-def,no-any-return,arg-type,assignment,operator"
"""The mixer for samples (sound, pixels, tables of integers): least squares predict them, bit by bit, highest first.

A sample is one or two bytes; `channels` of them are interleaved; with a `stride` they form rows. Six experts predict
each: least squares over the past with a long and with a short memory (in pictures the short one also learns the rows
above, around the place), three fixed predictors, and a blend of these by their errors nearby. Each expert's answer is
a logistic distribution around its prediction, as wide as its errors were in such surroundings; halving the interval
of values bit by bit turns it into a probability per bit. These meet bit histories of a few contexts in the logistic
domain, as in `mixing`. Least squares and cascaded experts follow OptimFROG, paq8px and GLICBAWLS (Meyer 2001), in
integers.

Units: predictions and errors are Q6 (1/64 of a step of the sample). In all functions `s` is the state of a chunk
(`samplestate.Samples`), p the number of a sample, and k a bit of it, 0 for the highest.
"""

from __future__ import annotations

import numpy as np

from nnfs.mixer.adaptivemaps import learn_entry
from nnfs.mixer.compiling import njit
from nnfs.mixer.experts import at, bottom_of, expect, learn_sample, level
from nnfs.mixer.histories import NEXT
from nnfs.mixer.logistic import COARSE, FINE, LIMIT, SQUASH, STRETCH
from nnfs.mixer.samplestate import (
    BLEND,
    BYTES,
    CHANNELS,
    CONSTANT,
    CONTEXTS,
    EXPERTS,
    INPUTS,
    RATE,
    SET_STARTS,
    SETS,
    STRIDE,
    TABLE_BITS,
)

_A = 0x2545F4914F6CDD1D
_B = 0x1B873593CC9E2D51
_C = 0x3C6EF372FE94F82B


@njit(cache=True, nogil=True)
def begin(s, p):
    """Predict sample p: means and widths of all experts, hashes of the contexts."""
    expect(s, p)
    _contexts(s, p, s.key[14])


@njit(cache=True, nogil=True)
def _contexts(s, p, c):
    channels, stride = s.parameters[CHANNELS], s.parameters[STRIDE]
    west = at(s, p - channels)
    north = at(s, p - stride) if stride > 0 else at(s, p - 2 * channels)
    h = s.hashed
    h[0] = s.mean[0] >> 6
    h[1] = s.mean[BLEND] >> 6
    h[2] = s.mean[1] >> 6
    h[3] = (west << 16) + north
    h[4] = s.mean[2] >> 6 << 16 | (at(s, p - 1) - at(s, p - 1 - channels)) & 0xFFFF
    h[5] = s.mean[0] >> 5 << 10 | s.place[0] << 1
    for i in range(CONTEXTS):
        h[i] = (h[i] * 8 + c + 1) * _B


@njit(cache=True, nogil=True)
def _below(s, e, v, bottom, bits):
    """Return expert e's probability of a value below v, as a share of 2^32 + 2^20: every value keeps a little."""
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
    """Update weights, histories and maps with bit k."""
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
