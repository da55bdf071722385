"""The common parts of codecs 20 and 21: sections 13.2 and 14.4."""

from __future__ import annotations

from tests.format.decoder.mixing import Lane, line_of
from tests.format.decoder.tables import A, refining_map, signed

LEAST = 6


class OneLane:
    """The parts of a chunk's state that do not differ."""

    def __init__(self, size: int, most_bits: int, per_byte: int) -> None:
        self.past = bytearray(size)
        self.record = Lane()
        bits = min(max((per_byte * size - 1).bit_length(), 10), most_bits)
        self.table = bytearray(16 << bits)
        self.find: dict[int, int] = {}
        self.point = self.length = self.misses = 0
        self.refine: dict[int, list[int]] = {}

    def line(self, h: int, c0: int) -> int:
        """Return where the line of a nibble is."""
        return line_of(self.table, (len(self.table) >> 4) - 1, h, c0)

    def refined(self, number: int) -> list[int]:
        """A refining map, made when it is first used."""
        return self.refine.setdefault(number, refining_map(6))

    def match(self, t: int) -> None:
        """13.2: keep or look for a match before byte t."""
        past = self.past
        if self.point > 0:
            wrong = past[self.point] != past[t - 1]
            self.length = 0 if wrong else min(self.length + 1, 65535)
            self.misses = (self.misses << 1 | wrong) & 7
            self.point += 1
        if t >= LEAST:
            place = signed((self.record.last & (1 << 48) - 1) * A) >> 48 & 0xFFFF
            candidate = self.find.get(place, 0)
            if self.length < LEAST and candidate:
                same = 0
                while same < min(candidate, 40) and past[candidate - 1 - same] == past[t - 1 - same]:
                    same += 1
                if same >= LEAST:
                    self.point, self.length, self.misses = candidate, same, 0
            self.find[place] = t
