# mypy: disable-error-code="no-untyped-def,no-any-return,arg-type,assignment,operator"
"""Context mixing in integers: the probability of the next bit by a chunk's own past, and a network if there is one.

A chunk is cut into lanes; column t is byte t of every lane. All lanes of a column are predicted from the state that
the columns before it left, bit by bit (bit 7 first), then the column is learned, lane 0 first. With one lane this is
a plain sequential coder.

Per bit: each context's bit history is found by hash, an adaptive map turns it into a probability, two match models
add theirs, the network its own; all meet in the logistic domain, weighted by several sets of weights that learn
online (the mixing network of paq8, Mahoney); a last set weighs their answers, and two adaptive maps refine the
result. Everything starts from values trained offline.

In all functions `s` is the state of one chunk (`architecture.Mix`), `stack` that of many, `columns` the bytes of a
lane, t a column, and k a bit of a byte, 0 for the highest.
"""

from __future__ import annotations

import numpy as np

from nnfs.mixer.adaptivemaps import learn_entry
from nnfs.mixer.architecture import (
    INPUTS,
    LEAST,
    MATCHES,
    NETWORK,
    P_BEGIN,
    P_LANES,
    P_MAP_LIMIT,
    P_RATE,
    P_RATE_LAST,
    P_REFINE_LIMIT,
    P_SIZE,
    P_STRIDE,
    P_TABLE,
    SET_STARTS,
    SETS,
    Mix,
)
from nnfs.mixer.compiling import njit
from nnfs.mixer.contexts import CONTEXTS, LENGTH, MISSES, POINT, advance, hashes
from nnfs.mixer.histories import NEXT
from nnfs.mixer.historytable import find, find_or_make
from nnfs.mixer.logistic import COARSE, LIMIT, SQUASH, STRETCH
from nnfs.mixer.matches import follow, length_class, match_hash


@njit(cache=True, nogil=True)
def begin(s, columns, lane, t):
    """Prepare a lane for column t: hashes of contexts, matches, histories of the first nibble."""
    base = s.parameters[P_BEGIN] + lane * columns
    hashes(s.plain, base, t, s.parameters[P_STRIDE], s.record[lane], s.hashed[lane])
    for m in range(MATCHES):
        follow(s, columns, lane, t, m)
    for i in range(CONTEXTS):
        s.lines[lane, i] = find(s.table, s.hashed[lane, i], 1)


@njit(cache=True, nogil=True)
def half(s, lane, c0):
    """Find the histories of the second nibble, after the first (c0 in 16..31)."""
    for i in range(CONTEXTS):
        s.lines[lane, CONTEXTS + i] = find(s.table, s.hashed[lane, i], c0)


