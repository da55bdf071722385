# mypy: disable-error-code="no-untyped-def,no-any-return"
"""The learning of a symbol by the model of `nnfs.mixer.ppm`: frequencies, new contexts, rescaling."""

from __future__ import annotations

import numpy as np

from nnfs.mixer.compiling import njit
from nnfs.mixer.ppmmodel import (
    CONTEXTS,
    ESCAPE,
    FAILED,
    FALL,
    FOUND,
    LEAST,
    MOST,
    MOST_FREQUENCY,
    ORDER,
    SYMBOLS,
    WRITTEN,
)


@njit(cache=True, nogil=True)
def _new(m, count):
    """Return the first of `count` new states. With no room left set FAILED."""
    at = m.v[SYMBOLS]
    if at + count > m.symbol.size:
        m.v[FAILED] = 1
        return np.int64(0)
    m.v[SYMBOLS] = at + count
    return at


@njit(cache=True, nogil=True)
def _copy(m, source, target):
    m.symbol[target] = m.symbol[source]
    m.frequency[target] = m.frequency[source]
    m.following[target] = m.following[source]


@njit(cache=True, nogil=True)
def exchange(m, a, b):
    """Exchange two states."""
    m.symbol[a], m.symbol[b] = m.symbol[b], m.symbol[a]
    m.frequency[a], m.frequency[b] = m.frequency[b], m.frequency[a]
    m.following[a], m.following[b] = m.following[b], m.following[a]


@njit(cache=True, nogil=True)
def _state_of(m, c, symbol):
    """Return the state of a symbol that context c has."""
    at = np.int64(m.first[c])
    while m.symbol[at] != symbol:
        at += 1
    return at


@njit(cache=True, nogil=True)
def _successors(m, skip):
    """Make the successors of the found state and of its shorter contexts. Return the longest."""
    way = np.zeros(ORDER + 2, np.int64)
    count = 0
    c, found = m.v[LEAST], m.v[FOUND]
    symbol, branch = m.symbol[found], np.int64(m.following[found])
    if not skip:
        way[0] = found
        count = 1
    while m.suffix[c]:
        c = np.int64(m.suffix[c])
        s = _state_of(m, c, symbol)
        if m.following[s] != branch:
            c = np.int64(m.following[s])
            if count == 0:
                return c
            break
        if count > ORDER:
            m.v[FAILED] = 1
            return np.int64(1)
        way[count] = s
        count += 1
    up = m.text[-1 - branch]
    s = _state_of(m, c, up)
    frequency = np.int64(m.frequency[s])
    if m.count[c] != 1:
        own = frequency - 1
        others = np.int64(m.total[c]) - m.count[c] - own
        if 2 * own <= others:
            frequency = 1 + np.int64(5 * own > others)
        else:
            frequency = 1 + (2 * own + 3 * others - 1) // (2 * others)
    while count:
        s = _new(m, 1)
        made = m.v[CONTEXTS]
        if m.v[FAILED] or made >= m.count.size:
            m.v[FAILED] = 1
            return np.int64(1)
        m.symbol[s], m.frequency[s], m.following[s] = up, frequency & 255, branch - 1
        m.count[made], m.room[made], m.total[made], m.first[made], m.suffix[made] = 1, 1, 0, s, c
        count -= 1
        m.following[way[count]] = made
        c = made
        m.v[CONTEXTS] = made + 1
    return c


@njit(cache=True, nogil=True)
def _lift(m):
    """Raise the found symbol's frequency in the context that is one byte shorter."""
    found = m.v[FOUND]
    c = m.suffix[m.v[LEAST]]
    s = np.int64(m.first[c])
    if m.count[c] == 1:
        if m.frequency[s] < 32:
            m.frequency[s] += 1
        return
    if m.symbol[s] != m.symbol[found]:
        s = _state_of(m, c, m.symbol[found])
        if m.frequency[s] >= m.frequency[s - 1]:
            exchange(m, s, s - 1)
            s -= 1
    if m.frequency[s] < MOST_FREQUENCY - 9:
        m.frequency[s] += 2
        m.total[c] += 2


