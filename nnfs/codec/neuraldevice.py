"""The neural codec on a GPU: features, network, mixer and coder of many chunks at once, in `nnfs.kernels` (`cuda/`).

Each chunk has memory of its own on the device, laid out by `_Layout`: what the mixer starts from (copied from the
model's), its tables, its stream, its bytes. Chunks whose lanes fit into one block's rows are a group; a launch steps
the columns of all groups. Nothing comes back to the host before the end.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnfs.codec import rans
from nnfs.codec.base import nothing
from nnfs.kernels import library as native
from nnfs.kernels.driver import Device
from nnfs.kernels.launches import ROWS, Chunk, Launches, Work
from nnfs.mixer import state as mixer
from nnfs.mixer.architecture import FIND_BITS, MATCHES
from nnfs.mixer.contexts import RECORD
from nnfs.mixer.histories import NEXT
from nnfs.mixer.logistic import COARSE, FINE, SQUASH, STRETCH
from nnfs.model import features
from nnfs.model.architecture import HEAD, ORDERS, WINDOW
from nnfs.model.device import DeviceModel, rounded
from nnfs.model.dictionary import Dictionary
from nnfs.model.weights import Weights

COLUMNS = 256  # of one launch: some 20 ms, so that an urgent read gets in between
LANE_FIELDS = 5
STATE = 8  # bytes of a coder's state
MOST_STATES = 64
SHARE = 0.8  # of the free memory that a batch may take

Between = Callable[[], None]


class Coding(NamedTuple):
    """A chunk to encode or decode, and the coder as it begins."""

    size: int
    lanes: int
    states: NDArray[np.int64]  # of the coder, as it begins
    words: NDArray[np.uint8]  # to decode: its stream; to encode: the chunk


class _Layout:
    """The places of the parts of one chunk's memory."""

    def __init__(self, size: int, lanes: int, words: int, dictionary: Dictionary | None, *, encoding: bool) -> None:
        """`words`: bytes of its stream, or room for them."""
        self.begin = dictionary.size if dictionary else 0
        self.lines = dictionary.lines if dictionary else mixer.table_bits(size)
        self.bits = dictionary.bits if dictionary else features.table_bits(size)
        columns = -(-size // lanes)
        self.at: dict[str, int] = {}
        self.size = 0
        for name, part in (
            ("start", 0),
            ("find", 4 * MATCHES << FIND_BITS),
            ("table", 16 << self.lines),
            ("orders", 4 * len(ORDERS) << self.bits),
            ("starts", 4 << self.bits),
            ("record", 8 * lanes * RECORD),
            ("lane", 8 * lanes * LANE_FIELDS),
            ("states", STATE * MOST_STATES),
            ("words", words),
            ("plain", self.begin + size),
            ("probability", 16 * lanes * columns if encoding else 0),
        ):
            self.at[name] = self.size
            self.size += rounded(part)


def tables() -> NDArray[np.uint8]:
    """Return `Tables` of mixing.h."""
    n = np.arange(1024)
    parts = (
        SQUASH.astype(np.int32), STRETCH.astype(np.int16), COARSE.astype(np.int16), NEXT.astype(np.uint8),
        (65536 * 2 // (2 * n + 3)).astype(np.int32), FINE.astype(np.int32),
    )  # fmt: skip
    return np.concatenate([np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts])


class DeviceCoder:
    """One model on one GPU. Calls from several threads take turns: a batch fills the GPU."""

    def __init__(self, device: Device, weights: Weights, image: bytes, dictionary: Dictionary | None = None) -> None:
        """`image`: the compiled kernels. Raises `ModelMissing`, `CodecError`, `RuntimeError`, `MemoryError`."""
        self.device, self.dictionary, self.weights = device, dictionary, weights
        self.rows: int | None = None  # of a block, where a test wants other ones than the batch would get
        a = weights.architecture
        sizes = native.Network(width=a.width, layers=a.layers, heads=a.heads, kv_heads=a.kv_heads, hidden=a.hidden)
        self.launches = Launches(device, image, sizes)
        self._model = DeviceModel(device, weights)
        self._keys = a.layers * a.kv_heads * WINDOW * HEAD  # bytes of one row's keys, or values
        s = weights.start
        parts = [s.maps, s.match_maps, s.weights, s.weights_last, s.refine]
        self._starts: dict[str, int] = {}
        content, at = [tables()], rounded(tables().nbytes)
        first = at
        for name, part in zip(("maps", "match_maps", "weights", "weights_last", "refine"), parts, strict=True):
            self._starts[name] = at - first
            content.append(np.ascontiguousarray(part).reshape(-1).view(np.uint8))
            at += rounded(part.nbytes)
        self._start_size = at - first
        if dictionary:
            for part in (dictionary.find, dictionary.table, dictionary.orders, dictionary.starts):
                content.append(np.ascontiguousarray(part).reshape(-1).view(np.uint8))
                at += rounded(part.nbytes)
        self._prepared = at - first  # bytes that each chunk begins with
        self._memory = device.memory(at)
        place = self._memory.address
        for piece in content:
            device.put(place, piece)
            place += rounded(piece.nbytes)

    def free(self) -> None:
        self._memory.free()
        self._model.free()

    @property
    def most_lanes(self) -> int:
        """The most lanes that a chunk may have here."""
        return self.launches.most_rows

    def most(self) -> int:
        """Return how many plain bytes make a batch that fills the GPU: a chunk of 128 KiB has 8 lanes."""
        lanes = self.launches.most_rows * self.device.multiprocessors
        return max(1, min(lanes // ROWS, int(self.device.free() * SHARE) // self.bytes_of(1 << 17, ROWS))) << 17

    def bytes_of(self, size: int, lanes: int, *, encoding: bool = True) -> int:
        """Return how much memory a chunk takes on the GPU, with its share of the network's past."""
        layout = self._layout(size, lanes, size + size // 4 + 64, encoding=encoding)
        return layout.size + 2 * self._keys * max(lanes, ROWS) + ctypes.sizeof(Chunk)

    def _layout(self, size: int, lanes: int, words: int, *, encoding: bool) -> _Layout:
        layout = _Layout(size, lanes, words, self.dictionary, encoding=encoding)
        for name in layout.at:
            layout.at[name] += self._start_size * (name != "start")
        layout.size += self._start_size
        return layout

    def encode(self, chunks: list[tuple[bytes, int]], states: int, between: Between = nothing) -> list[bytes | None]:
        """Return the stream of each (plain, lanes), None for one that does not get smaller."""
        begin = rans.LOW if states > 1 else 0
        codings = [
            Coding(len(plain), lanes, np.full(states, begin, np.int64), np.frombuffer(plain, np.uint8))
            for plain, lanes in chunks
        ]
        return [
            rans.stream(found[0], found[1]) if found else None for found in self._all(codings, between, encoding=True)
        ]

    def decode(self, codings: list[Coding], between: Between = nothing) -> list[tuple[NDArray[np.int64], bytes, int]]:
        """Return for each coding the coder's states, the bytes, and where the coder stands in the end."""
        return [found for found in self._all(codings, between, encoding=False) if found]

    def _all(
        self, codings: list[Coding], between: Between, *, encoding: bool
    ) -> list[tuple[NDArray[np.int64], bytes, int] | None]:
        """Code codings in batches that fit the memory, the longest lanes first."""
        results: list[tuple[NDArray[np.int64], bytes, int] | None] = [None] * len(codings)
        order = sorted(range(len(codings)), key=lambda i: -(-codings[i].size // codings[i].lanes), reverse=True)
        with self.device.lock:
            self.device.activate()
            while order:
                room, count = int(self.device.free() * SHARE), 0
                while count < len(order):
                    coding = codings[order[count]]
                    room -= self.bytes_of(coding.size, coding.lanes, encoding=encoding)
                    if room < 0 and count:
                        break
                    count += 1
                batch = [codings[i] for i in order[:count]]
                for i, found in zip(order, self._batch(batch, between, encoding=encoding), strict=False):
                    results[i] = found
                del order[:count]
        return results

    def _batch(
        self, codings: list[Coding], between: Between, *, encoding: bool
    ) -> list[tuple[NDArray[np.int64], bytes, int] | None]:
        rows = self.rows or self.launches.rows_for(
            sum(coding.lanes for coding in codings), max(coding.lanes for coding in codings)
        )
        groups, firsts = seated([coding.lanes for coding in codings], rows)
        blocks = len(groups) - 1
        layouts = [
            self._layout(
                j.size, j.lanes, j.size + j.size // 4 + 64 if encoding else max(1, j.words.size), encoding=encoding
            )
            for j in codings
        ]
        past = blocks * rows * self._keys
        head = rounded(4 * len(groups)) + rounded(ctypes.sizeof(Chunk) * len(codings)) + 2 * rounded(past)
        with self.device.memory(head + sum(layout.size for layout in layouts)) as memory:
            keys = memory.address
            values = keys + rounded(past)
            self.device.zero(keys, 2 * rounded(past))
            table = values + rounded(past)
            records = table + rounded(4 * len(groups))
            self.device.put(table, np.array(groups, np.int32))
            at = memory.address + head
            chunks = (Chunk * len(codings))()
            for k, (coding, layout) in enumerate(zip(codings, layouts, strict=True)):
                self._fill(chunks[k], coding, layout, at, encoding=encoding)
                chunks[k].first = firsts[k]
                at += layout.size
            self.device.put(records, chunks)
            work = Work(self._model.network, records, table, keys, values, 0, 0, encoding)
            end = max(-(-coding.size // coding.lanes) for coding in codings)
            for t in range(0, end, COLUMNS):
                between()
                work.begin, work.end = t, min(t + COLUMNS, end)
                self.launches.columns(rows, blocks, work)
                self.device.wait()
            if encoding:
                between()
                self.launches.streams(records, len(codings))
                self.device.wait()
            self.device.get(records, chunks)
            return [
                self._taken(chunk, coding, encoding=encoding) for chunk, coding in zip(chunks, codings, strict=True)
            ]

    def _fill(self, chunk: Chunk, coding: Coding, layout: _Layout, at: int, *, encoding: bool) -> None:
        """Lay a chunk out at `at`."""
        device, where = self.device, {name: at + offset for name, offset in layout.at.items()}
        device.copy(at, self._memory.address + rounded(tables().nbytes), self._prepared)
        device.zero(at + self._prepared, where["states"] - at - self._prepared)
        device.put(where["states"], coding.states)
        if not encoding and coding.words.size:
            device.put(where["words"], coding.words)
        begin, plain = layout.begin, where["plain"]
        if self.dictionary:
            device.put(plain, np.ascontiguousarray(self.dictionary.plain))
        if encoding:
            device.put(plain + begin, coding.words)
        else:
            device.zero(plain + begin, coding.size)
        rate, last, limit, refined = self.weights.start.rates(coding.lanes)
        start = {name: at + offset for name, offset in self._starts.items()}
        chunk.past = native.Past(
            plain, coding.size, coding.lanes, begin, layout.bits, where["orders"], 1 << layout.bits, where["starts"],
            where["lane"],
        )  # fmt: skip
        chunk.mixer = native.Mixer(
            self._memory.address, coding.size, coding.lanes, 0, begin, 1 << layout.lines, rate, last, limit, refined,
            plain, where["table"], start["maps"], start["match_maps"], start["weights"], start["weights_last"],
            start["refine"], where["find"], where["record"],
        )  # fmt: skip
        room = where["plain"] - where["words"] if encoding else coding.words.size
        chunk.coder = native.Coder(where["states"], coding.states.size, where["words"], room, 0)
        chunk.probability = where["probability"]

    def _taken(self, chunk: Chunk, coding: Coding, *, encoding: bool) -> tuple[NDArray[np.int64], bytes, int] | None:
        states, cursor = np.zeros(coding.states.size, np.int64), int(chunk.coder.cursor)
        if cursor < 0:
            return None
        self.device.get(chunk.coder.states, states)
        if encoding:
            content = np.zeros(int(chunk.coder.size) - cursor, np.uint8)
            origin = chunk.coder.words + cursor
        else:
            content = np.zeros(coding.size, np.uint8)
            origin = chunk.past.plain + chunk.past.begin
        if content.size:
            self.device.get(origin, content)
        return states, content.tobytes(), cursor


def seated(lanes: list[int], rows: int) -> tuple[list[int], list[int]]:
    """Return (where each block's chunks begin, and the end; each chunk's first row), the chunks in their order."""
    groups, firsts, taken = [0], [], 0
    for k, own in enumerate(lanes):
        if taken + own > rows:
            groups.append(k)
            taken = 0
        firsts.append(taken)
        taken += own
    return [*groups, len(lanes)], firsts
