"""Section 5: context mixing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tests.format.decoder.rans import Decoder
from tests.format.decoder.tables import (
    COARSE,
    LIMIT,
    NEXT,
    SQUASH,
    STRETCH,
    A,
    B,
    C,
    W,
    clamp,
    learn_entry,
    refining_map,
    signed,
)

CONTEXTS, MATCHES, SETS = 14, 2, 4
INPUTS = 2 * CONTEXTS + MATCHES + 2
LEAST = (6, 16)
SET_STARTS = (0, 16, 272, 528)


class Start(NamedTuple):
    """Start values: rows of each table."""

    maps: list[list[int]]
    match_maps: list[list[int]]
    weights: list[list[int]]
    weights_last: list[list[int]]


def place_of(h: int, c0: int, mask: int) -> tuple[int, int]:
    """5.4: return place and check byte of a nibble."""
    h = signed((h + c0 * C) * A)
    h ^= h >> 32
    return h & mask, h >> 40 & 0xFF


def line_of(table: bytearray, mask: int, h: int, c0: int) -> int:
    """5.4: return where the line of a nibble is, made if need be: in the place of the least seen of three."""
    place, check = place_of(h, c0, mask)
    places = [(place ^ i) << 4 for i in range(3)]
    for at in places:
        if table[at] == check:
            return at
    worst = min(places, key=lambda at: table[at + 1])  # the first of equal ones
    table[worst : worst + 16] = bytes([check]) + bytes(15)
    return worst


@dataclass
class Lane:
    """5.2: what a lane knows of its own past, and what it remembers of one column."""

    last: int = 0  # 64-bit word
    word: int = 0
    word_before: int = 0
    line: int = 0
    line_before: int = 0

    def __post_init__(self) -> None:
        self.point, self.length, self.misses = [0, 0], [0, 0], [0, 0]
        self.hashes = [0] * CONTEXTS
        self.lines = [-1] * (2 * CONTEXTS)
        self.seen: list[Seen] = []

    def advance(self, t: int, byte: int) -> None:
        """Take the byte of column t."""
        self.last = signed(self.last << 8 | byte)
        letter = byte + 32 if 65 <= byte <= 90 else byte
        if byte >= 128 or 97 <= letter <= 122:
            self.word = (self.word + letter + 1) * W & (1 << 46) - 1
        elif self.word:
            self.word_before, self.word = self.word, 0
        if byte == 10:
            self.line_before, self.line = self.line, t + 1


class Seen(NamedTuple):
    """The inputs from which one bit was predicted."""

    node: int  # the bits of the byte before it, behind a 1
    inputs: list[int]
    histories: list[int]
    slots: list[int]
    rows: list[int]
    answers: list[int]
    total: int
    refined: tuple[int, int]
    cell: int
    p: int


def hash_of(value: int, index: int) -> int:
    """5.3: the hash of a context."""
    h = signed((value + index * B + 1) * A)
    return signed((h ^ h >> 31) * B)


def match_hash(past: bytearray, at: int, least: int) -> int:
    """5.5: a hash of the bytes before a place."""
    h = 0
    for i in range(1, least + 1):
        h = (h + past[at - i] + 1) * W
    return signed(h * A) >> 40 & 0xFFFF


def bucket_of(length: int) -> int:
    """5.5: the class of a match's length."""
    return length if length < 8 else 8 + sum(length >= bound for bound in (12, 16, 24, 32, 64, 128, 512))


