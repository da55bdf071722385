# mypy: disable-error-code="no-untyped-def,no-any-return"
"""Prediction by partial matching, variant H (Shkarin 2001), with the range coder of 7-Zip: the second engine.

`nnfs/kernels/src/ppm.c` is the first one; both write and read the same streams (section 12 of `nnfs/codec/FORMAT.md`).
A context keeps the symbols that followed it, each with a frequency; other symbols are escaped to the context that is
one byte shorter. The model has room for any chunk, so it never starts over.
"""

from __future__ import annotations

import numpy as np

from nnfs.mixer.compiling import njit
from nnfs.mixer.ppmlearning import exchange, rescale, update
from nnfs.mixer.ppmmodel import (
    AT,
    CODE,
    ESCAPE,
    ESCAPES,
    FAILED,
    FALL,
    FOUND,
    HIGH,
    KEPT,
    LEAST,
    LOW,
    MOST,
    MOST_FREQUENCY,
    ORDER,
    PERIOD,
    RANGE,
    RUN,
    SUCCESS,
    WAITING,
)


@njit(cache=True, nogil=True)
def _shift_low(r, stream):
    """Shift the range coder's lower end by a byte; write bytes that no carry can change any more."""
    if r[LOW] < 0xFF000000 or r[LOW] >> 32:
        byte = r[KEPT]
        while r[WAITING]:
            if r[AT] < stream.size:
                stream[r[AT]] = byte + (r[LOW] >> 32) & 255
            r[AT] += 1
            byte = 0xFF
            r[WAITING] -= 1
        r[KEPT] = r[LOW] >> 24 & 255
    r[WAITING] += 1
    r[LOW] = (r[LOW] & 0x00FFFFFF) << 8


@njit(cache=True, nogil=True)
def _take(m, begin, width, encodes):
    """Narrow the range to a part of it."""
    r = m.r
    if encodes:
        r[LOW] += begin
    else:
        r[CODE] -= begin
    r[RANGE] = width
    while r[RANGE] < 1 << 24:
        r[RANGE] <<= 8
        if encodes:
            _shift_low(r, m.stream)
        else:
            byte = np.int64(m.stream[r[AT]]) if r[AT] < m.stream.size else np.int64(0)
            r[CODE] = (r[CODE] << 8 | byte) & 0xFFFFFFFF
            r[AT] += 1


@njit(cache=True, nogil=True)
def _go_on(m):
    """Set the next context, by the shortest way."""
    following = np.int64(m.following[m.v[FOUND]])
    if m.v[FALL] == 0 and following > 0:
        m.v[LEAST] = m.v[MOST] = following
    else:
        update(m)


@njit(cache=True, nogil=True)
def _learn_first(m, s, c, is_first):
    """Learn a symbol that was coded in the longest context, which has several symbols."""
    v = m.v
    v[FOUND] = s
    v[SUCCESS] = np.int64(is_first and 2 * m.frequency[s] > m.total[c])
    v[RUN] += v[SUCCESS]
    m.total[c] += 4
    m.frequency[s] += 4
    if not is_first:
        if m.frequency[s] <= m.frequency[s - 1]:
            _go_on(m)
            return
        exchange(m, s, s - 1)
        v[FOUND] = s = s - 1
    if m.frequency[s] > MOST_FREQUENCY:
        rescale(m)
    _go_on(m)


@njit(cache=True, nogil=True)
def _code_binary(m, c, given, encodes):
    """Code a symbol in a context that has one symbol. Return -1 for an escape."""
    v, s = m.v, np.int64(m.first[c])
    symbol = np.int64(m.symbol[s])
    v[HIGH] = 8 if m.symbol[v[FOUND]] >= 64 else 0
    others = m.count[m.suffix[c]]
    row = v[SUCCESS] + (2 * (others - 1) if others < 3 else 4 if others < 12 else 6) + v[HIGH]
    row += (16 if symbol >= 64 else 0) + (32 if v[RUN] < 0 else 0)
    p = np.int64(m.binary[m.frequency[s] - 1, row])
    bound, mean = (m.r[RANGE] >> 14) * p, p + 32 >> PERIOD
    if symbol == given if encodes else m.r[CODE] < bound:
        _take(m, 0, bound, encodes)
        m.binary[m.frequency[s] - 1, row] = p + 128 - mean
        v[FOUND] = s
        if m.frequency[s] < 128:
            m.frequency[s] += 1
        v[SUCCESS] = 1
        v[RUN] += 1
        _go_on(m)
        return symbol
    _take(m, bound, m.r[RANGE] - bound, encodes)
    m.binary[m.frequency[s] - 1, row] = p - mean
    v[ESCAPE] = ESCAPES[p - mean >> 10]
    v[SUCCESS] = 0
    return np.int64(-1)