@njit(cache=True, nogil=True)
def _add(m, c, symbol, frequency, successor, count, rest):
    """Add a symbol to context c, with a frequency that the longest context suggests."""
    own = np.int64(m.count[c])
    if own == m.room[c]:
        first = _new(m, 2 * own)
        if m.v[FAILED]:
            return
        for i in range(own):
            _copy(m, m.first[c] + i, first + i)
        m.first[c] = first
        m.room[c] = 2 * own
    if own != 1:
        total = np.int64(m.total[c])
        m.total[c] += np.int64(2 * own < count) + 2 * np.int64(4 * own <= count and total <= 8 * own)
    else:
        s = m.first[c]
        m.frequency[s] = m.frequency[s] << 1 if m.frequency[s] < MOST_FREQUENCY // 4 - 1 else MOST_FREQUENCY - 4
        m.total[c] = m.frequency[s] + m.v[ESCAPE] + np.int64(count > 3)
    total = np.int64(m.total[c])
    share, everything = 2 * frequency * (total + 6), rest + total
    if share < 6 * everything:
        share = 1 + np.int64(share > everything) + np.int64(share >= 4 * everything)
        m.total[c] += 3
    else:
        share = 4 + np.int64(share >= 9 * everything) + np.int64(share >= 12 * everything)
        share += np.int64(2 * frequency * (total + 6) >= 15 * everything)
        m.total[c] += share
    at = m.first[c] + own
    m.symbol[at], m.frequency[at], m.following[at] = symbol, share, successor
    m.count[c] = own + 1


@njit(cache=True, nogil=True)
def update(m):
    """Learn the found symbol: add it to the contexts that lacked it, and set the next context."""
    v, found = m.v, m.v[FOUND]
    following = np.int64(m.following[found])
    if m.frequency[found] < MOST_FREQUENCY // 4 and m.suffix[v[LEAST]]:
        _lift(m)
    if v[FALL] == 0:
        v[LEAST] = v[MOST] = _successors(m, True)
        m.following[found] = v[LEAST]
        return
    symbol, frequency = m.symbol[found], np.int64(m.frequency[found])
    m.text[v[WRITTEN]] = symbol
    v[WRITTEN] += 1
    successor = -1 - v[WRITTEN]
    if following:
        if following < 0:
            following = _successors(m, False)
        v[FALL] -= 1
        if v[FALL] == 0:
            successor = following
            if v[MOST] != v[LEAST]:
                v[WRITTEN] -= 1
    else:
        m.following[found] = successor
        following = v[LEAST]
    count = np.int64(m.count[v[LEAST]])
    rest = np.int64(m.total[v[LEAST]]) - count - (frequency - 1)
    c = v[MOST]
    while c != v[LEAST] and not v[FAILED]:
        _add(m, c, symbol, frequency, successor, count, rest)
        c = np.int64(m.suffix[c])
    v[MOST] = v[LEAST] = following


@njit(cache=True, nogil=True)
def rescale(m):
    """Halve the frequencies of the current context, and put its states in falling order."""
    c = m.v[LEAST]
    first, s, more = np.int64(m.first[c]), m.v[FOUND], np.int64(m.v[FALL] != 0)
    while s != first:
        exchange(m, s, s - 1)
        s -= 1
    escape = np.int64(m.total[c]) - m.frequency[s]
    m.frequency[s] = (m.frequency[s] + 4 + more) >> 1
    total = np.int64(m.frequency[s])
    for s in range(first + 1, first + m.count[c]):
        escape -= m.frequency[s]
        m.frequency[s] = (m.frequency[s] + more) >> 1
        total += m.frequency[s]
        at = s
        while at != first and m.frequency[at] > m.frequency[at - 1]:
            exchange(m, at, at - 1)
            at -= 1
    m.v[FOUND] = first
    if m.frequency[first + m.count[c] - 1] == 0:
        while m.frequency[first + m.count[c] - 1] == 0:
            m.count[c] -= 1
            escape += 1
        if m.count[c] == 1:
            while True:
                m.frequency[first] -= m.frequency[first] >> 1
                escape >>= 1
                if escape <= 1:
                    return
    m.total[c] = total + escape - (escape >> 1)
