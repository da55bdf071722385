"""Section 6.3: features."""

from __future__ import annotations

from typing import NamedTuple

ORDERS = (1, 2, 3, 4, 6)
M64 = (1 << 64) - 1


def hash_of(value: int, salt: int, bits: int) -> int:
    """Bits of a mixed 64-bit word."""
    h = (value + salt) * 0x9E3779B97F4A7C15 & M64
    h = (h ^ h >> 29) * 0xBF58476D1CE4E5B9 & M64
    return h >> 64 - bits


def table_bits(size: int) -> int:
    """The binary logarithm of the entries of each table."""
    return min(17, max(8, (size - 1).bit_length()))


def run_bucket(run: int) -> int:
    """The class of how often in a row a byte followed."""
    return 0 if run <= 1 else 1 if run == 2 else 2 if run <= 5 else 3


def match_bucket(length: int) -> int:
    """The class of a match's length."""
    if length < 10:
        return max(length - 7, 0)
    return 3 + sum(length >= bound for bound in (12, 14, 16, 20, 24, 32, 48, 64, 96, 128, 256, 512))


class Row(NamedTuple):
    """The features of one position."""

    inputs: list[int]
    ngrams: list[int]
    candidates: list[int]
    buckets: list[int]


class LanePast:
    """The state of one lane that features need."""

    def __init__(self) -> None:
        self.last = self.word = self.word_before = 0
        self.match, self.length = -1, 0

    def low(self, count: int) -> int:
        """The last bytes."""
        return self.last & (1 << 8 * count) - 1


class Features:
    """The past of one chunk; `past` is shared with the mixer: the dictionary, then the chunk."""

    def __init__(self, past: bytearray, begin: int, lanes: int, bits: int, ngram_bits: int) -> None:
        self.past, self.begin, self.bits, self.ngram_bits = past, begin, bits, ngram_bits
        self.size = len(past) - begin
        self.columns = -(-self.size // lanes)
        self.lanes = [LanePast() for _ in range(lanes)]
        self.orders: list[dict[int, tuple[int, int, int]]] = [{} for _ in ORDERS]  # check, byte, run
        self.starts: dict[int, int] = {}

    def slot(self, lane: LanePast, order: int) -> tuple[int, int]:
        """Index and check byte of a context."""
        h = hash_of(lane.low(order), order, self.bits + 8)
        return h >> 8, h & 255

    def predict(self, t: int, i: int) -> Row:
        """The features of lane i at column t."""
        lane = self.lanes[i]
        age = min((self.begin + t * len(self.lanes)).bit_length(), 17)
        row = Row([lane.last & 255 if t else 256, 257 + age], [], [], [])
        for k, order in enumerate(ORDERS):
            place, check = self.slot(lane, order)
            entry = self.orders[k].get(place) if t >= order else None
            if entry and entry[0] == check:
                _, byte, run = entry
                row.inputs.append(275 + 1025 * k + 1 + 4 * byte + run_bucket(run))
                row.candidates.append(byte)
                row.buckets.append(1 + 4 * k + run_bucket(run))
            else:
                row.inputs.append(275 + 1025 * k)
                row.candidates.append(0)
                row.buckets.append(0)
        if lane.match >= 0:
            byte, bucket = self.past[lane.match], match_bucket(lane.length)
            row.inputs.append(5400 + 1 + 16 * byte + bucket)
            row.candidates.append(byte)
            row.buckets.append(21 + bucket)
        else:
            row.inputs.append(5400)
            row.candidates.append(0)
            row.buckets.append(0)
        for order in (2, 3, 4, 6):
            row.ngrams.append(hash_of(lane.low(min(order, t)), order, self.ngram_bits))
        word = lane.word or lane.word_before ^ lane.last & 255
        row.ngrams.append(hash_of(word, 7, self.ngram_bits))
        return row

    def learn(self, t: int) -> None:
        """Add column t, which is in `past` now."""
        here = [i * self.columns + t for i in range(len(self.lanes))]
        if t >= 7:
            for lane, position in zip(self.lanes, here, strict=True):
                if position < self.size:
                    self.starts[hash_of(lane.low(7), 11, self.bits)] = self.begin + position
        for lane, position in zip(self.lanes, here, strict=True):
            if position >= self.size:
                lane.match = -1
            else:
                self._learn_byte(lane, t, self.past[self.begin + position])
        if t + 1 >= 7:
            for lane, position in zip(self.lanes, here, strict=True):
                if lane.match < 0 and position + 1 < self.size:
                    found = self.starts.get(hash_of(lane.low(7), 11, self.bits), -1)
                    if found >= 0 and (length := self._agree(position + 1, found)) >= 7:
                        lane.match, lane.length = found, length

    def _learn_byte(self, lane: LanePast, t: int, byte: int) -> None:
        for k, order in enumerate(ORDERS):
            if t >= order:
                place, check = self.slot(lane, order)
                old = self.orders[k].get(place)
                run = min(old[2] + 1, 255) if old and old[:2] == (check, byte) else 1
                self.orders[k][place] = check, byte, run
        lane.last = (lane.last << 8 | byte) & M64
        letter = byte | 32 if 65 <= byte <= 90 else byte
        if 97 <= letter <= 122 or letter >= 128:
            lane.word = (lane.word + letter + 1) * 0x9E3779B97F4A7C15 & M64
        elif lane.word:
            lane.word_before, lane.word = lane.word, 0
        if lane.match >= 0 and self.past[lane.match] == byte:
            lane.match, lane.length = lane.match + 1, lane.length + 1
            chunk = lane.match - self.begin
            if chunk >= self.size or (chunk >= 0 and chunk % self.columns > t):
                lane.match = -1
        else:
            lane.match = -1

    def _agree(self, position: int, there: int) -> int:
        """Return how many bytes before two places agree, within their lanes, 40 at most."""
        here = self.begin + position
        known = (there - self.begin) % self.columns if there >= self.begin else there
        most, count = min(position % self.columns, known, 40), 0
        while count < most and self.past[here - 1 - count] == self.past[there - 1 - count]:
            count += 1
        return count

    def enter(self, dictionary: bytes) -> None:
        """7.6: the tables as a dictionary leaves them."""
        whole = Features(bytearray(dictionary), 0, 1, self.bits, self.ngram_bits)
        for t in range(len(dictionary)):
            whole.learn(t)
        self.orders, self.starts = whole.orders, whole.starts
