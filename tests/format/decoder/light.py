"""Section 13: codec 20."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.format.decoder.mixing import bucket_of, hash_of
from tests.format.decoder.onelane import OneLane
from tests.format.decoder.rans import Damaged, Decoder
from tests.format.decoder.tables import (
    COARSE,
    LIMIT,
    NEXT,
    SQUASH,
    STRETCH,
    clamp,
    learn_entry,
)
from tests.format.decoder.x86 import relative

START_VALUES = Path(__file__).parents[3] / "nnfs/mixer/light.npz"  # the file that the document names
CONTEXT = (0, 1, 2, 3, 4, 6, 7, 8, 9, 11, 12)


class Start(NamedTuple):
    """Start values: rows of each table."""

    maps: list[list[int]]
    match_map: list[int]
    weights: list[list[int]]
    weights_last: list[list[int]]


@cache
def start_values() -> Start:
    """The start values of codec 20."""
    with np.load(START_VALUES) as arrays:
        return Start(*(arrays[name].tolist() for name in Start._fields))


def word(x: int) -> int:
    """13.3: the 32-bit two's complement number that is equal to x modulo 2^32."""
    return (x + (1 << 31)) % (1 << 32) - (1 << 31)


class Light(OneLane):
    """The state of one chunk."""

    def __init__(self, size: int) -> None:
        start = start_values()
        super().__init__(size, 18, 2)
        self.maps, self.match_map = start.maps, list(start.match_map)
        self.weights = [list(row) for row in start.weights]
        self.weights_last = [list(row) for row in start.weights_last]
        self.told: list[int] = []

    def hashes(self, t: int) -> list[int]:
        """13.2: the hashes of the contexts before byte t."""
        r = self.record
        c, c1, column = r.last, r.last & 0xFF, t - r.line
        at = r.line_before + column
        above = self.past[at] if at < r.line else 0
        values = [
            0, c1, c & 0xFFFF, c & 0xFFFFFF, c & 0xFFFFFFFF, c & 0xFFFFFFFFFFFF, r.word * 256 + c1,
            (r.word + r.word_before * 0x9E3779B1) * 256 + c1, c & 0xFFFF00, above << 8 | c1,
            above << 8 | min(column, 255),
        ]  # fmt: skip
        return [0] + [hash_of(value, i) for value, i in zip(values[1:], CONTEXT[1:], strict=True)]

    def bit(self, t: int, k: int, c0: int, lines: list[int], coder: Decoder) -> int:
        """13.3 and 13.4: predict, decode and learn bit k."""
        node = c0 if k < 4 else c0 & (1 << k - 4) - 1 | 1 << k - 4
        states = [self.table[at + node] for at in lines]
        x = [0] * 24
        for i, state in enumerate(states):
            if state:
                at = i if i < 8 else i + 8
                p = self.maps[i][state]
                x[at], x[at + (8 if i < 8 else 4)] = STRETCH[p], p - 32768 >> 5
        x[23] = 256
        bucket, slot = 0, -1
        byte = self.past[self.point] | 256 if self.point else 0
        if byte >> 8 - k == c0:
            bucket = bucket_of(self.length)
            slot = bucket << 4 | self.misses << 1 | byte >> 7 - k & 1
            x[19] = COARSE[self.match_map[slot] >> 20]
        c1 = self.record.last & 0xFF
        h = sum(state > 0 for state in states[2:6])
        rows = [self.weights[i] for i in (bucket, 16 + c0, 272 + c1, 528 + 8 * h + k)]
        answers = [clamp(word(sum(a * b for a, b in zip(x, row, strict=True))) >> 16, -LIMIT, LIMIT) for row in rows]
        last = self.weights_last[c0]
        total = clamp(word(sum(a * b for a, b in zip(answers, last, strict=True))) >> 16, -LIMIT, LIMIT)
        cell, part = divmod(total + 2880, 180)
        pair = [self.refined(c0), self.refined(256 + ((c1 * 0x2F0B + c0 * 0x1C35) * 0x9E37 >> 8 & 4095))]
        both = sum((row[cell] >> 10) * (180 - part) + (row[cell + 1] >> 10) * part for row in pair)
        p = clamp(2 * SQUASH[total + LIMIT] + both // 11520 >> 2, 1, 65535)
        self.told.append(p)
        bit = coder.bit(0, p)
        target, rate = bit << 16, 450 + 450 * 512 // (t + 256)
        error = (target - SQUASH[total + LIMIT]) * 60 >> 8
        for j, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            last[j] = word(last[j] + (answer * error + 32768 >> 16))
            e = (target - SQUASH[answer + LIMIT]) * rate >> 8
            for i in range(24):
                row[i] = word(row[i] + (x[i] * e + 32768 >> 16))
        for at, state in zip(lines, states, strict=True):
            self.table[at + node] = NEXT[state][bit]
        for row in pair:
            learn_entry(row, cell + (part >= 90), bit, 255)
        if slot >= 0:
            learn_entry(self.match_map, slot, bit, 1023)
        return bit

    def byte(self, t: int, coder: Decoder) -> None:
        """13.1: decode and learn byte t."""
        hashes, c0, lines = self.hashes(t), 1, list[int]()
        self.match(t)
        for k in range(8):
            if k % 4 == 0:
                lines = [self.line(h, c0) for h in hashes]
            c0 = c0 << 1 | self.bit(t, k, c0, lines, coder)
        self.past[t] = c0 & 0xFF
        self.record.advance(t, c0 & 0xFF)


def decode(payload: bytes, size: int) -> bytes:
    """The plain bytes of a payload of codec 20."""
    if payload[0] not in (0, 16):
        raise Damaged("unknown kind")
    state, coder = Light(size), Decoder(payload[1:])
    for t in range(size):
        state.byte(t, coder)
    coder.finish()
    return relative(bytes(state.past)) if payload[0] else bytes(state.past)
