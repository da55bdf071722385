# mypy: disable-error-code="no-untyped-def,no-any-return"
"""Prediction by partial matching, variant H (Shkarin 2001), with the range coder of 7-Zip: the second engine.

`nnfs/kernels/src/ppm.c` is the first one; both write and read the same streams (section 12 of `nnfs/codec/FORMAT.md`).
A context keeps the symbols that followed it, each with a frequency; what did not is escaped to the context that is one
byte shorter. The model has room for whatever a chunk can make of it, so it never starts over.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nnfs.mixer.compiling import njit

ORDER = 8
MOST_FREQUENCY = 124
PERIOD = 7
STATES_A_BYTE, FIRST_STATES = 5 * ORDER, 512
# Places in `v`
SYMBOLS, CONTEXTS, WRITTEN, LEAST, MOST, FOUND, FALL, ESCAPE, SUCCESS, HIGH, RUN, FAILED = range(12)
LOW, RANGE, CODE, AT, WAITING, KEPT = range(6)  # in `r`
ESCAPES = np.array([25, 14, 9, 7, 5, 5, 4, 4, 4, 3, 3, 3, 2, 2, 2, 2])
FIRST_BINARY = np.array([0x3CDD, 0x1F3F, 0x59BF, 0x48F3, 0x64A1, 0x5ABC, 0x6632, 0x6051])


class Model(NamedTuple):
    """All that is known of a chunk. Contexts count from 1."""

    v: Any  # int64: the fields named above
    r: Any  # int64: the range coder
    stream: Any  # uint8
    text: Any  # (size + 1,) uint8
    symbol: Any  # uint8, of each state
    frequency: Any  # int32
    following: Any  # int32: 0 nothing, above it a context, below it -1 - a place in `text`
    count: Any  # int32, of each context: states
    room: Any
    total: Any
    first: Any
    suffix: Any
    see: Any  # (401, 3) int32: sum, shift, count; the last one stands for a context of 256 symbols
    see_of: Any  # (256,)
    binary: Any  # (128, 64) int32


def see_classes() -> list[int]:
    """Return the row of `see` for each number of symbols, less 1."""
    found, value, left = [0, 1, 2], 3, 1
    while len(found) < 256:
        found.append(value)
        left -= 1
        if left == 0:
            value += 1
            left = value - 2
    return found


def start(size: int, stream: Any) -> Model:
    """Return the model of a chunk of `size` bytes that knows nothing yet."""
    states, contexts = FIRST_STATES + STATES_A_BYTE * size, 2 + (ORDER + 1) * size
    see = np.zeros((401, 3), np.int32)
    see[:400] = np.repeat([((5 * i + 10) << (PERIOD - 4), PERIOD - 4, 4) for i in range(25)], 16, 0)
    see[400] = 0, PERIOD, 64
    m = Model(
        np.zeros(12, np.int64), np.zeros(6, np.int64), stream, np.zeros(size + 1, np.uint8),
        np.zeros(states, np.uint8), np.zeros(states, np.int32), np.zeros(states, np.int32),
        np.zeros(contexts, np.int32), np.zeros(contexts, np.int32), np.zeros(contexts, np.int32),
        np.zeros(contexts, np.int32), np.zeros(contexts, np.int32), see, np.array(see_classes()),
        (1 << 14) - np.tile(FIRST_BINARY, 8)[None, :] // (np.arange(128)[:, None] + 2),
    )  # fmt: skip
    m.symbol[:256], m.frequency[:256] = np.arange(256), 1
    m.count[1] = m.room[1] = 256
    m.total[1] = 257
    m.v[:] = 256, 2, 0, 1, 1, 0, ORDER, 0, 0, 0, -ORDER - 1, 0
    m.r[RANGE] = 0xFFFFFFFF
    return m


@njit(cache=True, nogil=True)
def _new(m, count):
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
def _exchange(m, a, b):
    m.symbol[a], m.symbol[b] = m.symbol[b], m.symbol[a]
    m.frequency[a], m.frequency[b] = m.frequency[b], m.frequency[a]
    m.following[a], m.following[b] = m.following[b], m.following[a]


@njit(cache=True, nogil=True)
def _state_of(m, c, symbol):
    at = np.int64(m.first[c])
    while m.symbol[at] != symbol:
        at += 1
    return at


@njit(cache=True, nogil=True)
def _successors(m, skip):
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
            _exchange(m, s, s - 1)
            s -= 1
    if m.frequency[s] < MOST_FREQUENCY - 9:
        m.frequency[s] += 2
        m.total[c] += 2


@njit(cache=True, nogil=True)
def _add(m, c, symbol, frequency, successor, count, rest):
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
def _update(m):
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
def _rescale(m):
    c = m.v[LEAST]
    first, s, more = np.int64(m.first[c]), m.v[FOUND], np.int64(m.v[FALL] != 0)
    while s != first:
        _exchange(m, s, s - 1)
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
            _exchange(m, at, at - 1)
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


@njit(cache=True, nogil=True)
def _shift_low(r, stream):
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
    """Go on to a part of the range."""
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
    following = np.int64(m.following[m.v[FOUND]])
    if m.v[FALL] == 0 and following > 0:
        m.v[LEAST] = m.v[MOST] = following
    else:
        _update(m)


@njit(cache=True, nogil=True)
def _learn_first(m, s, c, is_first):
    """Learn a symbol of the longest context, which has several."""
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
        _exchange(m, s, s - 1)
        v[FOUND] = s = s - 1
    if m.frequency[s] > MOST_FREQUENCY:
        _rescale(m)
    _go_on(m)


@njit(cache=True, nogil=True)
def _code_binary(m, c, given, encodes):
    """Code a symbol in a context that has one; -1 for another."""
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
    """Code one symbol; negative where a payload cannot be."""
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
    """Code a symbol in a shorter context; -1 for an escape."""
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
                _rescale(m)
            m.v[RUN] = -ORDER - 1
            _update(m)
            return symbol
        below += m.frequency[s]
    _take(m, everything * r[RANGE], escape * r[RANGE], encodes)
    m.see[see, 0] = (m.see[see, 0] + everything + escape) & 0xFFFF
    for s in range(first, first + count):
        masked[m.symbol[s]] = 1
    return np.int64(-1)


@njit(cache=True, nogil=True)
def encode(m, plain):
    """Encode to `m.stream`. Return the stream's length, -1 where it does not fit."""
    masked = np.zeros(256, np.uint8)
    for i in range(plain.size):
        if _code(m, np.int64(plain[i]), True, masked) < 0 or m.v[FAILED] or m.r[AT] > m.stream.size:
            return np.int64(-1)
    for _ in range(5):
        _shift_low(m.r, m.stream)
    return m.r[AT] if m.r[AT] <= m.stream.size else np.int64(-1)


@njit(cache=True, nogil=True)
def decode(m, plain):
    """Decode `m.stream`; tell whether it holds so many bytes."""
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
