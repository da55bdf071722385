# mypy: disable-error-code="no-untyped-def,no-any-return,assignment,operator"
"""The mixer for records of numbers (offsets, columns of doubles, channels): codec 21, second engine.

`nnfs/kernels/src/fields.c` is the first one; both write and read the same streams (section 14 of
`nnfs/codec/FORMAT.md`). A chunk is records of `stride` bytes, a record is fields of `width` bytes. Seven ways foretell
a field from the numbers around it (as in the record above, on a line, as much more as the field to the left, an offset
by the length before). The two that were best in the last three records guess the byte, and so does the byte that
followed the last time on these first bytes of a field. Each guess gives three inputs: by how far the byte is from it,
and whether its bits are right. They meet bit histories of 16 contexts, as in `nnfs.mixer.light`; every bit is learnt at
once.

In `s.key`: 0-5 rows of weights, 6-11 answers, 12 total, 13 cell, 14 second refining row, 15 slot of the match or -1,
16-18 rows of `delta`, 19-21 slots of guesses or -1.
"""

from __future__ import annotations

import numpy as np

from nnfs.mixer.adaptivemaps import learn_entry
from nnfs.mixer.compiling import njit
from nnfs.mixer.contexts import LAST, WORD, advance, context_hash
from nnfs.mixer.fieldstate import (
    BACK,
    BIG,
    CONTEXTS,
    GUESS,
    GUESSES,
    INDIRECT,
    INPUTS,
    MATCH,
    ONE,
    SET_STARTS,
    SETS,
    SKIP,
    STRIDE,
    WAYS,
    WIDTH,
)
from nnfs.mixer.histories import NEXT
from nnfs.mixer.historytable import find_or_make
from nnfs.mixer.light import follow, refined, second_row
from nnfs.mixer.logistic import COARSE, LIMIT, SQUASH

_A = 0x2545F4914F6CDD1D
_C = 0x3C6EF372FE94F82B


@njit(cache=True, nogil=True)
def _number(s, at):
    """Return the number of the field that begins at a place, modulo 2^64; 0 before the chunk."""
    width = s.parameters[WIDTH]
    v = np.int64(0)
    if at >= 0:
        for i in range(width):
            v |= np.int64(s.plain[at + i]) << 8 * (width - 1 - i if s.parameters[BIG] else i)
    return v


@njit(cache=True, nogil=True)
def _extended(v, count):
    """Return the low `count` bytes of a number, as one with a sign."""
    return v << (64 - 8 * count) >> (64 - 8 * count) if count else np.int64(0)


@njit(cache=True, nogil=True)
def _bits(v):
    own = ~v if v < 0 else v
    n = np.int64(0)
    while own:
        own >>= 1
        n += 1
    return n


@njit(cache=True, nogil=True)
def _foretold(way, v, left, k):
    """Return the number of record k (0: this one) as a way foretells it."""
    if way == 0:
        return v[k + 1]
    if way == 1:
        return 2 * v[k + 1] - v[k + 2]
    if way == 2:
        return left[k] + v[k + 1] - left[k + 1]
    if way == 3:
        return 2 * v[k + 1] + left[k + 1] - v[k + 2] - left[k + 2]
    if way == 4:
        return 2 * v[k + 1] + left[k] - v[k + 2] - left[k + 1]
    return left[k] if way == 5 else v[k + 2]


