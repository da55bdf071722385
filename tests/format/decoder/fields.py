"""Section 14: fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from tests.format.decoder.mixing import bucket_of, hash_of
from tests.format.decoder.onelane import OneLane
from tests.format.decoder.rans import Damaged, Decoder
from tests.format.decoder.tables import (
    COARSE,
    LIMIT,
    NEXT,
    SQUASH,
    A,
    C,
    clamp,
    learn_entry,
    signed,
    untrained_map,
)

CONTEXTS, INPUTS, GUESSES = 16, 48, 3
HITS = (3, 5, 8, 10, 12, 13)
HALF = 1 << 31


@dataclass
class Layout:
    """14.1: bytes 1 to 3."""

    width: int
    skip: int
    big: bool
    turned: bool
    stride: int

    @classmethod
    def parse(cls, head: bytes) -> Layout:
        """Return the layout in the head of a payload."""
        if len(head) < 4:
            raise Damaged("the payload ends in its head")
        f = head[1]
        layout = cls((f & 7) + 1, f >> 3 & 7, bool(f & 64), bool(f & 128), int.from_bytes(head[2:4], "big"))
        if not layout.stride or layout.stride % layout.width or layout.skip >= layout.width:
            raise Damaged("impossible fields")
        return layout


class Guess(NamedTuple):
    """14.3: a byte that may come."""

    byte: int
    difference: int
    hits: int
    noise: int


def of_bytes(v: int, count: int) -> int:
    """14.3: the low bytes of a number, as one with a sign."""
    v &= (1 << 8 * count) - 1
    return v - (1 << 8 * count) if count and v >> 8 * count - 1 else v


def size(v: int) -> int:
    """14.3: the bits of a number with a sign."""
    return (-1 - v if v < 0 else v).bit_length()


class Fields(OneLane):
    """The state of one chunk."""

    def __init__(self, length: int, layout: Layout) -> None:
        super().__init__(length, 20, 4)
        self.layout = layout
        self.maps = [untrained_map() for _ in range(CONTEXTS)]
        self.match_map = []
        for slot in range(256):
            right = 4194303 - 4194303 // (2 * (slot >> 4) + 3)
            self.match_map.append((right if slot & 1 else 4194303 - right) << 10)
        self.guess_map = [[HALF] * 512 for _ in range(GUESSES)]
        self.delta: dict[tuple[int, ...], list[int]] = {}
        self.indirect: dict[int, tuple[int, int]] = {}
        self.weights: dict[int, list[int]] = {}
        self.weights_last = [[10922] * 6 for _ in range(256)]
        self.told: list[int] = []

    def number(self, at: int) -> int:
        """The number of the field that begins at a place."""
        order = "big" if self.layout.big else "little"
        return int.from_bytes(self.past[at : at + self.layout.width], order) if at >= 0 else 0  # type: ignore[arg-type]

    # -- 14.3 guesses

    def guess(self, value: int, score: int, hits: int) -> Guess:
        """The byte that a number has where the place is."""
        width, place = self.layout.width, self.place
        if self.layout.big:
            d = self.known - (value >> 8 * (width - place) & (1 << 8 * place) - 1)
            difference, worth = {0: 0, 1: 1, -1: 2}.get(d, 3), width - 1 - place
        else:
            d = of_bytes(self.known - value, place)
            value, worth = value + d, place
            difference = 0 if d == 0 else 1 if d > 0 else 2
        return Guess(value >> 8 * worth & 255, difference, hits, clamp(score // 3 - 8 * worth + 2, 0, 10))

    def begin(self, t: int) -> None:
        """Guess byte t."""
        width, stride = self.layout.width, self.layout.stride
        self.place = (t - self.layout.skip) % width
        start = t - self.place
        v = [0] + [self.number(start - k * stride) for k in range(1, 6)]
        w = [self.number(start - width - k * stride) for k in range(6)]
        order = "big" if self.layout.big else "little"
        own = bytes(self.past[at] if at >= 0 else 0 for at in range(start, t))
        self.above, self.known = v[1], int.from_bytes(own, order)  # type: ignore[arg-type]

        def foretold(k: int) -> list[int]:
            return [
                v[k + 1],
                2 * v[k + 1] - v[k + 2],
                w[k] + v[k + 1] - w[k + 1],
                2 * v[k + 1] + w[k + 1] - v[k + 2] - w[k + 2],
                2 * v[k + 1] + w[k] - v[k + 2] - w[k + 1],
                w[k],
                v[k + 2],
            ]

        errors = [[of_bytes(v[k] - value, width) for value in foretold(k)] for k in (1, 2, 3)]
        scores = [sum(map(size, each)) for each in zip(*errors, strict=True)]
        hits = [sum((error == 0) << k for k, error in enumerate(each)) for each in zip(*errors, strict=True)]
        ways = sorted(range(7), key=lambda way: scores[way])[:2]  # of equal ones the first
        now = foretold(0)
        self.guesses = [self.guess(now[way], scores[way], hits[way]) for way in ways]
        self.entry = signed((self.known * 8 + self.place) * A) >> 48 & 0xFFFF
        byte, count = self.indirect.get(self.entry, (0, 0))
        self.guesses.append(Guess(byte, 0, min(count, 7), self.place))

    # -- 14.4 contexts

    def hashes(self, t: int) -> list[int]:
        """The hashes of the contexts of byte t."""
        past, s, c = self.past, self.layout.stride, self.record.last
        g, h = self.guesses[:2]
        c1, column = c & 0xFF, (t % s) << 32
        up = past[t - s] if t >= s else 0
        up2 = past[t - 2 * s] if t >= 2 * s else 0
        before = past[t - s - 1] if t >= s + 1 else 0
        behind = past[t - s + 1] if t >= s - 1 and s > 1 else 0
        values = [
            column, column | c1, c & 0xFFFF, c & 0xFFFFFF, c & 0xFFFFFFFF, column | c1 << 8 | up, c & 0xFFFFFFFFFFFF,
            self.record.word * 256 + c1, column | before << 16 | c1 << 8 | up,
            column | g.byte << 8 | g.difference << 4 | g.hits,
            column | g.byte << 16 | h.byte << 8 | g.difference << 2 | h.difference,
            c1 << 8 | up, column | up << 8 | up2, self.above * A + self.known * C + self.place, column | c & 0xFFFF,
            column | behind << 16 | (up - before + c1 & 255) << 8,
        ]  # fmt: skip
        return [hash_of(value, i) for i, value in enumerate(values)]

    # -- 14.5 a bit

    def row(self, number: int) -> list[int]:
        """A row of weights, made when it is first used."""
        return self.weights.setdefault(number, [5000] * 16 + [0] * 16 + [5000] * 10 + [0] * 6)

    def inputs(
        self, k: int, c0: int, states: list[int]
    ) -> tuple[list[int], list[tuple[list[int], int, int]], int, int]:
        """Return inputs, the entries that learn with their limits, the match's class, the guesses that agree."""
        x = [0] * INPUTS
        learns: list[tuple[list[int], int, int]] = []
        for i, state in enumerate(states):
            if state:
                p = self.maps[i][state] >> 10
                x[i], x[16 + i] = COARSE[p >> 10], p - 2097152 >> 11
                learns.append((self.maps[i], state, 1023))
        byte, bucket = (self.past[self.point] | 256 if self.point else 0), 0
        if byte >> 8 - k == c0:
            bucket = bucket_of(self.length)
            slot = bucket << 4 | self.misses << 1 | byte >> 7 - k & 1
            x[32] = COARSE[self.match_map[slot] >> 20]
            learns.append((self.match_map, slot, 1023))
        agree = 0
        for m, g in enumerate(self.guesses):
            row = self.delta.setdefault((m, g.noise, g.difference, k), [HALF] * 256)
            far = (c0 << 8 - k) - g.byte & 255
            p = row[far] >> 10
            x[33 + 3 * m], x[34 + 3 * m] = COARSE[p >> 10], p - 2097152 >> 11
            learns.append((row, far, 255))
            if (g.byte | 256) >> 8 - k == c0:
                slot = (g.hits << 2 | g.difference) << 4 | self.place << 1 | g.byte >> 7 - k & 1
                x[35 + 3 * m] = COARSE[self.guess_map[m][slot] >> 20]
                learns.append((self.guess_map[m], slot, 1023))
                agree |= 1 << m
        x[47] = 256
        return x, learns, bucket, agree

    def bit(self, t: int, k: int, c0: int, lines: list[int], coder: Decoder) -> int:
        """Predict, decode and learn bit k."""
        node = c0 if k < 4 else c0 & (1 << k - 4) - 1 | 1 << k - 4
        states = [self.table[at + node] for at in lines]
        x, learns, bucket, agree = self.inputs(k, c0, states)
        column, g = t % self.layout.stride, self.guesses[0]
        h = sum(states[i] > 0 for i in HITS)
        numbers = (
            bucket, 16 + c0, 272 + (column & 255), 528 + 8 * h + k, 592 + 32 * g.hits + 8 * g.difference + k,
            848 + 64 * g.noise + 8 * agree + k,
        )  # fmt: skip
        rows = [self.row(number) for number in numbers]
        answers = [clamp(sum(a * b for a, b in zip(x, row, strict=True)) >> 16, -LIMIT, LIMIT) for row in rows]
        last = self.weights_last[c0]
        total = clamp(sum(a * b for a, b in zip(answers, last, strict=True)) >> 16, -LIMIT, LIMIT)
        cell, part = divmod(total + 2880, 180)
        pair = [self.refined(c0), self.refined(256 + ((column * 0x2F0B + c0 * 0x1C35) * 0x9E37 >> 8 & 4095))]
        both = sum((row[cell] >> 10) * (180 - part) + (row[cell + 1] >> 10) * part for row in pair)
        p = clamp(2 * SQUASH[total + LIMIT] + both // 11520 >> 2, 1, 65535)
        self.told.append(p)
        bit = coder.bit(0, p)
        target, rate = bit << 16, 450 + 230400 // (t + 256)
        error = (target - SQUASH[total + LIMIT]) * 60 >> 8
        for j, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            last[j] += answer * error + 32768 >> 16
            e = (target - SQUASH[answer + LIMIT]) * rate >> 8
            for i in range(INPUTS):
                row[i] += x[i] * e + 32768 >> 16
        for entries, at, limit in learns:
            learn_entry(entries, at, bit, limit)
        for at, state in zip(lines, states, strict=True):
            self.table[at + node] = NEXT[state][bit]
        for row in pair:
            learn_entry(row, cell + (part >= 90), bit, 255)
        return bit

    def byte(self, t: int, coder: Decoder) -> None:
        """14.2: decode and learn byte t."""
        self.begin(t)
        hashes, c0, lines = self.hashes(t), 1, list[int]()
        self.match(t)
        for k in range(8):
            if k % 4 == 0:
                lines = [self.line(h, c0) for h in hashes]
            c0 = c0 << 1 | self.bit(t, k, c0, lines, coder)
        byte = self.past[t] = c0 & 0xFF
        old, count = self.indirect.get(self.entry, (0, 0))
        self.indirect[self.entry] = (byte, min(count + 1, 255) if old == byte else int(count > 3))
        self.record.advance(t, byte)


def decode(payload: bytes, length: int) -> bytes:
    """Kind 3 of codec 17."""
    layout = Layout.parse(payload[:4])
    state, coder = Fields(length, layout), Decoder(payload[4:])
    for t in range(length):
        state.byte(t, coder)
    coder.finish()
    plain = bytes(state.past)
    if layout.turned:
        end = layout.skip + max(length - layout.skip, 0) // layout.width * layout.width
        middle = (plain[at : at + layout.width][::-1] for at in range(layout.skip, end, layout.width))
        plain = plain[: layout.skip] + b"".join(middle) + plain[end:]
    return plain