class Mixer:
    """The state of one chunk: `past` is the dictionary and then the chunk, as far as it is known."""

    def __init__(self, size: int, lanes: int, table_bits: int, start: Start, stride: int = 0, begin: int = 0) -> None:
        self.begin, self.size, self.stride = begin, size, stride
        self.lanes, self.columns = lanes, -(-size // lanes)
        self.past = bytearray(begin + size)
        self.table = bytearray(16 << table_bits)
        self.mask = (1 << table_bits) - 1
        self.find: list[dict[int, int]] = [{}, {}]
        self.lane = [Lane() for _ in range(lanes)]
        self.rate, self.rate_last = (450 if lanes == 1 else 250), 60
        self.maps, self.match_maps, self.weights, self.weights_last = ([list(row) for row in part] for part in start)
        self.refine: dict[int, list[int]] = {}

    def base(self, lane: int) -> int:
        """Return the place in `past` at which a lane's bytes begin."""
        return self.begin + lane * self.columns

    # -- 5.3 contexts

    def contexts(self, lane: int, t: int) -> list[int]:
        """The 14 hashes of a column."""
        r, base, past = self.lane[lane], self.base(lane), self.past
        c = r.last
        c1 = c & 0xFF
        column = t - r.line
        up_at = r.line_before + column
        above = past[base + up_at] if up_at < r.line else 0
        values = [
            0, c1, c & 0xFFFF, c & 0xFFFFFF, c & 0xFFFFFFFF, c & 0xFFFFFFFFFF, c & 0xFFFFFFFFFFFF,
            r.word * 256 + c1, (r.word + r.word_before * 0x9E3779B1) * 256 + c1,
            c & 0xFFFF00, c & 0xE0E0E0E0E0E0, 0, 0, c & 0xFFFF0000,
        ]  # fmt: skip
        if self.stride:
            up = past[base + t - self.stride] if t >= self.stride else 0
            up2 = past[base + t - 2 * self.stride] if t >= 2 * self.stride else 0
            values[11], values[12] = c1 << 8 | up, t % self.stride << 16 | up << 8 | up2
        else:
            values[11], values[12] = above << 8 | c1, above << 8 | min(column, 255)
        return [0] + [hash_of(values[i], i) for i in range(1, CONTEXTS)]

    # -- 5.4 histories

    def look(self, h: int, c0: int) -> int:
        """Return the place of a nibble's histories, -1 where there are none."""
        place, check = place_of(h, c0, self.mask)
        return next(((place ^ i) << 4 for i in range(3) if self.table[(place ^ i) << 4] == check), -1)

    def look_or_make(self, h: int, c0: int, found: int) -> int:
        """The same; what is nowhere takes the place of the least seen."""
        if found >= 0 and self.table[found] == place_of(h, c0, self.mask)[1]:
            return found
        return line_of(self.table, self.mask, h, c0)

    # -- 5.5 matches

    def match(self, lane: int, t: int, m: int) -> None:
        """Keep or look for a match before column t."""
        r, past = self.lane[lane], self.past
        here = self.base(lane) + t
        point, length = r.point[m], r.length[m]
        if t > 0 and point > 0:
            if past[point] == past[here - 1]:
                length, r.misses[m] = min(length + 1, 65535), r.misses[m] << 1 & 7
            else:
                length, r.misses[m] = 0, (r.misses[m] << 1 | 1) & 7
            point += 1
            if point >= len(past) or (point >= self.begin and (point - self.begin) % self.columns >= t):
                point = length = 0
        if length < LEAST[m] <= t:
            candidate = self.find[m].get(match_hash(past, here, LEAST[m]), 0) - 1
            if candidate > 0:
                room = (candidate - self.begin) % self.columns if candidate >= self.begin else candidate
                most, found = min(room, t, 40), 0
                while found < most and past[candidate - 1 - found] == past[here - 1 - found]:
                    found += 1
                if found >= LEAST[m] and found > length:
                    point, length, r.misses[m] = candidate, found, 0
        r.point[m], r.length[m] = point, length if point else 0

    # -- 5.6 prediction

    def begin_column(self, lane: int, t: int) -> None:
        """Contexts, matches and the histories of the first nibble."""
        r = self.lane[lane]
        r.hashes, r.seen = self.contexts(lane, t), []
        for m in range(MATCHES):
            self.match(lane, t, m)
        r.lines = [self.look(h, 1) for h in r.hashes] + [-1] * CONTEXTS

    def refined(self, row: int) -> list[int]:
        """A row of the refining maps, made when it is first used."""
        return self.refine.setdefault(row, refining_map(6))

    def predict(self, lane: int, k: int, c0: int, network: int = 0) -> int:
        """The probability that bit k is 1; network: its own, 0 without one."""
        r = self.lane[lane]
        if k == 4:
            r.lines[CONTEXTS:] = [self.look(h, c0) for h in r.hashes]
        node = c0 if k < 4 else c0 & (1 << k - 4) - 1 | 1 << k - 4
        lines = r.lines[:CONTEXTS] if k < 4 else r.lines[CONTEXTS:]
        histories = [self.table[at + node] if at >= 0 else 0 for at in lines]
        x = [0] * INPUTS
        for i, state in enumerate(histories):
            if state:
                p = self.maps[i][state] >> 10
                x[i], x[CONTEXTS + i] = COARSE[p >> 10], p - 2097152 >> 11
        slots, expected = [-1, -1], 0
        for m in range(MATCHES):
            if r.point[m] > 0:
                byte = self.past[r.point[m]] | 256
                if byte >> 8 - k == c0:
                    bucket = bucket_of(r.length[m])
                    slots[m] = (bucket << 3 | r.misses[m]) << 1 | byte >> 7 - k & 1
                    x[2 * CONTEXTS + m] = COARSE[self.match_maps[m][slots[m]] >> 20]
                    expected = max(expected, bucket)
        x[INPUTS - 2], x[INPUTS - 1] = (STRETCH[network] if network else 0), 256
        c1 = r.last & 0xFF
        third = min(abs(x[INPUTS - 2]) >> 7, 15) << 3 | k if network else c1
        chosen = (expected, c0, third, sum(state > 0 for state in histories[2:7]) << 3 | k)
        rows = [begin + own for begin, own in zip(SET_STARTS, chosen, strict=True)]
        answers = [
            clamp(sum(a * b for a, b in zip(x, self.weights[row], strict=True)) >> 16, -LIMIT, LIMIT) for row in rows
        ]
        last = self.weights_last[c0]
        total = clamp(sum(a * b for a, b in zip(answers, last, strict=True)) >> 16, -LIMIT, LIMIT)
        low, part = divmod(total + 2880, 180)
        pair = c0, 256 + ((c1 * 0x2F0B + c0 * 0x1C35) * 0x9E37 >> 8 & 4095)
        both = sum(
            (self.refined(row)[low] >> 10) * (180 - part) + (self.refined(row)[low + 1] >> 10) * part for row in pair
        )
        p = clamp(2 * SQUASH[total + LIMIT] + both // 11520 >> 2, 1, 65535)
        r.seen.append(Seen(c0, x, histories, slots, rows, answers, total, pair, low + (part >= 90), p))
        return p

    # -- 5.7 learning

    def learn_bit(self, seen: Seen, bit: int, rate: int) -> None:
        """Teach weights and maps one bit."""
        target = bit << 16
        error = (target - SQUASH[seen.total + LIMIT]) * self.rate_last >> 8
        for j, (row, answer) in enumerate(zip(seen.rows, seen.answers, strict=True)):
            self.weights_last[seen.node][j] += answer * error + 32768 >> 16
            e = (target - SQUASH[answer + LIMIT]) * rate >> 8
            w = self.weights[row]
            for i, x in enumerate(seen.inputs):
                w[i] += x * e + 32768 >> 16
        for i, state in enumerate(seen.histories):
            if state:
                learn_entry(self.maps[i], state, bit, 1023)
        for m, slot in enumerate(seen.slots):
            if slot >= 0:
                learn_entry(self.match_maps[m], slot, bit, 1023)
        for row in seen.refined:
            learn_entry(self.refined(row), seen.cell, bit, 255)

    def learn_byte(self, lane: int, base: int, t: int) -> None:
        """Enter a byte, which is in `past` now, into the tables."""
        r, byte = self.lane[lane], self.past[base + t]
        for i, h in enumerate(r.hashes):
            for half in (0, 1):
                c0 = 1 if half == 0 else 16 | byte >> 4
                at = self.look_or_make(h, c0, r.lines[half * CONTEXTS + i])
                node = 1
                for k in range(4):
                    bit = byte >> 7 - 4 * half - k & 1
                    self.table[at + node] = NEXT[self.table[at + node]][bit]
                    node = node << 1 | bit
        for m in range(MATCHES):
            if t >= LEAST[m]:
                self.find[m][match_hash(self.past, base + t, LEAST[m])] = base + t + 1
        r.advance(t, byte)

    def learn(self, lane: int, t: int) -> None:
        """Learn the byte of a lane at column t."""
        byte = self.past[self.base(lane) + t]
        rate = self.rate + self.rate * 512 // (self.begin + t * self.lanes + 256)
        for k, seen in enumerate(self.lane[lane].seen):
            self.learn_bit(seen, byte >> 7 - k & 1, rate)
        self.learn_byte(lane, self.base(lane), t)

    def enter(self, dictionary: bytes) -> None:
        """7.6: enter a dictionary, which lies before the chunk, as one lane."""
        whole = Mixer(len(dictionary), 1, 1, Start([], [], [], []))
        whole.past[:], whole.table, whole.mask, whole.find = dictionary, self.table, self.mask, self.find
        for t in range(len(dictionary)):
            whole.lane[0].hashes = whole.contexts(0, t)
            whole.learn_byte(0, 0, t)
        self.past[: self.begin] = dictionary

    # -- 5.1 the order of it all

    def decode_column(self, t: int, coder: Decoder, frequencies: list[list[int]] | None = None) -> None:
        """Decode and learn a column; frequencies: the network's, 256 for each lane."""
        active = (self.size - t + self.columns - 1) // self.columns
        for lane in range(active):
            self.begin_column(lane, t)
        bits = [1] * active
        for k in range(8):
            for lane in range(active):
                own = branch(frequencies[lane], bits[lane], k) if frequencies else 0
                bits[lane] = bits[lane] << 1 | coder.bit(lane, self.predict(lane, k, bits[lane], own))
        for lane in range(active):
            self.past[self.base(lane) + t] = bits[lane] & 255
        for lane in range(active):
            self.learn(lane, t)

    def plain(self) -> bytes:
        """The chunk."""
        return bytes(self.past[self.begin :])


def branch(frequencies: list[int], c0: int, k: int) -> int:
    """6.8: the network's probability that bit k is 1."""
    width = 256 >> k
    first = c0 * width - 256
    ones = sum(frequencies[first + width // 2 : first + width])
    return clamp((ones << 16) // sum(frequencies[first : first + width]), 1, 65535)