@njit(cache=True, nogil=True)
def _guess(s, m, way):
    """Set guess m to the byte that a way gives."""
    width, place, known = s.parameters[WIDTH], s.field[0], s.field[2]
    value = _foretold(way, s.numbers[0], s.numbers[1], 0)
    worth = width - 1 - place if s.parameters[BIG] else place
    difference = np.int64(0)
    if s.parameters[BIG]:
        d = np.int64(0)
        if place:
            d = known - (value >> 8 * (width - place) & ((np.int64(1) << 8 * place) - 1))
        if d:
            difference = np.int64(1) if d == 1 else np.int64(2) if d == -1 else np.int64(3)
    else:
        d = _extended(known - value, place)
        value += d
        if d:
            difference = np.int64(1) if d > 0 else np.int64(2)
    g = s.guess[m]
    g[0] = value >> 8 * worth & 255
    g[1] = difference
    g[2] = s.scores[1, way]
    g[3] = min(max(s.scores[0, way] // BACK - 8 * worth + 2, np.int64(0)), np.int64(10))


@njit(cache=True, nogil=True)
def _begin(s, t):
    """Find the field that byte t is in, and guess the byte. Return the place in `indirect`."""
    width, stride = s.parameters[WIDTH], s.parameters[STRIDE]
    place = (t + width - s.parameters[SKIP]) % width
    start = t - place
    v, left = s.numbers[0], s.numbers[1]
    for k in range(BACK + 3):
        v[k] = _number(s, start - k * stride) if k else np.int64(0)
        left[k] = _number(s, start - width - k * stride)
    known = np.int64(0)
    for i in range(place):
        if start + i >= 0:
            known |= np.int64(s.plain[start + i]) << 8 * (place - 1 - i if s.parameters[BIG] else i)
    s.field[0], s.field[1], s.field[2] = place, v[1], known
    best, second = 0, -1
    for way in range(WAYS):
        score, hits = np.int64(0), np.int64(0)
        for k in range(1, BACK + 1):
            error = _extended(v[k] - _foretold(way, v, left, k), width)
            score += _bits(error)
            hits |= np.int64(error == 0) << (k - 1)
        s.scores[0, way], s.scores[1, way] = score, hits
        if score < s.scores[0, best]:
            best = way
    for way in range(WAYS):
        if way != best and (second < 0 or s.scores[0, way] < s.scores[0, second]):
            second = way
    _guess(s, 0, best)
    _guess(s, 1, second)
    at = (known * 8 + place) * _A >> 48 & 0xFFFF
    g = s.guess[INDIRECT]
    g[0], g[1] = s.indirect[at] & 255, 0
    g[2], g[3] = min(s.indirect[at] >> 8, 7), place
    return at


@njit(cache=True, nogil=True)
def _hashes(s, t):
    """Set the hashes of the contexts of byte t."""
    stride, c8, g, h = s.parameters[STRIDE], s.record[LAST], s.guess, s.hashed
    c1, column, above = c8 & 0xFF, t % stride << 32, t - stride
    up = np.int64(s.plain[above]) if above >= 0 else np.int64(0)
    up2 = np.int64(s.plain[above - stride]) if above >= stride else np.int64(0)
    before = np.int64(s.plain[above - 1]) if above >= 1 else np.int64(0)
    behind = np.int64(s.plain[above + 1]) if above >= -1 and stride > 1 else np.int64(0)
    h[0] = column
    h[1] = column | c1
    h[2] = c8 & 0xFFFF
    h[3] = c8 & 0xFFFFFF
    h[4] = c8 & 0xFFFFFFFF
    h[5] = column | c1 << 8 | up
    h[6] = c8 & 0xFFFFFFFFFFFF
    h[7] = s.record[WORD] * 256 + c1
    h[8] = column | before << 16 | c1 << 8 | up
    h[9] = column | g[0, 0] << 8 | g[0, 1] << 4 | g[0, 2]
    h[10] = column | g[0, 0] << 16 | g[1, 0] << 8 | g[0, 1] << 2 | g[1, 1]
    h[11] = c1 << 8 | up
    h[12] = column | up << 8 | up2
    h[13] = s.field[1] * _A + s.field[2] * _C + s.field[0]
    h[14] = column | c8 & 0xFFFF
    h[15] = column | behind << 16 | (up - before + c1 & 255) << 8
    for i in range(CONTEXTS):
        h[i] = context_hash(h[i], i)


@njit(cache=True, nogil=True)
def _inputs(s, k, c0, node, matched, expected):
    """Set the inputs of bit k. Return how many contexts count as hits, and which guesses agree with the bits so far."""
    x, key = s.x, s.key
    hits, agree = np.int64(0), np.int64(0)
    for i in range(CONTEXTS):
        state = np.int64(s.table[s.line[i] + node])
        s.seen[i] = state
        x[i], x[CONTEXTS + i] = 0, 0
        if state:
            p = np.int64(s.maps[i, state]) >> 10
            x[i], x[CONTEXTS + i] = COARSE[p >> 10], (p - 2097152) >> 11
            if i == 3 or i == 5 or i == 8 or i == 10 or i == 12 or i == 13:
                hits += 1
    key[15], x[MATCH] = -1, 0
    if expected >> (8 - k) == c0:
        key[15] = matched << 1 | (expected >> (7 - k) & 1)
        x[MATCH] = COARSE[s.match_map[0, key[15]] >> 20]
    for m in range(GUESSES):
        g = s.guess[m]
        at = GUESS + 3 * m
        key[16 + m] = (m * 44 + (g[3] << 2 | g[1])) << 3 | k
        p = np.int64(s.delta[key[16 + m], (c0 << (8 - k)) - g[0] & 255]) >> 10
        x[at], x[at + 1], x[at + 2] = COARSE[p >> 10], (p - 2097152) >> 11, 0
        key[19 + m] = -1
        if (g[0] | 256) >> (8 - k) == c0:
            key[19 + m] = (g[2] << 2 | g[1]) << 4 | s.field[0] << 1 | (g[0] >> (7 - k) & 1)
            x[at + 2] = COARSE[s.guess_map[m, key[19 + m]] >> 20]
            agree |= 1 << m
    return hits, agree


@njit(cache=True, nogil=True)
def _predict(s, k, c0, column, matched, hits, agree):
    """Return the probability that bit k is 1."""
    x, key, g = s.x, s.key, s.guess[0]
    key[0] = SET_STARTS[0] + (matched >> 3 if key[15] >= 0 else 0)
    key[1] = SET_STARTS[1] + c0
    key[2] = SET_STARTS[2] + (column & 255)
    key[3] = SET_STARTS[3] + (hits << 3 | k)
    key[4] = SET_STARTS[4] + ((g[2] << 2 | g[1]) << 3 | k)
    key[5] = SET_STARTS[5] + ((g[3] << 3 | agree) << 3 | k)
    total = np.int64(0)
    for j in range(SETS):
        dot = np.int64(0)
        for i in range(INPUTS):
            dot += x[i] * s.weights[key[j], i]
        key[6 + j] = min(max(dot >> 16, -LIMIT), LIMIT)
        total += key[6 + j] * s.weights_last[c0, j]
    key[12] = min(max(total >> 16, -LIMIT), LIMIT)
    key[14] = second_row(column, c0)
    key[13], p = refined(s.refine, key[12], c0, key[14])
    return p


@njit(cache=True, nogil=True)
def _learn(s, k, c0, node, bit, rate):
    """Learn bit k, which was predicted."""
    key = s.key
    target = bit << 16
    error = (target - SQUASH[key[12] + LIMIT]) * 60 >> 8
    for j in range(SETS):
        s.weights_last[c0, j] += key[6 + j] * error + 32768 >> 16
        e = (target - SQUASH[key[6 + j] + LIMIT]) * rate >> 8
        w = s.weights[key[j]]
        for i in range(INPUTS):
            w[i] += np.int32(s.x[i] * e + 32768 >> 16)
    for i in range(CONTEXTS):
        if s.seen[i]:
            learn_entry(s.maps, i, s.seen[i], bit, 1023)
        s.table[s.line[i] + node] = NEXT[s.seen[i], bit]
    if key[15] >= 0:
        learn_entry(s.match_map, 0, key[15], bit, 1023)
    for m in range(GUESSES):
        learn_entry(s.delta, key[16 + m], (c0 << (8 - k)) - s.guess[m, 0] & 255, bit, 255)
        if key[19 + m] >= 0:
            learn_entry(s.guess_map, m, key[19 + m], bit, 1023)
    learn_entry(s.refine, c0, key[13], bit, 255)
    learn_entry(s.refine, key[14], key[13], bit, 255)


@njit(cache=True, nogil=True)
def _learn_byte(s, t, at, byte):
    """Enter byte t, which followed on the place `at` of `indirect`."""
    s.plain[t] = byte
    old = np.int64(s.indirect[at])
    count = old >> 8
    if old & 255 == byte:
        s.indirect[at] = byte | min(count + 1, 255) << 8
    else:
        s.indirect[at] = byte | np.int64(count > 3) << 8
    advance(t, byte, s.record)


@njit(cache=True, nogil=True)
def run(s, out, state, words, encodes):
    """Go through the bytes of a chunk: `out` (size, 8) is set to probabilities of 1, or what `words` has is decoded.

    state: the coder's, and where it is in `words`.
    """
    s.x[ONE] = 256
    for t in range(s.plain.size):
        column, rate = t % s.parameters[STRIDE], 450 + 450 * 512 // (t + 256)
        at = _begin(s, t)
        _hashes(s, t)
        matched, expected = follow(s, t)
        c0, node = np.int64(1), np.int64(1)
        for k in range(8):
            if k % 4 == 0:
                node = np.int64(1)
                for i in range(CONTEXTS):
                    s.line[i] = find_or_make(s.table, s.hashed[i], c0, -1)
            hits, agree = _inputs(s, k, c0, node, matched, expected)
            p = _predict(s, k, c0, column, matched, hits, agree)
            if encodes:
                out[t, k] = p
                bit = np.int64(s.plain[t]) >> (7 - k) & 1
            else:
                high, low = state[0] >> 16, state[0] & 0xFFFF
                bit = np.int64(low < p)
                x = p * high + low if bit else (65536 - p) * high + low - p
                if x < 1 << 32 and state[1] + 2 <= words.size:
                    x = x << 16 | np.int64(words[state[1]]) << 8 | np.int64(words[state[1] + 1])
                    state[1] += 2
                state[0] = x
            _learn(s, k, c0, node, bit, rate)
            c0, node = c0 << 1 | bit, node << 1 | bit
        _learn_byte(s, t, at, c0 & 255)
