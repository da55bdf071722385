"""Section 12: codec 19."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.format.decoder.rans import Damaged
from tests.format.decoder.x86 import relative

ORDER, MOST = 8, 124
ESCAPES = (25, 14, 9, 7, 5, 5, 4, 4, 4, 3, 3, 3, 2, 2, 2, 2)
BINARY = (0x3CDD, 0x1F3F, 0x59BF, 0x48F3, 0x64A1, 0x5ABC, 0x6632, 0x6051)


@dataclass(eq=False)
class Entry:
    """12.2: a symbol of a context."""

    symbol: int
    freq: int
    next: int | Context | None = None  # a place in the text, a context, or nothing


@dataclass(eq=False)
class Context:
    """12.2: what followed some bytes."""

    suffix: Context | None
    entries: list[Entry] = field(default_factory=list)
    total: int = 0

    def entry(self, symbol: int) -> Entry:
        """The entry of a symbol that the context has."""
        return next(e for e in self.entries if e.symbol == symbol)


class Coder:
    """12.1: the range coder."""

    def __init__(self, stream: bytes) -> None:
        self.stream, self.at, self.range, self.code = stream, 0, 2**32 - 1, 0
        for _ in range(4):
            self.code = self.code << 8 | self.byte()

    def byte(self) -> int:
        self.at += 1
        return self.stream[self.at - 1] if self.at <= len(self.stream) else 0

    def place(self, total: int) -> int:
        self.range //= total
        if self.code // self.range >= total:
            raise Damaged("a number beyond the total")
        return self.code // self.range

    def take(self, begin: int, width: int) -> None:
        self.code, self.range = self.code - begin, width
        while self.range < 1 << 24:
            self.code, self.range = self.code << 8 | self.byte(), self.range << 8

    def finish(self) -> None:
        if self.code or not len(self.stream) <= self.at <= len(self.stream) + 4:
            raise Damaged("the stream does not end as it was begun")


def see_row(left: int) -> int:
    """12.5: the row for `left` symbols that are not masked."""
    if left <= 3:
        return left - 1
    row, most = 3, 4
    while left > most:
        row += 1
        most += row - 2
    return row


class Model:
    """Predicts the next byte."""

    def __init__(self, coder: Coder) -> None:
        self.coder, self.text = coder, bytearray()
        self.root = Context(None, [Entry(i, 1) for i in range(256)], 257)
        self.least = self.most = self.root
        self.found = self.root.entries[0]
        self.fall, self.run, self.success, self.escape, self.high = ORDER, -ORDER - 1, 0, 0, 0
        self.binary = [[16384 - BINARY[k % 8] // (i + 2) for k in range(64)] for i in range(128)]
        self.see = [[[(5 * i + 10) << 3, 3, 4] for _ in range(16)] for i in range(25)]
        self.told: list[str] = []

    # -- 12.6 what a symbol changes

    def successors(self, skip: bool) -> Context:
        c, branch = self.least, self.found.next
        assert isinstance(branch, int)
        way = [] if skip else [self.found]
        while c.suffix:
            c = c.suffix
            e = c.entry(self.found.symbol)
            if e.next != branch:
                assert isinstance(e.next, Context)
                c = e.next
                if not way:
                    return c
                break
            way.append(e)
        e = c.entry(self.text[branch])
        freq = e.freq
        if len(c.entries) > 1:
            own = e.freq - 1
            others = c.total - len(c.entries) - own
            freq = 1 + (int(5 * own > others) if 2 * own <= others else (2 * own + 3 * others - 1) // (2 * others))
        for way_back in reversed(way):
            c = Context(c, [Entry(e.symbol, freq, branch + 1)])
            way_back.next = c
        return c

    def lift(self) -> None:
        c = self.least.suffix
        assert c
        e = c.entry(self.found.symbol)
        if len(c.entries) == 1:
            e.freq += e.freq < 32
            return
        i = c.entries.index(e)
        if i and e.freq >= c.entries[i - 1].freq:
            c.entries[i - 1 : i + 1] = e, c.entries[i - 1]
        if e.freq < MOST - 9:
            e.freq += 2
            c.total += 2

    def update(self) -> None:
        found, following = self.found, self.found.next
        if found.freq < MOST // 4 and self.least.suffix:
            self.lift()
        if self.fall == 0:
            self.least = self.most = self.successors(True)
            found.next = self.least
            return
        self.text.append(found.symbol)
        successor: int | Context = len(self.text)
        if following is None:
            found.next, following = successor, self.least
        else:
            if isinstance(following, int):
                following = self.successors(False)
            self.fall -= 1
            if self.fall == 0:
                successor = following
                if self.most is not self.least:
                    self.text.pop()
        count = len(self.least.entries)
        rest = self.least.total - count - (found.freq - 1)
        c = self.most
        while c is not self.least:
            self.add(c, successor, count, rest)
            assert c.suffix
            c = c.suffix
        assert isinstance(following, Context)
        self.least = self.most = following

    def add(self, c: Context, successor: int | Context, count: int, rest: int) -> None:
        own = len(c.entries)
        if own > 1:
            c.total += (2 * own < count) + 2 * (4 * own <= count and c.total <= 8 * own)
        else:
            only = c.entries[0]
            only.freq = 2 * only.freq if only.freq < MOST // 4 - 1 else MOST - 4
            c.total = only.freq + self.escape + (count > 3)
        share, everything = 2 * self.found.freq * (c.total + 6), rest + c.total
        if share < 6 * everything:
            freq = 1 + (share > everything) + (share >= 4 * everything)
            c.total += 3
        else:
            freq = 4 + (share >= 9 * everything) + (share >= 12 * everything) + (share >= 15 * everything)
            c.total += freq
        c.entries.append(Entry(self.found.symbol, freq, successor))

    def rescale(self) -> None:
        c, more = self.least, int(self.fall != 0)
        entries = c.entries
        entries.remove(self.found)
        entries.insert(0, self.found)
        escape = c.total - sum(e.freq for e in entries)
        self.found.freq += 4
        for i, e in enumerate(entries):
            e.freq = (e.freq + more) >> 1
            at = i
            while at and e.freq > entries[at - 1].freq:
                at -= 1
            entries.insert(at, entries.pop(i))
        gone = sum(not e.freq for e in entries)
        escape += gone
        del entries[len(entries) - gone :]
        self.found = entries[0]
        if gone and len(entries) == 1:
            while True:
                self.found.freq -= self.found.freq >> 1
                escape >>= 1
                if escape <= 1:
                    return
        c.total = sum(e.freq for e in entries) + escape - (escape >> 1)

    def go_on(self) -> None:
        if self.fall == 0 and isinstance(self.found.next, Context):
            self.least = self.most = self.found.next
        else:
            self.update()

    # -- 12.3 to 12.5 a symbol

    def learn(self, c: Context, i: int) -> int:
        """12.3: a symbol was found in the longest context, which has several."""
        e = self.found = c.entries[i]
        self.success = int(i == 0 and 2 * e.freq > c.total)
        self.run += self.success
        c.total += 4
        e.freq += 4
        if i and e.freq > c.entries[i - 1].freq:
            c.entries[i - 1 : i + 1] = e, c.entries[i - 1]
            i = -1
        if i <= 0 and e.freq > MOST:
            symbol = e.symbol
            self.rescale()
            self.go_on()
            return symbol
        self.go_on()
        return e.symbol

    def one(self, c: Context) -> int | None:
        """12.4: a context of one symbol; None for another symbol."""
        e = c.entries[0]
        assert c.suffix
        self.high = 8 * (self.found.symbol >= 64)
        others = len(c.suffix.entries)
        k = self.success + (2 * (others - 1) if others < 3 else 4 if others < 12 else 6)
        k += self.high + 16 * (e.symbol >= 64) + 32 * (self.run < 0)
        row = self.binary[e.freq - 1]
        p, bound = row[k], (self.coder.range >> 14) * row[k]
        self.told.append(f"one symbol {e.symbol}, freq {e.freq}, k = {k}, p = {p}")
        if self.coder.code < bound:
            self.coder.take(0, bound)
            row[k] = p + 128 - (p + 32 >> 7)
            self.found = e
            e.freq += e.freq < 128
            self.success = 1
            self.run += 1
            self.go_on()
            return e.symbol
        self.coder.take(bound, self.coder.range - bound)
        row[k] = p - (p + 32 >> 7)
        self.escape = ESCAPES[row[k] >> 10]
        self.success = 0
        return None

    def symbol(self) -> int:
        c, coder = self.least, self.coder
        if len(c.entries) == 1:
            if (symbol := self.one(c)) is not None:
                return symbol
        else:
            place, below = coder.place(c.total), 0
            self.told.append(f"{len(c.entries)} symbols, total {c.total}, place {place}")
            for i, e in enumerate(c.entries):
                if place < below + e.freq:
                    coder.take(below * coder.range, e.freq * coder.range)
                    return self.learn(c, i)
                below += e.freq
            self.success = 0
            self.high = 8 * (self.found.symbol >= 64)
            coder.take(below * coder.range, (c.total - below) * coder.range)
        masked = {e.symbol for e in c.entries}
        while True:
            known = len(self.least.entries)
            while len(self.least.entries) == known:
                if self.least.suffix is None:
                    raise Damaged("an escape from all symbols")
                self.fall += 1
                self.least = self.least.suffix
            if (symbol := self.shorter(self.least, known, masked)) is not None:
                return symbol

    def shorter(self, c: Context, known: int, masked: set[int]) -> int | None:
        """12.5: a shorter context; None for an escape."""
        coder, left, see = self.coder, len(c.entries) - known, [0, 7, 64]
        escape = 1
        if len(c.entries) != 256:
            assert c.suffix
            k = (left < len(c.suffix.entries) - len(c.entries)) + 2 * (c.total < 11 * len(c.entries))
            see = self.see[see_row(left)][k + 4 * (known > left) + self.high]
            escape = see[0] >> see[1]
            see[0] -= escape
            escape = max(escape, 1)
        choice = [e for e in c.entries if e.symbol not in masked]
        everything = sum(e.freq for e in choice)
        place, below = coder.place(everything + escape), 0
        self.told.append(f"escaped: {len(choice)} symbols, sum {everything}, escape {escape}, place {place}")
        for e in choice:
            if place >= below + e.freq:
                below += e.freq
                continue
            coder.take(below * coder.range, e.freq * coder.range)
            if see[1] < 7:
                see[2] -= 1
                if see[2] == 0:
                    see[:] = see[0] << 1 & 0xFFFF, see[1] + 1, 3 << see[1]
            symbol, self.found = e.symbol, e
            c.total += 4
            e.freq += 4
            if e.freq > MOST:
                self.rescale()
            self.run = -ORDER - 1
            self.update()
            return symbol
        coder.take(everything * coder.range, escape * coder.range)
        see[0] = see[0] + everything + escape & 0xFFFF
        masked |= {e.symbol for e in choice}
        return None


def decode(payload: bytes, size: int) -> bytes:
    """The plain bytes of a payload of codec 19."""
    if payload[0] not in (0, 16) or size > 262144:
        raise Damaged("unknown kind, or too long")
    model = Model(Coder(payload[1:]))
    plain = bytes(model.symbol() for _ in range(size))
    model.coder.finish()
    return relative(plain) if payload[0] else plain
