"""Section 4: the entropy coder."""

from __future__ import annotations

LOW = 1 << 32


class Damaged(Exception):
    """A payload that does not follow the document."""


class Decoder:
    """Takes bits out of a stream; `width` states."""

    def __init__(self, stream: bytes, width: int = 1) -> None:
        self.begin = 0 if width == 1 else LOW
        at = 0
        if width == 1:
            sizes = [len(stream) if len(stream) <= 4 else 6 - len(stream) % 2]
        else:
            at = (width + 7) // 8
            sizes = [5 + (stream[i // 8] >> (7 - i % 8) & 1) for i in range(width)]
        self.states = []
        for size in sizes:
            self.states.append(int.from_bytes(stream[at : at + size], "big"))
            at += size
        if at > len(stream) or (width > 1 and min(self.states) < LOW):
            raise Damaged("the stream ends in its head, or has an impossible state")
        self.words = stream[at:]
        self.at = 0

    def bit(self, lane: int, p: int) -> int:
        """The next bit of a lane, which is 1 with probability p / 65536."""
        i = lane % len(self.states)
        x = self.states[i]
        high, low = x >> 16, x & 0xFFFF
        bit = int(low < p)
        x = p * high + low if bit else (65536 - p) * high + low - p
        if x < LOW and self.at + 2 <= len(self.words):
            x = x << 16 | int.from_bytes(self.words[self.at : self.at + 2], "big")
            self.at += 2
        self.states[i] = x
        return bit

    def finish(self) -> None:
        """Check that the stream ends as it was begun."""
        if self.at != len(self.words) or any(x != self.begin for x in self.states):
            raise Damaged("the stream does not end as it was begun")