@njit(cache=True, nogil=True)
def _code(m, given, encodes, masked):
    """Code one symbol. Return a negative number for a payload that no encoder writes."""
    v, r = m.v, m.r
    masked[:] = 0
    c = v[LEAST]
    if m.count[c] == 1:
        symbol = _code_binary(m, c, given, encodes)
        if symbol >= 0:
            return symbol
        masked[m.symbol[m.first[c]]] = 1
    else:
        r[RANGE] //= m.total[c]
        place = r[CODE] // r[RANGE]
        if not encodes and place >= m.total[c]:
            return np.int64(-2)
        below = np.int64(0)
        for i in range(m.count[c]):
            s = np.int64(m.first[c]) + i
            symbol = np.int64(m.symbol[s])
            if symbol == given if encodes else place < below + m.frequency[s]:
                _take(m, below * r[RANGE], m.frequency[s] * r[RANGE], encodes)
                _learn_first(m, s, c, i == 0)
                return symbol
            below += m.frequency[s]
            masked[symbol] = 1
        v[SUCCESS] = 0
        v[HIGH] = 8 if m.symbol[v[FOUND]] >= 64 else 0
        _take(m, below * r[RANGE], (m.total[c] - below) * r[RANGE], encodes)
    while True:
        known = np.int64(m.count[v[LEAST]])
        while m.count[v[LEAST]] == known:
            v[FALL] += 1
            v[LEAST] = m.suffix[v[LEAST]]
            if v[LEAST] == 0:
                return np.int64(-1)
        symbol = _code_masked(m, v[LEAST], known, given, encodes, masked)
        if symbol != -1:
            return symbol


@njit(cache=True, nogil=True)
def _code_masked(m, c, known, given, encodes, masked):
    """Code a symbol in a shorter context. Return -1 for an escape."""
    r, first, count = m.r, np.int64(m.first[c]), np.int64(m.count[c])
    everything, escape, see = np.int64(0), np.int64(1), np.int64(400)
    for s in range(first, first + count):
        if not masked[m.symbol[s]]:
            everything += m.frequency[s]
    if count != 256:
        left = count - known
        see = 16 * m.see_of[left - 1] + np.int64(left < m.count[m.suffix[c]] - count)
        see += 2 * np.int64(m.total[c] < 11 * count) + 4 * np.int64(known > left) + m.v[HIGH]
        escape = np.int64(m.see[see, 0] >> m.see[see, 1])
        m.see[see, 0] = (m.see[see, 0] - escape) & 0xFFFF
        escape += np.int64(escape == 0)
    r[RANGE] //= everything + escape
    place = r[CODE] // r[RANGE]
    if not encodes and place >= everything + escape:
        return np.int64(-2)
    below = np.int64(0)
    for s in range(first, first + count):
        symbol = np.int64(m.symbol[s])
        if masked[symbol]:
            continue
        if symbol == given if encodes else place < below + m.frequency[s]:
            _take(m, below * r[RANGE], m.frequency[s] * r[RANGE], encodes)
            if m.see[see, 1] < PERIOD:
                m.see[see, 2] -= 1
                if m.see[see, 2] == 0:
                    m.see[see, 0] = m.see[see, 0] << 1 & 0xFFFF
                    m.see[see, 2] = 3 << m.see[see, 1]
                    m.see[see, 1] += 1
            m.v[FOUND] = s
            m.total[c] += 4
            m.frequency[s] += 4
            if m.frequency[s] > MOST_FREQUENCY:
                rescale(m)
            m.v[RUN] = -ORDER - 1
            update(m)
            return symbol
        below += m.frequency[s]
    _take(m, everything * r[RANGE], escape * r[RANGE], encodes)
    m.see[see, 0] = (m.see[see, 0] + everything + escape) & 0xFFFF
    for s in range(first, first + count):
        masked[m.symbol[s]] = 1
    return np.int64(-1)


@njit(cache=True, nogil=True)
def encode(m, plain):
    """Encode to `m.stream`. Return the stream's length in bytes, -1 where it does not fit."""
    masked = np.zeros(256, np.uint8)
    for i in range(plain.size):
        if _code(m, np.int64(plain[i]), True, masked) < 0 or m.v[FAILED] or m.r[AT] > m.stream.size:
            return np.int64(-1)
    for _ in range(5):
        _shift_low(m.r, m.stream)
    return m.r[AT] if m.r[AT] <= m.stream.size else np.int64(-1)


@njit(cache=True, nogil=True)
def decode(m, plain):
    """Decode `m.stream`. Return whether it holds so many bytes."""
    masked = np.zeros(256, np.uint8)
    r = m.r
    for i in range(4):
        r[CODE] = r[CODE] << 8 | (np.int64(m.stream[i]) if i < m.stream.size else np.int64(0))
    r[AT] = 4
    for i in range(plain.size):
        symbol = _code(m, np.int64(0), False, masked)
        if symbol < 0 or m.v[FAILED] or r[AT] > m.stream.size + 4:
            return False
        plain[i] = symbol
    return r[CODE] == 0 and r[AT] >= m.stream.size
