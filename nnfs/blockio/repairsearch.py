"""A search for the small change of damaged stored bytes after which they have their XXH3-64 again.

A block's header is sealed, so its XXH3-64 of the payload is to be trusted. Disks and memory mostly flip one bit, now
and then a byte or two bits of a word: these changes are few enough to try them all. XXH3 keeps 8 sums of 64 bits over
stripes of 64 bytes. A word of a stripe adds to two of them, a pair, and at the end of each block of 16 stripes every
sum is scrambled on its own; so a change is followed through two sums, block by block, for thousands of changes at once
(numpy, without the GIL): 0.03 s for all bits of 40 KB, 1.6 s for all bytes, 0.3 and 11 s of 128 KiB. The last bytes,
which XXH3 takes twice, and short payloads are tried one by one. 64 bits do not prove a repair: the caller compares the
BLAKE2b-512 of the content.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import trio

from nnfs.proof import payload_checksum

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Words = NDArray[np.uint64]

STRIPE, BLOCK = 64, 1024
SHORT = 240  # bytes; up to here XXH3 works differently
_MASKS = 1 << 11  # changes tried side by side
_M64 = (1 << 64) - 1
_PRIME32 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
_PRIME64 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
_START = (_PRIME32[2], *_PRIME64[:4], _PRIME32[1], _PRIME64[4], _PRIME32[0])
_SECRET = bytes.fromhex(  # XXH3's default
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248e"
    "e03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d"
    "8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc"
    "8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
SHARE, MOST_S, LEAST_S = 8, 5.0, 0.2  # of a read's time for one search; the least is enough for all bits of 100 KB
WALL_SHARE = 2  # part of a read's time in which a search ends on a busy machine, too


async def repair_beside(payload: bytes, xxh3: int, limit_s: float, wall_s: float = math.inf) -> bytes | None:
    """Run `repair` in a thread, which ends soon after the call is cancelled.

    `limit_s` counts the thread's own CPU time: whether a block can be read must not depend on the load of the machine.
    """
    given_up = False
    latest = time.monotonic() + wall_s

    def clock() -> float:
        return math.inf if given_up or time.monotonic() >= latest else time.thread_time()

    try:
        return await trio.to_thread.run_sync(repair, payload, xxh3, limit_s, clock, abandon_on_cancel=True)
    finally:
        given_up = True


class Repairs:
    """The searches of readers, one after the other, each within a share of a read's `timeout` (seconds).

    The more searches in a row have failed, the shorter they are: large damage does not consist of flipped bits, and its
    readers should not wait for each block.
    """

    def __init__(self, timeout: float) -> None:
        self._limit_s, self._wall_s = min(timeout / SHARE, MOST_S), timeout / WALL_SHARE
        self._failed = 0  # in a row
        self._limiter = trio.CapacityLimiter(1)

    async def find(self, payload: bytes, xxh3: int) -> bytes | None:
        """Return the bytes near `payload` that have this XXH3-64, or None."""
        async with self._limiter:
            limit_s = max(self._limit_s / (1 + self._failed), min(LEAST_S, self._limit_s))
            found = await repair_beside(payload, xxh3, limit_s, self._wall_s)
            self._failed = self._failed + 1 if found is None else 0
            return found


def repair(payload: bytes, xxh3: int, limit_s: float, clock: Callable[[], float] = time.monotonic) -> bytes | None:
    """Return the bytes near `payload` whose XXH3-64 is `xxh3`, None when none are found within `limit_s` seconds.

    The changes are tried in this order: one bit, one byte, two bits of an aligned 8-byte word, two neighbouring bytes.
    """
    if payload_checksum(payload) == xxh3:
        return payload
    end = clock() + limit_s

    def late() -> bool:
        return clock() >= end

    for attempt in _attempts(payload, xxh3, late):
        found = attempt()
        if found is not None or late():
            return found
    return None


def _attempts(payload: bytes, xxh3: int, late: Callable[[], bool]) -> Iterator[Callable[[], bytes | None]]:
    """Yield the searches, the most likely to succeed first."""
    if len(payload) <= SHORT:
        yield from (partial(_one_by_one, payload, xxh3, range(len(payload)), width, late) for width in (1, 2))
        return
    search = _Search(payload, xxh3)
    masks = _masks()
    yield from (partial(search.run, next(masks), late) for _ in range(2))
    tail = range(search.words * 8, len(payload))
    yield partial(_one_by_one, payload, xxh3, tail, 1, late)
    yield from (partial(search.run, more, late) for more in masks)
    yield partial(_one_by_one, payload, xxh3, tail, 2, late)


def _one_by_one(payload: bytes, xxh3: int, places: range, width: int, late: Callable[[], bool]) -> bytes | None:
    """Try all values of each `width` neighbouring bytes."""
    trial = bytearray(payload)
    for place in places[: len(places) + 1 - width]:
        for value in range(256**width):
            trial[place : place + width] = value.to_bytes(width, "little")
            if payload_checksum(trial) == xxh3:
                return bytes(trial)
            if not value & 255 and late():
                return None
        trial[place : place + width] = payload[place : place + width]
    return None


def _masks() -> Iterator[Words]:
    """Yield the masks to XOR to a word: one bit; one byte; two bits; two neighbouring bytes, `_MASKS` at a time."""
    import numpy as np

    bits = np.uint64(1) << np.arange(64, dtype=np.uint64)
    values = np.arange(1, 256, dtype=np.uint64)
    shifts = 8 * np.arange(8, dtype=np.uint64)
    yield bits
    yield (values[:, None] << shifts).ravel()
    first, second = np.triu_indices(64, 1)
    yield bits[first] | bits[second]
    pairs = (values[:, None] | values << np.uint64(8)).ravel()
    for shift in shifts[:-1]:
        for start in range(0, len(pairs), _MASKS):
            yield pairs[start : start + _MASKS] << shift


class _Search:
    """The sums of a payload of more than `SHORT` bytes, and the values of each pair that make the hash fit."""

    def __init__(self, payload: bytes, xxh3: int) -> None:
        import numpy as np

        self._np = np
        self._payload, self._xxh3 = payload, xxh3
        secret = [int.from_bytes(_SECRET[at : at + 8], "little") for at in range(len(_SECRET) - 7)]  # by offset
        size = len(payload)
        self.blocks = (size - 1) // BLOCK  # whole ones, each scrambled at its end
        stripes = (size - 1) // STRIPE  # the last bytes, again, are one more
        self.words = (size - STRIPE) // 8  # words that no byte of the last stripe is in
        data = np.frombuffer(payload, "<u8", stripes * 8).astype(np.uint64).reshape(-1, 8)
        keys = np.array([secret[8 * i : 8 * i + 64 : 8] for i in range(16)], np.uint64)
        self._keys = keys  # (16 stripes, 8)
        self._data = data  # (stripes, 8)
        added = self._added(data, np.resize(keys, data.shape))
        last = np.frombuffer(payload[-STRIPE:], "<u8").astype(np.uint64)[None]
        last = self._added(last, np.array([secret[121:185:8]], np.uint64))
        self._scramble = np.array(secret[128:192:8], np.uint64)
        self._ends = np.array(secret[11:75:8], np.uint64)
        # (blocks + 1, 8): what each block adds to the sums; the last one, cut short, with the last stripe.
        self._sums = np.add.reduceat(added, np.arange(0, stripes, 16), axis=0)
        if len(self._sums) == self.blocks:  # no stripe but the last in the last block
            self._sums = np.vstack([self._sums, np.zeros((1, 8), np.uint64)])
        self._sums[-1] += last[0]
        states = [np.array(_START, np.uint64)]  # before each block
        for block in range(self.blocks):
            states.append(self._mixed(states[-1] + self._sums[block], self._scramble))
        self._states = states
        final = states[-1] + self._sums[-1]
        folds = self._fold(final[0::2] ^ self._ends[0::2], final[1::2] ^ self._ends[1::2])
        whole = int(sum(map(int, folds))) + size * _PRIME64[0]
        want = _before_avalanche(xxh3)
        self._wanted = np.array([(want - whole + int(fold)) & _M64 for fold in folds], np.uint64)

    def _added(self, data: Words, keys: Words) -> Words:
        """Return what stripes add to the sums: each word to its neighbour, its halves' product to its own."""
        swapped = data.reshape(*data.shape[:-1], -1, 2)[..., ::-1].reshape(data.shape)
        return self._product(data ^ keys) + swapped

    def _product(self, keyed: Words) -> Words:
        return (keyed & self._np.uint64(0xFFFFFFFF)) * (keyed >> self._np.uint64(32))

    def _mixed(self, sums: Words, secret: Words) -> Words:
        return (sums ^ (sums >> self._np.uint64(47)) ^ secret) * self._np.uint64(_PRIME32[0])

    def _fold(self, a: Words, b: Words) -> Words:
        """Return the halves of the 128-bit products, XORed."""
        u = self._np.uint64
        low, half = u(0xFFFFFFFF), u(32)
        a0, a1, b0, b1 = a & low, a >> half, b & low, b >> half
        cross = a1 * b0 + (a0 * b0 >> half)
        other = a0 * b1 + (cross & low)
        high: Words = a1 * b1 + (cross >> half) + (other >> half)
        return high ^ (a * b)

    def run(self, masks: Words, late: Callable[[], bool]) -> bytes | None:
        """Try every mask on every word of a whole stripe. Words that the last stripe shares never fit."""
        step = min(max(1, _MASKS // len(masks)), 16)
        for first in range(0, len(self._data), step):
            if late():
                return None
            for word, mask in self._fitting(first // 16, slice(first, first + step), masks):
                changed = int.from_bytes(self._payload[8 * word : 8 * word + 8], "little") ^ mask
                found = self._payload[: 8 * word] + changed.to_bytes(8, "little") + self._payload[8 * word + 8 :]
                if payload_checksum(found) == self._xxh3:
                    return found
        return None

    def _fitting(self, block: int, stripes: slice, masks: Words) -> list[tuple[int, int]]:
        """Return (word, mask) of the changes to some stripes of one block that make the hash fit."""
        np = self._np
        data = self._data[stripes, :, None]  # (stripes, 8, 1)
        keys = self._keys[stripes.start % 16 :][: len(data), :, None]
        changed = data ^ masks  # (stripes, 8, masks)
        pair = np.stack([self._product(changed ^ keys) - self._product(data ^ keys), changed - data])
        # (2, stripes, 8, masks): the sum of each word's own column, and its neighbour's.
        pair += self._beside(self._states[block] + self._sums[block])
        secret = self._beside(self._scramble)
        for later in range(block + 1, self.blocks + 1):
            pair ^= pair >> np.uint64(47)
            pair ^= secret
            pair *= np.uint64(_PRIME32[0])
            pair += self._beside(self._sums[later])
        pair ^= self._beside(self._ends)
        hits = np.argwhere(self._fold(pair[0], pair[1]) == np.repeat(self._wanted, 2)[None, :, None])
        return [(8 * (stripes.start + int(s)) + int(column), int(masks[m])) for s, column, m in hits]

    def _beside(self, row: Words) -> Words:
        """Return values of the 8 columns in the shape of pairs of sums: (2, 1, 8, 1)."""
        neighbours = row.reshape(4, 2)[:, ::-1].reshape(8)
        return self._np.stack([row, neighbours])[:, None, :, None]


def _before_avalanche(h: int) -> int:
    """Return the value before XXH3's last step."""
    h ^= h >> 32
    h = h * pow(0x165667919E3779F9, -1, 1 << 64) & _M64
    return h ^ (h >> 37)
