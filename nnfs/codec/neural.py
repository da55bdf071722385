"""The neural codec: the network's frequencies, mixed with those of the chunk's own past, drive an entropy coder.

Payload: one byte, `lanes - 1` in its low 5 bits, then 1 bit for x86 code whose addresses were made absolute
(`nnfs.codec.x86`), log4 of the coder's states in its high 2 bits; then the stream (`nnfs.codec.rans`). The plain length
and the model come from the block header.

A batch is some chunks whose lanes are stepped side by side, the longest first, so that lanes that have ended can be
left out. Encoding takes COLUMNS columns in one step, since all of them are known; decoding takes one. Else both run
the same code (`Engine.forward`), and no row of a product depends on another, so batches of any size agree.

A fitted model may bring a dictionary (`nnfs.codec.storeddictionary`), which every chunk has as its past.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nnfs.codec import bitstream, devicechoice, neuralnative, progress, rans, x86
from nnfs.codec.base import NEURAL, Tell, nothing, untold
from nnfs.codec.neuraldevice import Coding, DeviceCoder
from nnfs.codec.neuralnative import NativeBatch
from nnfs.codec.storeddictionary import dictionary_of
from nnfs.codec.threads import on_threads
from nnfs.errors import CodecError
from nnfs.mixer.architecture import Mix
from nnfs.mixer.compiling import njit
from nnfs.mixer.native import Kernels, coder_of
from nnfs.mixer.networkbits import net_path
from nnfs.mixer.state import MixState
from nnfs.model import features, selftest
from nnfs.model.dictionary import Dictionary
from nnfs.model.engines import Model, open_model
from nnfs.model.features import learn_batch, predict_batch
from nnfs.model.lanes import LANE, lanes_for
from nnfs.model.native import NativeModel
from nnfs.model.weights import Weights

X86 = 32  # bit of the payload's first byte
STATES = 1  # of the coder; 4, 16 or 64 cost 5 bytes each, for decoders that run lanes in parallel
MAX_PLAIN = 1 << 22  # bytes of a chunk
COLUMNS = 8  # columns of one step of the encoder: with two threads 1.0 to 1.3 times as fast as 32, which leave caches
LANES = 128  # lanes of one batch: products large enough to be fast
CHUNKS = 64  # chunks of one batch: each has tables of 1 to 8 MB
PRIMED_CHUNKS = 16  # with a dictionary, which always takes 12 MB

Between: TypeAlias = Callable[[], None]
Items: TypeAlias = list[tuple[int, int, int]]  # (index, size, lanes)


class Neural:
    """The codec with one model, on one device. Threads may share it."""

    id = NEURAL
    name = "neural"

    def __init__(self, weights: Weights, threads: int = 1, device: str = "cpu") -> None:
        """`device`: "cpu", "cuda", "cuda:0" or "auto".

        Raises `CodecError` for one that does not compute exactly, `ModelMissing` for a model that cannot be run.
        """
        self.dictionary = dictionary_of(weights)
        there = devicechoice.opened(weights, device, self.dictionary)
        self.device = there[0] if there else selftest.usable(device)
        self.gpu: DeviceCoder | None = there[1] if there else None
        # beside a GPU's kernels, the CPU has the few chunks of so many lanes that no block of theirs holds them
        self.model = open_model(weights, selftest.usable("cpu") if self.gpu else self.device)
        self.threads = threads
        self.batch = self.gpu.most() if self.gpu else threads * LANES * LANE  # plain bytes

    def encode(self, plain: bytes) -> bytes | None:
        return self.encode_many([plain])[0]

    def decode(self, payload: bytes, plain_length: int) -> bytes:
        result = self.decode_many([(payload, plain_length)])[0]
        if isinstance(result, CodecError):
            raise result
        return result

    def encode_many(
        self, plains: Sequence[bytes], between: Between = nothing, tell: Tell = untold
    ) -> list[bytes | None]:
        """Return the payload of each chunk, None for one that would not get smaller."""
        payloads: list[bytes | None] = [None] * len(plains)
        work = [(i, len(plain), lanes_for(len(plain))) for i, plain in enumerate(plains) if 0 < len(plain) <= MAX_PLAIN]

        def run(batch: Items, between: Between) -> None:
            encode = self._encode_on_gpu if self._on_gpu([lanes for _, _, lanes in batch]) else self._encode
            made = encode([prepared(plains[i]) for i, _, _ in batch], between)
            for (i, size, _), payload in zip(batch, made, strict=True):
                payloads[i] = payload if payload and len(payload) < size else None

        self._run(run, work, between, lambda i: tell(i, payloads[i]))
        return payloads

    def decode_many(
        self, payloads: Sequence[tuple[bytes, int]], between: Between = nothing, tell: Tell = untold
    ) -> list[bytes | CodecError]:
        """Return the bytes of each (payload, plain length), or the `CodecError` that says why not."""
        results: list[bytes | CodecError] = [b""] * len(payloads)
        work = []
        for i, (payload, size) in enumerate(payloads):
            try:
                work.append((i, size, _parse(payload, size)[0]))
            except CodecError as error:
                results[i] = error

        def run(batch: Items, between: Between) -> None:
            each = self.threads // min(len(work), self.threads)  # threads that have no chunk help with the others'
            made = self._decode([payloads[i] for i, _, _ in batch], between, each)
            for (i, _, _), result in zip(batch, made, strict=True):
                code = payloads[i][0][0] & X86
                results[i] = x86.relative(result) if code and isinstance(result, bytes) else result

        self._run(run, work, between, lambda i: tell(i, results[i]))
        return results

    def _on_gpu(self, lanes: list[int]) -> bool:
        return self.gpu is not None and max(lanes) <= self.gpu.most_lanes

    def _encode_on_gpu(self, prepared: list[tuple[bytes, bool]], between: Between) -> list[bytes | None]:
        """Do as `_encode`; None may stand for a payload that is no smaller than its chunk."""
        assert self.gpu
        streams = self.gpu.encode([(plain, lanes_for(len(plain))) for plain, _ in prepared], STATES, between)
        return [stream and _head(*own) + stream for own, stream in zip(prepared, streams, strict=True)]

    def _encode(self, prepared: list[tuple[bytes, bool]], between: Between) -> list[bytes]:
        chunks = [plain for plain, _ in prepared]
        lanes = [lanes_for(len(c)) for c in chunks]
        paths = network_paths(self.model, chunks, lanes, between, self.dictionary)
        mix = MixState(1, max(map(len, chunks)), max(lanes), dictionary=self.dictionary)
        payloads = []
        for k, (plain, code) in enumerate(prepared):
            between()
            mix.start(0, plain, lanes[k], values=self.model.weights.start)
            payloads.append(_head(plain, code) + bitstream.encode(mix, 0, paths[k], STATES))
        return payloads

    def _decode(
        self, payloads: list[tuple[bytes, int]], between: Between, threads: int = 1
    ) -> list[bytes | CodecError]:
        """Decode a batch. `threads`: how many may work on it."""
        parsed = [_parse(payload, size) for payload, size in payloads]
        sizes, lanes = [size for _, size in payloads], [own for own, _, _ in parsed]
        results: list[bytes | CodecError] = [CodecError("neural: not decoded")] * len(payloads)
        coders = _Coders([(states, stream) for _, states, stream in parsed], results)
        if self.gpu and self._on_gpu(lanes):
            coders.on_gpu(self.gpu, sizes, lanes, results, between)
            return results
        mix = MixState(len(payloads), max(sizes), max(lanes), dictionary=self.dictionary)
        for k, size in enumerate(sizes):
            mix.start(k, size, lanes[k], values=self.model.weights.start)
        bits = self.model.weights.architecture.ngram_bits
        past = features.Batch(mix.stack.plain, sizes, lanes, bits, self.dictionary)
        kernels = neuralnative.kernels_for(self.model, lanes)
        if kernels and isinstance(self.model, NativeModel):
            coders.all_columns(kernels, NativeBatch(self.model, past, 1), mix, between, threads)
        else:
            engine = self.model.engine(sum(lanes))
            room = features.room(1, engine.lanes)
            past.predict(0, room)
            for t in range(int(past.lengths[coders.alive].max(initial=0))):
                between()
                coders.column(past, mix, t, engine.forward(room.columns(0, 1, past.live(t))), room)
        for k in coders.alive:
            results[k] = coders.finish(k, mix.stack.plain[k, past.begin : past.begin + sizes[k]].tobytes())
        return results

    def _run(
        self, run: Callable[[Items, Between], None], work: Items, between: Between, finished: Callable[[int], None]
    ) -> None:
        """Call `run` with batches of (index, size, lanes), the longest lanes first, on all threads.

        `between`, and `finished` with the index of each item that is done, are only ever called on this thread.
        """
        work.sort(key=lambda item: (-(-item[1] // item[2]), item[1]), reverse=True)

        def step() -> None:
            progress.beat()
            between()

        def run_here(batch: Items) -> None:
            run(batch, step)
            for i, _, _ in batch:
                finished(i)

        if self.gpu:
            if there := [item for item in work if self._on_gpu([item[2]])]:
                run_here(there)
            work = [item for item in work if not self._on_gpu([item[2]])]
        most = PRIMED_CHUNKS if self.dictionary else CHUNKS
        shares = [_batches(work[i :: self.threads], most) for i in range(self.threads)]
        batches = [batch for batches in itertools.zip_longest(*shares) for batch in batches if batch]
        if len(batches) <= 1 or self.threads == 1:
            for batch in batches:
                run_here(batch)
        else:
            pool = ThreadPoolExecutor(self.threads)
            with pool, contextlib.closing(on_threads(pool, self.threads, run, batches, between)) as done:
                for place, _ in done:
                    for i, _, _ in batches[place]:
                        finished(i)


def _head(plain: bytes, code: bool) -> bytes:
    """Return the first byte of a chunk's payload."""
    return bytes([lanes_for(len(plain)) - 1 | X86 * code | (STATES.bit_length() // 2) << 6])


def _batches(work: Items, chunks: int) -> Iterator[Items]:
    """Cut work into runs of at most LANES lanes and `chunks` items, or one item.

    And of no more memory than the longest chunks take: each item of a run takes as much as its largest.
    """
    batch: Items = []
    lanes = largest = 0
    for item in work:
        largest = max(largest, item[1])
        if batch and (lanes + item[2] > LANES or len(batch) == chunks or (len(batch) + 1) * largest > LANES * LANE):
            yield batch
            batch, lanes, largest = [], 0, item[1]
        batch.append(item)
        lanes += item[2]
    if batch:
        yield batch


def _parse(payload: bytes, size: int) -> tuple[int, int, bytes]:
    """Return (lanes, coder states, stream). Raises `CodecError`."""
    if not 0 < size <= MAX_PLAIN:
        raise CodecError(f"neural: a chunk of {size} bytes")
    if not payload:
        raise CodecError("neural: empty payload")
    lanes, states = (payload[0] & 31) + 1, 4 ** (payload[0] >> 6)
    if lanes > size or states > lanes:
        raise CodecError("neural: impossible lane table")
    return lanes, states, payload[1:]


def prepared(plain: bytes) -> tuple[bytes, bool]:
    """Return a chunk as it is coded, and whether its addresses were made absolute."""
    converted = x86.absolute(plain)
    return (plain, False) if converted is None else (converted, True)


def network_paths(
    model: Model,
    chunks: list[bytes],
    lanes: list[int],
    between: Between = nothing,
    dictionary: Dictionary | None = None,
) -> list[NDArray[np.uint16]]:
    """Return the network's probability of a 1 for each bit of every chunk, (columns, lanes, 8) each.

    Chunks come with the longest lanes first.
    """
    sizes = [len(c) for c in chunks]
    begin = dictionary.size if dictionary else 0
    plain = np.zeros((len(chunks), begin + max(sizes)), np.uint8)
    for k, chunk in enumerate(chunks):
        plain[k, begin : begin + sizes[k]] = np.frombuffer(chunk, np.uint8)
    if dictionary:
        plain[:, :begin] = dictionary.plain
    past = features.Batch(plain, sizes, lanes, model.weights.architecture.ngram_bits, dictionary)
    if neuralnative.kernels_for(model, lanes) and isinstance(model, NativeModel):
        return NativeBatch(model, past, neuralnative.columns_for(sum(lanes))).encode(between)
    engine = model.engine(sum(lanes), COLUMNS)
    room = features.room(COLUMNS, engine.lanes)
    length = int(past.lengths.max())
    paths = np.zeros((length, engine.lanes, 8), np.uint16)
    targets = _grid(past, plain[:, begin:], length)
    for t in range(0, length, COLUMNS):
        between()
        count, live = min(COLUMNS, length - t), past.live(t)
        past.follow(t, room, count)
        frequencies = engine.forward(room.columns(0, count, live)).reshape(count, live, 256)
        for k in range(count):
            net_path(frequencies[k], targets[t + k, :live], paths[t + k, :live])
    own = (
        paths[:length, first:end]
        for length, first, end in zip(past.lengths, past.first[:-1], past.first[1:], strict=True)
    )
    return list(map(np.ascontiguousarray, own))


def _grid(past: features.Batch, plain: NDArray[np.uint8], length: int) -> NDArray[np.uint8]:
    """Return the bytes by (column, lane), 0 where a lane has ended."""
    grid = np.zeros((length, int(past.first[-1])), np.uint8)
    for k, (size, lanes, own) in enumerate(zip(past.sizes, past.lanes, past.lengths, strict=True)):
        padded = np.zeros(lanes * own, np.uint8)
        padded[:size] = plain[k, :size]
        grid[:own, past.first[k] : past.first[k + 1]] = padded.reshape(lanes, own).T
    return grid


@njit(cache=True, nogil=True)
def _decode_column(  # type: ignore[no-untyped-def]
    alive, t, frequencies, states, widths, words, bounds, cursors, plain, sizes, lanes, first, bits, orders, starts,
    lane_state, begin, rows, ngrams, candidates, buckets, ngram_bits, *stack
) -> None:  # fmt: skip
    """Decode column `t` of the chunks `alive`, learn it, and write the features of the next one.

    `stack`: the fields of the mixer's states one by one. As a named tuple they would take numba 150 us at every call.
    """
    mix = Mix(*stack)
    for k in alive:
        if t < (sizes[k] + lanes[k] - 1) // lanes[k]:
            bitstream.decode_column(
                mix, k, t, frequencies[first[k] : first[k + 1]],
                states[k, : widths[k]], words[bounds[k] : bounds[k + 1]], cursors[k],
            )  # fmt: skip
    learn_batch(plain, sizes, lanes, first, bits, orders, starts, lane_state, t, begin)
    predict_batch(
        plain, sizes, lanes, first, bits, orders, lane_state, t + 1, begin,
        rows, ngrams, candidates, buckets, ngram_bits,
    )  # fmt: skip


class _Coders:
    """The entropy decoders of a batch, laid out as `_decode_column` wants them."""

    def __init__(self, streams: list[tuple[int, bytes]], results: list[bytes | CodecError]) -> None:
        count = len(streams)
        self.widths = np.array([states for states, _ in streams], np.int64)
        self.states = np.zeros((count, int(self.widths.max())), np.int64)
        self.cursors = np.zeros((count, 1), np.int64)
        words, alive = [], []
        for k, (states, stream) in enumerate(streams):
            own: NDArray[np.uint8] = np.zeros(0, np.uint8)
            try:
                self.states[k, :states], own, _ = rans.start(stream, states)
                alive.append(k)
            except CodecError as error:
                results[k] = error
            words.append(own)
        self.alive = np.array(alive, np.int64)
        self.bounds = np.concatenate(([0], np.cumsum([len(own) for own in words])))
        self.words = np.concatenate(words)

    def column(
        self, past: features.Batch, mix: MixState, t: int, frequencies: NDArray[np.uint32], room: features.Features
    ) -> None:
        """Decode column `t` of all chunks and write the features of the next one into `room`."""
        _decode_column(
            self.alive, t, frequencies, self.states, self.widths, self.words, self.bounds, self.cursors,
            past.plain, past.sizes, past.lanes, past.first, past.bits, past.orders, past.starts, past.lane, past.begin,
            *(field[0] for field in room), past.ngram_bits, *mix.stack,
        )  # fmt: skip

    def all_columns(self, kernels: Kernels, batch: NativeBatch, mix: MixState, between: Between, threads: int) -> None:
        """Decode all columns of all chunks in native code."""
        own = [
            coder_of(self.states[k, :width], self.words[self.bounds[k] : self.bounds[k + 1]], self.cursors[k])
            for k, width in enumerate(self.widths)
        ]
        self.cursors[:, 0] = batch.decode(kernels, mix, own, [int(k) for k in self.alive], between, threads)

    def on_gpu(
        self, gpu: DeviceCoder, sizes: list[int], lanes: list[int], results: list[bytes | CodecError], between: Between
    ) -> None:
        """Decode all columns of all chunks on a GPU, into `results`."""
        codings = [
            Coding(
                sizes[k], lanes[k], self.states[k, : self.widths[k]], self.words[self.bounds[k] : self.bounds[k + 1]]
            )
            for k in self.alive
        ]
        for k, (states, plain, cursor) in zip(self.alive, gpu.decode(codings, between), strict=True):
            self.states[k, : self.widths[k]], self.cursors[k] = states, cursor
            results[k] = self.finish(k, plain)

    def finish(self, k: int, plain: bytes) -> bytes | CodecError:
        """Return `plain`, if the stream ends as it should."""
        words = self.words[self.bounds[k] : self.bounds[k + 1]]
        with contextlib.suppress(CodecError):
            rans.finish(self.states[k, : self.widths[k]], words, self.cursors[k])
            return plain
        return CodecError("neural: the stream does not end as it was begun: damaged, or made with another model")
