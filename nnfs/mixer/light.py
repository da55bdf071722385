# mypy: disable-error-code="no-untyped-def,no-any-return,assignment,operator"
"""Context mixing with fewer contexts, bit histories with fixed meanings and one lane: codec 20, the second engine.

`nnfs/kernels/src/light.c` is the first one; both write and read the same streams (section 13 of
`nnfs/codec/FORMAT.md`). It goes by `nnfs.mixer.mixing`, but learns each bit as soon as it is known, looks for the
place of histories once, and does not learn what a history means: that was learnt offline.
"""

from __future__ import annotations

import numpy as np

from nnfs.mixer.adaptivemaps import learn_entry
from nnfs.mixer.architecture import SETS
from nnfs.mixer.compiling import njit
from nnfs.mixer.contexts import LAST, advance, hashes
from nnfs.mixer.histories import NEXT
from nnfs.mixer.historytable import find_or_make
from nnfs.mixer.lightstate import CONTEXT, CONTEXTS, INPUTS
from nnfs.mixer.logistic import COARSE, LIMIT, SQUASH
from nnfs.mixer.matches import length_class

LEAST = 6  # bytes that the match model hashes
VERIFIED = 40
_CONTEXT = np.array(CONTEXT)
_A = 0x2545F4914F6CDD1D


@njit(cache=True, nogil=True)
def _word(n):
    """Return a number modulo 2^32, as one with a sign."""
    return (n + 2147483648 & 0xFFFFFFFF) - 2147483648


@njit(cache=True, nogil=True)
def _clamp(n):
    return min(max(n, np.int64(-LIMIT)), np.int64(LIMIT))


@njit(cache=True, nogil=True)
def follow(s, t):
    """Keep or look for a match before byte t. Return its row in the map, and the byte expected with bit 8 set."""
    m = s.match
    if m[0] > 0:
        if s.plain[m[0]] == s.plain[t - 1]:
            m[1] = min(m[1] + 1, 65535)
            m[2] = m[2] << 1 & 7
        else:
            m[1] = 0
            m[2] = (m[2] << 1 | 1) & 7
        m[0] += 1
    if t >= LEAST:
        place = (s.record[LAST] & 0xFFFFFFFFFFFF) * _A >> 48 & 0xFFFF
        candidate = np.int64(s.find[place])
        if m[1] < LEAST and candidate > 0:
            same = np.int64(0)
            while same < min(candidate, VERIFIED) and s.plain[candidate - 1 - same] == s.plain[t - 1 - same]:
                same += 1
            if same >= LEAST:
                m[0], m[1], m[2] = candidate, same, 0
        s.find[place] = t
    expected = np.int64(s.plain[m[0]]) | 256 if m[0] > 0 else np.int64(0)
    return length_class(m[1]) << 3 | m[2], expected


@njit(cache=True, nogil=True)
def second_row(context, c0):
    """Return the row of the refining map that goes by a byte of context."""
    return 256 + ((context * 0x2F0B + c0 * 0x1C35) * 0x9E37 >> 8 & 4095)


@njit(cache=True, nogil=True)
def refined(refine, answer, first, second):
    """Return the cell of two refining maps that learns, and the probability that an answer and both say."""
    place = answer + 2880
    low, part = place // 180, place % 180
    both = np.int64(0)
    for row in (first, second):
        both += np.int64(refine[row, low] >> 10) * (180 - part) + np.int64(refine[row, low + 1] >> 10) * part
    p = min(max((2 * np.int64(SQUASH[answer + LIMIT]) + both // 11520) >> 2, np.int64(1)), np.int64(65535))
    return low + (part >= 90), p


@njit(cache=True, nogil=True)
def _predict(s, k, c0, node, matched, slot):
    """Return the probability that a bit is 1. slot: of the match that expects one, or -1."""
    x, key, c1 = s.x, s.key, s.record[LAST] & 255
    hits = np.int64(0)
    for i in range(CONTEXTS):
        state = np.int64(s.table[s.line[i] + node])
        s.seen[i] = state
        pair = np.int64(s.pairs[i, state])
        low = i if i < 8 else i + 8
        x[low] = (pair + 32768 & 0xFFFF) - 32768
        x[low + (8 if i < 8 else 4)] = pair >> 16
        if 2 <= i <= 5 and state > 0:
            hits += 1
    x[19] = COARSE[s.match_map[slot] >> 20] if slot >= 0 else 0
    x[23] = 256
    key[0] = matched >> 3 if slot >= 0 else 0
    key[1] = 16 + c0
    key[2] = 272 + c1
    key[3] = 528 + (hits << 3 | k)
    total = np.int64(0)
    for j in range(SETS):
        dot = np.int64(0)
        for i in range(INPUTS):
            dot += x[i] * s.weights[key[j], i]
        key[4 + j] = _clamp(_word(dot) >> 16)
        total += key[4 + j] * s.weights_last[c0, j]
    key[8] = _clamp(_word(total) >> 16)
    key[9] = second_row(c1, c0)
    key[10], p = refined(s.refine, key[8], c0, key[9])
    return p


@njit(cache=True, nogil=True)
def _learn(s, c0, node, bit, rate, slot):
    """Learn a bit that was predicted."""
    key = s.key
    target = bit << 16
    error = (target - SQUASH[key[8] + LIMIT]) * 60 >> 8
    for j in range(SETS):
        s.weights_last[c0, j] = _word(s.weights_last[c0, j] + (key[4 + j] * error + 32768 >> 16))
        e = (target - SQUASH[key[4 + j] + LIMIT]) * rate >> 8
        for i in range(INPUTS):
            s.weights[key[j], i] = _word(s.weights[key[j], i] + (s.x[i] * e + 32768 >> 16))
    for i in range(CONTEXTS):
        s.table[s.line[i] + node] = NEXT[s.seen[i], bit]
    learn_entry(s.refine, c0, key[10], bit, 255)
    learn_entry(s.refine, key[9], key[10], bit, 255)
    if slot >= 0:
        learn_entry(s.match_map.reshape((1, 256)), 0, slot, bit, 1023)


@njit(cache=True, nogil=True)
def run(s, out, state, words, encodes):
    """Go through the bytes of a chunk: `out` (size, 8) is set to probabilities of 1, or what `words` has is decoded.

    state: the coder's, and where it is in `words`.
    """
    for t in range(s.plain.size):
        hashes(s.plain, 0, t, 0, s.record, s.hashed)
        matched, expected = follow(s, t)
        rate = 450 + 450 * 512 // (t + 256)
        c0, node = np.int64(1), np.int64(1)
        for k in range(8):
            if k % 4 == 0:
                node = np.int64(1)
                for i in range(CONTEXTS):
                    s.line[i] = find_or_make(s.table, s.hashed[_CONTEXT[i]], c0, -1)
            slot = np.int64(-1)
            if expected >> (8 - k) == c0:
                slot = matched << 1 | (expected >> (7 - k) & 1)
            p = _predict(s, k, c0, node, matched, slot)
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
            _learn(s, c0, node, bit, rate, slot)
            c0, node = c0 << 1 | bit, node << 1 | bit
        s.plain[t] = c0 & 255
        advance(t, c0 & 255, s.record)
