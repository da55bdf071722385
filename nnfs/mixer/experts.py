# mypy: disable-error-code="no-untyped-def,no-any-return,arg-type,assignment,operator"
"""The six experts that predict a sample: least squares with two memories, three fixed predictors, and a blend.

`nnfs.mixer.samples` explains them, and turns their predictions into probabilities of bits.
"""

from __future__ import annotations

import numpy as np

from nnfs.mixer.compiling import njit
from nnfs.mixer.leastsquares import observe, solve
from nnfs.mixer.samplestate import (
    AHEAD,
    BLEND,
    BYTES,
    CHANNELS,
    COUNT,
    EVERY,
    EXPERTS,
    FORGET,
    PHASE,
    ROWS_ABOVE,
    SIGNED,
    SOLVERS,
    STRIDE,
)


@njit(cache=True, nogil=True)
def at(s, p):
    """Return sample p, 0 before the first one."""
    return np.int64(s.value[p]) if p >= 0 else np.int64(0)


@njit(cache=True, nogil=True)
def level(v):
    """Return the class of a non-negative number: there are 4 classes for each octave."""
    n = np.int64(0)
    while v >= 8:
        v >>= 1
        n += 1
    return (n << 2) + v


@njit(cache=True, nogil=True)
def bottom_of(parameters):
    """Return the smallest value that a sample of such a chunk can have."""
    return -(np.int64(1) << (8 * parameters[BYTES] - 1)) if parameters[SIGNED] else np.int64(0)


@njit(cache=True, nogil=True)
def _gather(s, p, x):
    """Set the regressors of sample p, as differences to a base. Return the base."""
    channels, stride = s.parameters[CHANNELS], s.parameters[STRIDE]
    base = np.int64(0)
    if stride > 0:
        west = at(s, p - channels)
        base = (west + (at(s, p - stride) if p >= stride else west)) >> 1
    for i in range(s.parameters[COUNT]):
        q = p - s.offsets[i]
        x[i] = s.value[q] - base if q >= 0 else 0
    return base


@njit(cache=True, nogil=True)
def _fixed(s, p, c):
    """Set the means of the three fixed predictors."""
    channels, stride = s.parameters[CHANNELS], s.parameters[STRIDE]
    west, before = at(s, p - channels), at(s, p - 1)
    if stride == 0:
        west2, west3 = at(s, p - 2 * channels), at(s, p - 3 * channels)
        s.mean[2] = (2 * west - west2) << 6
        s.mean[3] = west << 6
        s.mean[4] = (3 * west - 3 * west2 + west3) << 6
        return
    north = corner = east = west
    if p >= stride:
        north, corner, east = at(s, p - stride), at(s, p - stride - channels), at(s, p - stride + channels)
    high, low = max(west, north), min(west, north)
    s.mean[2] = (low if corner >= high else high if corner <= low else west + north - corner) << 6
    if c > 0:  # as the channel before it changed
        s.mean[3] = (west + before - at(s, p - 1 - channels) + north + before - at(s, p - 1 - stride)) << 5
    else:
        s.mean[3] = (west * 3 + north * 3 - 2 * corner) << 4
    s.mean[4] = (2 * west + east + 2 * north - corner - at(s, p - 2 * stride + channels)) * 64 // 3


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
def expect(s, p):
    """Set the means and widths of all experts for sample p."""
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


@njit(cache=True, nogil=True)
def learn_sample(s, p):
    """Update the experts with sample p, which is in `value` now."""
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
