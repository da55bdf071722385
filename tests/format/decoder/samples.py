"""Section 9: samples."""

from __future__ import annotations

from dataclasses import dataclass

from tests.format.decoder.rans import Damaged, Decoder
from tests.format.decoder.tables import (
    COARSE,
    FINE,
    LIMIT,
    NEXT,
    SQUASH,
    STRETCH,
    A,
    B,
    C,
    clamp,
    learn_entry,
    refining_map,
    signed,
    untrained_map,
)

EXPERTS, CONTEXTS, INPUTS = 6, 6, 32
SET_STARTS = (0, 128, 640, 1152)


def level(v: int) -> int:
    """A class of a number from 0 on: four to the octave."""
    n = max(v.bit_length() - 3, 0)
    return 4 * n + (v >> n)


@dataclass
class Layout:
    """9.1: the first four bytes."""

    size: int
    big: bool
    signed: bool
    channels: int
    phase: int
    skip: int
    stride: int

    @classmethod
    def parse(cls, head: bytes) -> Layout:
        """Return the layout in the head of a payload."""
        f, stride = head[1], int.from_bytes(head[2:4], "big")
        layout = cls((f & 1) + 1, bool(f & 2), bool(f & 4), (f >> 3 & 3) + 1, f >> 5 & 3, f >> 7, stride)
        if layout.phase >= layout.channels or 0 < layout.stride <= layout.channels:
            raise Damaged("impossible layout")
        return layout

    def offsets(self) -> list[int]:
        """9.2: how many samples back the regressors lie."""
        if self.stride == 0:
            return list(range(1, 33))
        one = self.channels == 1
        here = [1, 2, 3, 4] if one else [1, 2, 3, 4, 5, 6, 9]
        above = [0, 1, 2, 3, -1, -2, -3] if one else [0, 1, 2, 3, 6, -1, -2, -3, -4, -6]
        back = here + [self.stride - d for d in above]
        back += [2 * self.stride - d for d in (-self.channels, 0, self.channels)]
        return sorted({o for o in back if o > 0})[:32]