@njit(cache=True, nogil=True, inline="always")
def predict(s, lane, k, c0, network):
    """Return the probability (1/65536) that bit k (0: the highest) is 1, after the bits in c0 (1: none yet).

    network: the network's own probability, or 0.
    """
    x = s.inputs[lane, k]
    key = s.keys[lane, k]
    r = s.record[lane]
    node = c0 if k < 4 else c0 & ((1 << (k - 4)) - 1) | 1 << (k - 4)
    first = 0 if k < 4 else CONTEXTS
    hits = np.int64(0)
    for i in range(CONTEXTS):
        at = s.lines[lane, first + i]
        state = np.int64(0)
        if at >= 0:
            state = np.int64(s.table[at + node])
        s.seen[lane, k, i] = state
        if state == 0:
            x[i] = 0
            x[CONTEXTS + i] = 0
        else:
            p = np.int64(s.maps[i, state]) >> 10
            x[i] = COARSE[p >> 10]
            x[CONTEXTS + i] = (p - 2097152) >> 11
            if 2 <= i <= 6:
                hits += 1
    expected = np.int64(0)
    for m in range(MATCHES):
        point = r[POINT + 3 * m]
        slot = np.int64(-1)
        a = np.int64(0)
        if point > 0:
            byte = np.int64(s.plain[point]) | 256
            if byte >> (8 - k) == c0:
                bit = byte >> (7 - k) & 1
                bucket = length_class(r[LENGTH + 3 * m])
                slot = (bucket << 3 | r[MISSES + 3 * m]) << 1 | bit
                p = np.int64(s.match_maps[m, slot]) >> 10
                a = np.int64(COARSE[p >> 10])
                expected = max(expected, bucket)
        x[2 * CONTEXTS + m] = a
        key[8 + m] = slot
    x[NETWORK] = STRETCH[network] if network > 0 else 0
    x[NETWORK + 1] = 256
    c1 = r[0] & 0xFF
    key[0] = SET_STARTS[0] + expected
    key[1] = SET_STARTS[1] + c0
    if network > 0:
        n = np.int64(x[NETWORK])
        n = (n if n >= 0 else -n) >> 7
        key[2] = SET_STARTS[2] + (min(n, 15) << 3 | k)
    else:
        key[2] = SET_STARTS[2] + c1
    key[3] = SET_STARTS[3] + (hits << 3 | k)
    total = np.int64(0)
    for j in range(SETS):
        w = s.weights[key[j]]
        dot = np.int64(0)
        for i in range(INPUTS):
            dot += np.int64(x[i]) * np.int64(w[i])
        dot >>= 16
        if dot > LIMIT:
            dot = np.int64(LIMIT)
        elif dot < -LIMIT:
            dot = np.int64(-LIMIT)
        key[4 + j] = dot
        total += dot * s.weights_last[c0, j]
    total >>= 16
    if total > LIMIT:
        total = np.int64(LIMIT)
    elif total < -LIMIT:
        total = np.int64(-LIMIT)
    key[10] = total
    # Refined: by the bits so far, and by the byte before with them
    place = total + 2880
    low, part = place // 180, place % 180
    key[11] = c0
    key[12] = 256 + ((c1 * 0x2F0B + c0 * 0x1C35) * 0x9E37 >> 8 & 4095)
    key[13] = low + (part >= 90)
    p = np.int64(SQUASH[total + LIMIT])
    a = (s.refine[key[11], low] >> 10) * (180 - part) + (s.refine[key[11], low + 1] >> 10) * part
    b = (s.refine[key[12], low] >> 10) * (180 - part) + (s.refine[key[12], low + 1] >> 10) * part
    p = (2 * p + (a + b) // (180 * 64)) >> 2
    if p < 1:
        p = np.int64(1)
    elif p > 65535:
        p = np.int64(65535)
    return p


@njit(cache=True, nogil=True, inline="always")
def learn_bit(s, lane, k, c0, bit, rate):
    """Update maps and weights: bit k, after the bits in c0, was `bit`."""
    rate_last = s.parameters[P_RATE_LAST]
    limit = s.parameters[P_MAP_LIMIT]
    x = s.inputs[lane, k]
    key = s.keys[lane, k]
    target = bit << 16
    error = (target - SQUASH[key[10] + LIMIT]) * rate_last >> 8
    for j in range(SETS):
        s.weights_last[c0, j] += key[4 + j] * error + 32768 >> 16
        e = (target - SQUASH[key[4 + j] + LIMIT]) * rate >> 8
        w = s.weights[key[j]]
        for i in range(INPUTS):
            w[i] += np.int32(np.int64(x[i]) * e + 32768 >> 16)
    for i in range(CONTEXTS):
        state = s.seen[lane, k, i]
        if state > 0:
            learn_entry(s.maps, i, state, bit, limit)
    for m in range(MATCHES):
        if key[8 + m] >= 0:
            learn_entry(s.match_maps, m, key[8 + m], bit, 1023)
    learn_entry(s.refine, key[11], key[13], bit, s.parameters[P_REFINE_LIMIT])
    learn_entry(s.refine, key[12], key[13], bit, s.parameters[P_REFINE_LIMIT])


@njit(cache=True, nogil=True)
def learn_byte(s, base, lane, t):
    """Enter the byte of a lane (its bytes start at `base`) at column t, which is in `plain` now, into the tables."""
    byte = np.int64(s.plain[base + t])
    for i in range(CONTEXTS):
        at = find_or_make(s.table, s.hashed[lane, i], 1, s.lines[lane, i])
        node = np.int64(1)
        for k in range(4):
            bit = byte >> (7 - k) & 1
            s.table[at + node] = NEXT[s.table[at + node], bit]
            node = node << 1 | bit
        at = find_or_make(s.table, s.hashed[lane, i], node, s.lines[lane, CONTEXTS + i])
        node = np.int64(1)
        for k in range(4, 8):
            bit = byte >> (7 - k) & 1
            s.table[at + node] = NEXT[s.table[at + node], bit]
            node = node << 1 | bit
    for m in range(MATCHES):
        if t >= LEAST[m]:
            s.find[m, match_hash(s.plain, base + t, LEAST[m])] = base + t + 1
    advance(t, byte, s.record[lane])


@njit(cache=True, nogil=True)
def learn(s, columns, lane, t):
    """Learn the byte of a lane at column t, which is in `plain` now."""
    start = s.parameters[P_BEGIN]
    base = start + lane * columns
    byte = np.int64(s.plain[base + t]) | 256
    rate = s.parameters[P_RATE]
    rate += rate * 512 // (start + t * s.parameters[P_LANES] + 256)  # three times as fast in the beginning
    for k in range(8):
        learn_bit(s, lane, k, byte >> (8 - k), byte >> (7 - k) & 1, rate)
    learn_byte(s, base, lane, t)


@njit(cache=True, nogil=True)
def enter(stack, c):
    """Enter the dictionary, `plain` of chunk c before `begin`, into the tables: as one lane; no weights learn."""
    s = one(stack, c)
    for t in range(s.parameters[P_BEGIN]):
        hashes(s.plain, 0, t, 0, s.record[0], s.hashed[0])
        for i in range(2 * CONTEXTS):
            s.lines[0, i] = -1
        learn_byte(s, 0, 0, t)


@njit(cache=True, nogil=True)
def one(stack, c):
    """Return the state of chunk c of a stack."""
    parameters = stack.parameters[c]
    return Mix(
        stack.plain[c, : parameters[P_BEGIN] + parameters[P_SIZE]],
        stack.table[c, : 16 << parameters[P_TABLE]],
        stack.maps[c],
        stack.match_maps[c],
        stack.weights[c],
        stack.weights_last[c],
        stack.refine[c],
        stack.find[c],
        stack.record[c],
        stack.hashed[c],
        stack.lines[c],
        stack.inputs[c],
        stack.seen[c],
        stack.keys[c],
        stack.partial[c],
        parameters,
    )


@njit(cache=True, nogil=True)
def encode_path(stack, c, network, out):
    """Set `out` (columns, lanes, 8) uint16 to the probabilities of 1 along the bytes of chunk c's `plain`.

    network: the network's own probabilities, of the same shape (see `net_path`), or of size 0 where there is none.
    """
    s = one(stack, c)
    size, lanes = s.parameters[P_SIZE], s.parameters[P_LANES]
    columns = (size + lanes - 1) // lanes
    with_network = network.size > 0
    for t in range(columns):
        active = (size - t + columns - 1) // columns
        for lane in range(active):
            begin(s, columns, lane, t)
            byte = np.int64(s.plain[s.parameters[P_BEGIN] + lane * columns + t]) | 256
            for k in range(8):
                c0 = byte >> (8 - k)
                if k == 4:
                    half(s, lane, c0)
                own = np.int64(network[t, lane, k]) if with_network else np.int64(0)
                out[t, lane, k] = predict(s, lane, k, c0, own)
        for lane in range(active):
            learn(s, columns, lane, t)
