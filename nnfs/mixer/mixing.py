# mypy: disable-error-code="no-untyped-def,no-any-return,arg-type,assignment,operator"
"""Context mixing in integers: what a chunk's own past, and a network if there is one, say of the next bit.

A chunk is cut into lanes; column t is byte t of every lane. All lanes of a column are predicted from the state that
the columns before it left, bit by bit (bit 7 first), then the column is learned, lane 0 first. With one lane this is
a plain sequential coder.

Per bit: each context's bit history is found by hash, an adaptive map turns it into a probability, two match models
add theirs, the network its own; all meet in the logistic domain, weighted by several sets of weights that learn
online (the mixing network of paq8, Mahoney); a last set weighs their answers, and two adaptive maps refine the
result. Everything starts from values trained offline."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nnfs.mixer.compiling import njit
from nnfs.mixer.contexts import CONTEXTS, LENGTH, MISSES, POINT, advance, hashes
from nnfs.mixer.histories import NEXT
from nnfs.mixer.logistic import COARSE, LIMIT, SQUASH, STRETCH

MATCHES = 2
INPUTS = 2 * CONTEXTS + MATCHES + 2
NETWORK = INPUTS - 2  # index of the network's input; the last is constant
SETS = 4
SET_STARTS = (0, 16, 272, 528)
WEIGHTS = 592
REFINED = 256 + 4096
LEAST = (6, 16)  # bytes hashed by the match models
FIND_BITS = 16

# Parameters, a row of int64 per chunk
P_SIZE, P_LANES, P_STRIDE, P_TABLE, P_RATE, P_RATE_LAST, P_MAP_LIMIT, P_REFINE_LIMIT = 0, 1, 2, 3, 4, 5, 6, 7
P_BEGIN = 8  # where the chunk begins in `plain`: behind the model's dictionary, if it has one
PARAMETERS = 9

_A = 0x2545F4914F6CDD1D


class Mix(NamedTuple):
    """The state of one chunk; stacked, with one more axis in front, that of many (`nnfs.mixer.state`)."""

    plain: Any  # (begin + size,) uint8: the dictionary, then the chunk's bytes, as far as they are known
    table: Any  # (lines * 16,) uint8: check byte and 15 bit histories per line
    maps: Any  # (CONTEXTS, 256) uint32: probability (22 bits) and count (10) by history
    match_maps: Any  # (MATCHES, 512) uint32: that the expected bit is right, by length and misses
    weights: Any  # (WEIGHTS, INPUTS) int32, 1/65536
    weights_last: Any  # (256, SETS) int32, 1/65536
    refine: Any  # (REFINED, CERTAIN) uint32: as in maps
    find: Any  # (MATCHES, 2^FIND_BITS) int32: position + 1 by hash of the bytes before
    record: Any  # (lanes, RECORD) int64
    hashed: Any  # (lanes, CONTEXTS) int64
    lines: Any  # (lanes, 2 * CONTEXTS) int64: where the histories of each nibble were found, -1: nowhere
    inputs: Any  # (lanes, 8, INPUTS) int32
    seen: Any  # (lanes, 8, CONTEXTS) uint8: bit histories used
    keys: Any  # (lanes, 8, 16) int32: sets chosen, answers of the sets, places in the maps
    partial: Any  # (2, lanes) int64: of a column being decoded, the bits so far and what the network gives them
    parameters: Any  # (PARAMETERS,) int64


def _reciprocals() -> npt.NDArray[np.int64]:
    return np.array([65536 * 2 // (2 * n + 3) for n in range(1024)], np.int64)  # 65536 / (n + 1.5)


_RECIPROCAL = _reciprocals()


@njit(cache=True, nogil=True)
def learn_entry(array, i, j, bit, limit):
    """Move an entry of a two-dimensional adaptive map towards a bit."""
    v = np.int64(array[i, j])
    p, n = v >> 10, v & 1023
    p += (((bit << 22) - p) >> 3) * _RECIPROCAL[n] >> 13
    if p < 0:
        p = 0
    elif p > 4194303:
        p = 4194303
    if n < limit:
        n += 1
    elif n > limit:
        n = limit
    array[i, j] = p << 10 | n


@njit(cache=True, nogil=True)
def _line_of(table, h, c0):
    """Return (first place, check) for a context hash at a nibble (c0 = 1, or 16..31)."""
    h = (h + c0 * 0x3C6EF372FE94F82B) * _A
    h ^= h >> 32
    mask = (table.size >> 4) - 1
    return h & mask, h >> 40 & 0xFF


@njit(cache=True, nogil=True)
def _find(table, h, c0):
    """Return where the histories of a nibble are, -1 for nowhere."""
    place, check = _line_of(table, h, c0)
    for i in range(3):
        at = (place ^ i) << 4
        if table[at] == check:
            return at
    return np.int64(-1)


@njit(cache=True, nogil=True)
def _find_or_make(table, h, c0, found):
    """Return where the histories of a nibble are (they were `found` there before), in the place of less seen ones if
    need be.
    """
    place, check = _line_of(table, h, c0)
    if found >= 0 and table[found] == check:  # other lanes may have taken the place since
        return found
    worst, least = np.int64(0), np.int64(1 << 30)
    for i in range(3):
        at = (place ^ i) << 4
        if table[at] == check:
            return at
        value = np.int64(table[at + 1])
        if value < least:
            worst, least = at, value
    for j in range(16):
        table[worst + j] = 0
    table[worst] = check
    return worst


@njit(cache=True, nogil=True)
def _match(s, columns, lane, t, m):
    """Keep or look for a match of model m before column t."""
    r = s.record[lane]
    start = s.parameters[P_BEGIN]
    base = start + lane * columns
    point, length = r[POINT + 3 * m], r[LENGTH + 3 * m]
    if t > 0 and point > 0:  # the byte before was expected at `point`
        if s.plain[point] == s.plain[base + t - 1]:
            if length < 65535:
                length += 1
            r[MISSES + 3 * m] = r[MISSES + 3 * m] << 1 & 7
        else:
            length = 0
            r[MISSES + 3 * m] = (r[MISSES + 3 * m] << 1 | 1) & 7
        point += 1
        if point >= s.plain.size or (point >= start and (point - start) % columns >= t):
            point, length = 0, 0
    least = LEAST[m]
    if length < least and t >= least:
        candidate = np.int64(s.find[m, _match_hash(s.plain, base + t, least)]) - 1
        if candidate > 0:
            found = np.int64(0)
            room = min((candidate - start) % columns if candidate >= start else candidate, t)
            while found < min(room, 40) and s.plain[candidate - 1 - found] == s.plain[base + t - 1 - found]:
                found += 1
            if found >= least and found > length:
                point, length = candidate, found
                r[MISSES + 3 * m] = 0
    if point == 0:
        length = 0
    r[POINT + 3 * m], r[LENGTH + 3 * m] = point, length


@njit(cache=True, nogil=True)
def _match_hash(plain, at, least):
    h = np.int64(0)
    for i in range(1, least + 1):
        h = (h + plain[at - i] + 1) * 0x2F0B4C47
    h *= _A
    return h >> 40 & ((1 << FIND_BITS) - 1)


@njit(cache=True, nogil=True)
def _bucket(length):
    """Return the class of a match length: 0..15."""
    if length < 8:
        return length
    bucket = np.int64(8)
    for bound in (12, 16, 24, 32, 64, 128, 512):
        if length < bound:
            return bucket
        bucket += 1
    return bucket


@njit(cache=True, nogil=True)
def begin(s, columns, lane, t):
    """Prepare a lane for column t: contexts, matches, first nibble."""
    base = s.parameters[P_BEGIN] + lane * columns
    hashes(s.plain, base, t, s.parameters[P_STRIDE], s.record[lane], s.hashed[lane])
    for m in range(MATCHES):
        _match(s, columns, lane, t, m)
    for i in range(CONTEXTS):
        s.lines[lane, i] = _find(s.table, s.hashed[lane, i], 1)


@njit(cache=True, nogil=True)
def half(s, lane, c0):
    """Go on to the second nibble, c0 in 16..31."""
    for i in range(CONTEXTS):
        s.lines[lane, CONTEXTS + i] = _find(s.table, s.hashed[lane, i], c0)


@njit(cache=True, nogil=True, inline="always")
def predict(s, lane, k, c0, network):
    """Return the probability (1/65536) that bit k (0: the highest) is 1, after the bits in c0 (1: none yet); network:
    its own, or 0.
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
                bucket = _bucket(r[LENGTH + 3 * m])
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
    """Teach the maps and weights that bit k, after the bits in c0, was `bit`."""
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
        at = _find_or_make(s.table, s.hashed[lane, i], 1, s.lines[lane, i])
        node = np.int64(1)
        for k in range(4):
            bit = byte >> (7 - k) & 1
            s.table[at + node] = NEXT[s.table[at + node], bit]
            node = node << 1 | bit
        at = _find_or_make(s.table, s.hashed[lane, i], node, s.lines[lane, CONTEXTS + i])
        node = np.int64(1)
        for k in range(4, 8):
            bit = byte >> (7 - k) & 1
            s.table[at + node] = NEXT[s.table[at + node], bit]
            node = node << 1 | bit
    for m in range(MATCHES):
        if t >= LEAST[m]:
            s.find[m, _match_hash(s.plain, base + t, LEAST[m])] = base + t + 1
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
    """Enter the dictionary, `plain` of chunk c before its beginning, into the tables: one lane, no weights learnt."""
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


@njit(cache=True, nogil=True)
def branch(frequencies, c0, k, total):
    """Return (sum of the frequencies where bit k is 1, its probability) among the bytes that begin with the bits of
    c0.
    """
    width = 256 >> k
    first = c0 * width - 256 + (width >> 1)
    ones = np.int64(0)
    for i in range(first, first + (width >> 1)):
        ones += np.int64(frequencies[i])
    p = (ones << 16) // total
    return ones, min(max(p, 1), 65535)


@njit(cache=True, nogil=True)
def net_path(frequencies, bytes_, out):
    """Set `out` (rows, 8) uint16 to the probability of 1 of each bit of `bytes_` (rows,), by `frequencies` (rows,
    256) uint32, sums < 2^31.
    """
    for row in range(bytes_.size):
        total = np.int64(0)
        for i in range(256):
            total += np.int64(frequencies[row, i])
        byte = np.int64(bytes_[row]) | 256
        for k in range(8):
            ones, p = branch(frequencies[row], byte >> (8 - k), k, total)
            out[row, k] = p
            total = ones if byte >> (7 - k) & 1 else total - ones