class Solver:
    """9.3: recursive least squares of one channel."""

    def __init__(self, n: int, forget: int) -> None:
        self.n, self.forget = n, forget
        self.r = [[0] * n for _ in range(n)]
        self.b, self.w = [0] * n, [0] * n

    def observe(self, x: list[int], y: int) -> None:
        """Enter regressors and their target."""
        for i in range(self.n):
            row = self.r[i]
            for j in range(self.n):
                row[j] += (x[i] * x[j] << 6) - (row[j] >> self.forget)
            self.b[i] += (x[i] * y << 6) - (self.b[i] >> self.forget)

    def solve(self) -> None:
        """Set the weights anew."""
        n, most = self.n, max([1] + [self.r[i][i] for i in range(self.n)])
        left, right = max(37 - most.bit_length(), 0), max(most.bit_length() - 37, 0)
        ridge = (most << left >> right >> 19) + 16
        lower = [[0] * n for _ in range(n)]
        d, z = [0] * n, [0] * n
        for j in range(n):
            for k in range(j):
                z[k] = signed(lower[j][k] * d[k]) >> 24
            for i in range(j, n):
                a = signed(sum(lower[i][k] * z[k] for k in range(j))) >> 24
                v = signed((signed(self.r[i][j] << left) >> right) - a)
                if i == j:
                    d[j] = max(signed(v + ridge), ridge)
                else:
                    lower[i][j] = signed(v << 24) // d[j]
        for i in range(n):
            a = signed(sum(lower[i][k] * z[k] for k in range(i))) >> 24
            z[i] = signed((signed(self.b[i] << left) >> right) - a)
        for i in reversed(range(n)):
            a = signed(sum(lower[k][i] * self.w[k] for k in range(i + 1, n))) >> 24
            self.w[i] = clamp(signed(signed(z[i] << 20) // d[i] - a), -(1 << 24), 1 << 24)


class Samples:
    """The state of one chunk of samples."""

    def __init__(self, count: int, layout: Layout) -> None:
        self.l, self.bits = layout, 8 * layout.size
        self.bottom = -(1 << self.bits - 1) if layout.signed else 0
        self.top = self.bottom + (1 << self.bits) - 1
        self.value: list[int] = []
        self.offsets = layout.offsets()
        c, n = layout.channels, len(self.offsets)
        self.solvers = [[Solver(n, forget) for _ in range(c)] for forget in (10, 6 if layout.stride else 7)]
        self.error: list[list[int]] = [[] for _ in range(EXPERTS)]
        self.spread = [[[32768] * 256 for _ in range(c)] for _ in range(EXPERTS)]
        self.weights = [[13107] * EXPERTS + [0] * (INPUTS - EXPERTS) for _ in range(2176)]
        self.weights_last = [[16384] * 4 for _ in range(16)]
        self.refine = [refining_map(20) for _ in range(1024)]
        self.table: list[dict[int, int]] = [{} for _ in range(CONTEXTS)]
        self.maps = [untrained_map() for _ in range(CONTEXTS)]
        self.mean, self.narrow, self.place = [0] * EXPERTS, [0] * EXPERTS, [0] * EXPERTS
        self.x: list[int] = []
        self.base = self.channel = 0

    def at(self, p: int) -> int:
        """A sample, 0 before the first."""
        return self.value[p] if p >= 0 else 0

    # -- 9.2 regressors

    def gather(self, p: int) -> tuple[int, list[int]]:
        """Base and regressors of sample p."""
        base = 0
        if self.l.stride:
            west = self.at(p - self.l.channels)
            base = west + (self.at(p - self.l.stride) if p >= self.l.stride else west) >> 1
        return base, [self.value[p - o] - base if p >= o else 0 for o in self.offsets]

    # -- 9.4 experts

    def fixed(self, p: int, c: int) -> list[int]:
        """The means of experts 2, 3 and 4."""
        n, stride, at = self.l.channels, self.l.stride, self.at
        west, before = at(p - n), at(p - 1)
        if stride == 0:
            west2, west3 = at(p - 2 * n), at(p - 3 * n)
            return [2 * west - west2 << 6, west << 6, 3 * west - 3 * west2 + west3 << 6]
        north = corner = east = west
        if p >= stride:
            north, corner, east = at(p - stride), at(p - stride - n), at(p - stride + n)
        high, low = max(west, north), min(west, north)
        median = low if corner >= high else high if corner <= low else west + north - corner
        if c > 0:
            third = west + before - at(p - 1 - n) + north + before - at(p - 1 - stride) << 5
        else:
            third = 3 * west + 3 * north - 2 * corner << 4
        fourth = (2 * west + east + 2 * north - corner - at(p - 2 * stride + n)) * 64 // 3
        return [median << 6, third, fourth]

    def nearby(self, e: int, p: int) -> int:
        """Six times the mean error of an expert around p."""
        n, stride, error = self.l.channels, self.l.stride, self.error[e]
        a = 2 * error[p - n] if p >= n else 0
        if stride:
            if p >= stride + n:
                a += 2 * error[p - stride] + error[p - stride - n] + error[p - stride + n]
            return a
        if p > 3 * n:
            a += 2 * error[p - 2 * n] + 2 * error[p - 3 * n]
            a = a + sum(error[p - i * n] for i in range(4, 8) if p >= i * n) >> 1
        return a

    def begin(self, p: int) -> None:
        """Predict sample p."""
        self.channel = c = (p + self.l.phase) % self.l.channels
        self.base, self.x = self.gather(p)
        for o in (0, 1):
            w = self.solvers[o][c].w
            self.mean[o] = (sum(a * b for a, b in zip(w, self.x, strict=True)) >> 14) + (self.base << 6)
        self.mean[2:5] = self.fixed(p, c)
        total, weighted = 1, 0
        for e in range(EXPERTS):
            a = self.nearby(e, p)
            if e == 5:
                self.mean[e] = self.mean[0] + weighted // total
            else:
                share = (1 << 40) // ((a + 16) * (a + 16))
                total, weighted = total + share, weighted + share * (self.mean[e] - self.mean[0])
            self.mean[e] = clamp(self.mean[e], self.bottom << 6, self.top << 6)
            self.place[e] = min(level(a // 12), 255)
            self.narrow[e] = (1 << 34) // max(self.spread[e][c][self.place[e]] * 185 >> 8, 300)
        self.contexts(p, c)

    def contexts(self, p: int, c: int) -> None:
        """9.5: the hashes of the contexts."""
        n, m = self.l.channels, self.mean
        west = self.at(p - n)
        north = self.at(p - self.l.stride) if self.l.stride else self.at(p - 2 * n)
        values = [
            m[0] >> 6, m[5] >> 6, m[1] >> 6, (west << 16) + north,
            m[2] >> 6 << 16 | self.at(p - 1) - self.at(p - 1 - n) & 0xFFFF,
            m[0] >> 5 << 10 | self.place[0] << 1,
        ]  # fmt: skip
        self.hashed = [signed((v * 8 + c + 1) * B) for v in values]

    # -- 9.6 a bit

    def below(self, e: int, v: int) -> int:
        """Expert e's probability of less than v."""
        edge = LIMIT - 1 << 8
        d = clamp(((v << 6) - 32 - self.mean[e]) * self.narrow[e] >> 12, -edge, edge)
        i = (d >> 8) + LIMIT
        return (FINE[i] << 8) + (FINE[i + 1] - FINE[i]) * (d & 255) + (v - self.bottom << 20 >> self.bits)

    def predict(self, k: int, low: int, ends: list[list[int]]) -> int:
        """The probability that bit k is 1 of a value in [low, low + 2^(bits - k))."""
        width = 1 << self.bits - k
        middle = low + (width >> 1)
        x = self.inputs = [0] * INPUTS
        self.middles = [self.below(e, middle) for e in range(EXPERTS)]
        for e, f in enumerate(self.middles):
            p = clamp((ends[e][1] - f << 16) // (ends[e][1] - ends[e][0] + 1), 1, 65535)
            x[e], x[EXPERTS + e] = STRETCH[p], p - 32768 >> 5
        self.seen = []
        for i, h in enumerate(self.hashed):
            h = signed((h + (low - self.bottom + (k + 1) * 0x50005) * C) * A)
            slot = (h ^ h >> 29) & (1 << 18) - 1
            state = self.table[i].get(slot, 0)
            self.seen.append((slot, state))
            if state:
                p = self.maps[i][state] >> 10
                x[12 + i], x[18 + i] = COARSE[p >> 10], p - 2097152 >> 11
        x[24] = 256
        z = ((middle << 6) - 32 - self.mean[0]) * self.narrow[0] >> 18
        z = clamp(-level(-z) if z < 0 else level(z), -31, 31) + 32 >> 1
        ratio = min(level((width << 6) * self.narrow[0] >> 22) >> 1, 15)
        activity = min(self.place[0] >> 1, 31)
        prefix = (low - self.bottom) >> self.bits - k | 1 << k if k < 10 else 0
        chosen = (self.channel * 16 + k, ratio * 32 + z, activity * 16 + k, prefix)
        self.rows = [begin + own for begin, own in zip(SET_STARTS, chosen, strict=True)]
        self.answers = [
            clamp(sum(a * b for a, b in zip(x, self.weights[row], strict=True)) >> 16, -LIMIT, LIMIT)
            for row in self.rows
        ]
        last = self.weights_last[k]
        total = self.total = clamp(sum(a * b for a, b in zip(self.answers, last, strict=True)) >> 16, -LIMIT, LIMIT)
        cell, part = divmod(total + 2880, 180)
        self.refined, self.cell = (ratio * 32 + z, 512 + activity * 16 + k), cell + (part >= 90)
        both = sum(
            (self.refine[row][cell] >> 10) * (180 - part) + (self.refine[row][cell + 1] >> 10) * part
            for row in self.refined
        )
        return clamp(2 * SQUASH[total + LIMIT] + both // 11520 >> 2, 1, 65535)

    def learn_bit(self, k: int, bit: int, ends: list[list[int]]) -> None:
        """Teach weights, histories and maps bit k."""
        target = bit << 16
        error = (target - SQUASH[self.total + LIMIT]) * 40 >> 8
        for j, (row, answer) in enumerate(zip(self.rows, self.answers, strict=True)):
            self.weights_last[k][j] += answer * error + 32768 >> 16
            e = (target - SQUASH[answer + LIMIT]) * 300 >> 8
            w = self.weights[row]
            for i, x in enumerate(self.inputs):
                w[i] += x * e + 32768 >> 16
        for i, (slot, state) in enumerate(self.seen):
            if state:
                learn_entry(self.maps[i], state, bit, 1023)
            self.table[i][slot] = NEXT[state][bit]
        for row in self.refined:
            learn_entry(self.refine[row], self.cell, bit, 255)
        for own, f in zip(ends, self.middles, strict=True):
            own[1 - bit] = f

    # -- 9.7 a sample

    def learn_sample(self, p: int) -> None:
        """Teach the experts sample p."""
        n, stride, v, c = self.l.channels, self.l.stride, self.value[p], self.channel
        for e in range(EXPERTS):
            error = abs((v << 6) - self.mean[e])
            self.error[e].append(error)
            spread = self.spread[e][c]
            spread[self.place[e]] += (error << 6) - spread[self.place[e]] >> 5
        for o in (0, 1):
            solver = self.solvers[o][c]
            solver.observe(self.x, v - self.base)
            if o == 1 and stride:
                for row in range(1, 5):
                    q = p - row * stride + 8 * n
                    if stride < q < p:
                        base, x = self.gather(q)
                        solver.observe(x, self.value[q] - base)
            if p // n % (2 if stride else 8) == 0:
                solver.solve()

    def decode(self, count: int, coder: Decoder) -> list[int]:
        """All samples."""
        for p in range(count):
            self.begin(p)
            low = self.bottom
            ends = [[0, (1 << 32) + (1 << 20)] for _ in range(EXPERTS)]
            for k in range(self.bits):
                bit = coder.bit(0, self.predict(k, low, ends))
                self.learn_bit(k, bit, ends)
                low += bit << self.bits - k - 1
            self.value.append(low)
            self.learn_sample(p)
        return self.value
