"""Fitting a model to a user's data: a dictionary, start values and, where that saves bytes, changes of the weights.

The result is a delta over the base (`nnfs.model.delta`), measured on chunks that were held out. The dictionary and
the start values take a minute; the rest of the time goes to the weights. The rank of their change is as large as the
size of the data allows.
"""

from __future__ import annotations

import dataclasses
import os
import random
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nnfs.codec import bitstream
from nnfs.codec.cm import ContextMixing
from nnfs.codec.neural import Neural
from nnfs.codec.storeddictionary import stored_dictionary
from nnfs.constants import DEFAULT_CHUNK_SIZE as CHUNK
from nnfs.errors import CodecError, UsageError
from nnfs.mixer.startvalues import STORED
from nnfs.mixer.state import MixState
from nnfs.model import delta
from nnfs.model.delta import Tensors
from nnfs.model.dictionary import LARGEST, Dictionary
from nnfs.model.engines import open_model
from nnfs.model.lanes import lanes_for
from nnfs.model.weights import DICTIONARY, Weights, load_weights
from nnfs.train import dictionary, mixing

SAMPLE = 16 << 20  # bytes that are looked at
HELD_OUT = 6 * CHUNK  # bytes, at most a quarter of the sample
LEARN = 8 * CHUNK  # for the start values; as well
SMALLEST = 256  # bytes: shorter files are passed over
SIZES = (LARGEST, LARGEST >> 1, LARGEST >> 2, LARGEST >> 4, LARGEST >> 6)  # of dictionaries
COPIES = 2  # of a model that a store keeps
ROUNDS = 2  # over what the start values learn from
STEPS = (0.5, 0.1)
# From so many bytes on, as the data would be stored, a change of the weights of this rank can pay
RANKS = ((8 << 20, 8), (1 << 20, 4), (300_000, 2))
LEARN_SHARE = 0.7  # of the time, for the weights; the rest takes a few minutes on a slow machine
LEARN_S = 60.0  # below this nothing is learnt: torch's compiler takes as long


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a fit: the base model, the content, and how long to learn."""

    base: str
    out: str
    paths: Sequence[str]
    seconds: float = 1200
    seed: int = 1
    threads: int = len(os.sched_getaffinity(0))


@dataclasses.dataclass(frozen=True)
class Sample:
    """Chunks of the content. `all_bytes` is the size of all content."""

    held_out: list[bytes]
    learn: list[bytes]
    rest: list[bytes]
    all_bytes: int


def say(text: str) -> None:
    """Print a line of progress."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def fit(plan: Plan) -> dict[str, int | str]:
    """Write the delta and return what it gains. Raises `UsageError` where there is too little content."""
    base = Path(plan.base).read_bytes()
    w = load_weights(base)
    sample = sampled(plan.paths, plan.seed)
    plain = sum(map(len, sample.held_out))
    say(f"{sample.all_bytes} bytes of content; looking at {sum(map(len, sample.learn + sample.rest)) + plain}")
    say(f"measuring what the base makes of {plain} bytes; it may take {plan.seconds} s until all is done")
    rivals = classical_sizes(sample.held_out, plan.threads)
    before = stored_size(w, sample.held_out, rivals, plan.threads)
    say(f"held out: {plain} bytes, stored in {before} with the base")

    def expected(changes: Tensors) -> tuple[float, int, bytes]:
        """Return (bytes that all content would take, the model included; the same of what was held out; delta)."""
        data = delta.pack(w.fingerprint(), changes)
        after = stored_size(load_weights(delta.compose(base, data)), sample.held_out, rivals, plan.threads)
        say(f"held out: stored in {after} ({after / before - 1:+.1%}), delta of {len(data)} bytes")
        return after / plain * sample.all_bytes + COPIES * len(data), after, data

    changes = _dictionary(sample, plan.seed)
    own = Dictionary(dictionary_in(changes)) if changes else None
    best = expected(changes | _start(w, sample, own))
    rank = next((rank for least, rank in RANKS if best[1] / plain * sample.all_bytes >= least), 0)
    seconds = LEARN_SHARE * plan.seconds
    if rank and seconds >= LEARN_S:
        adapted = _adapted(w, sample, own, rank, seconds, plan.seed)
        if adapted:
            changed = load_weights(delta.compose(base, delta.pack(w.fingerprint(), adapted)))
            best = min(best, expected(changes | adapted | _start(changed, sample, own)))
    _, after, data = best
    Path(plan.out).write_bytes(data)
    return {
        "sample_bytes": sum(map(len, sample.learn + sample.rest)) + plain,
        "content_bytes": sample.all_bytes,
        "held_out_bytes": plain,
        "base_stored": before,
        "fitted_stored": after,
        "delta_bytes": len(data),
        "fingerprint": load_weights(delta.compose(base, data)).fingerprint().hex(),
        "base": w.fingerprint().hex(),
    }


def sampled(paths: Sequence[str], seed: int) -> Sample:
    """Return chunks drawn from the files. Raises `UsageError` where there are not two."""
    pieces, all_bytes = [], 0
    for name in sorted(name for path in paths for name in files(path)):
        try:
            size = os.path.getsize(name)
        except OSError:
            continue
        all_bytes += size
        pieces += [(name, at) for at in range(0, size, CHUNK) if size - at >= SMALLEST]
    random.Random(seed).shuffle(pieces)
    chunks, total = [], 0
    for name, at in pieces:
        chunk = _read(name, at)
        if len(chunk) >= SMALLEST:
            chunks.append(chunk)
            total += len(chunk)
        if total >= SAMPLE:
            break
    if len(chunks) < 2:
        raise UsageError("there is too little content to learn from: at least two chunks of 128 KiB, or two files")
    held_out = _taken(chunks, min(HELD_OUT, total // 4))
    learn = _taken(chunks, min(LEARN, total // 4)) if len(chunks) > 1 else chunks[:]
    return Sample(held_out, learn, chunks, all_bytes)


def _taken(chunks: list[bytes], size: int) -> list[bytes]:
    """Remove and return chunks of about `size` bytes from the end, at least one; leave at least one."""
    taken = [chunks.pop()]
    while len(chunks) > 1 and sum(map(len, taken)) + len(chunks[-1]) <= size:
        taken.append(chunks.pop())
    return taken


def files(path: str) -> list[str]:
    """Return the file, or the regular files below a folder."""
    if not os.path.isdir(path):
        return [path]
    found = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    return [name for name in found if os.path.isfile(name) and not os.path.islink(name)]


def _read(name: str, at: int) -> bytes:
    try:
        with open(name, "rb") as file:
            file.seek(at)
            return file.read(CHUNK)
    except OSError as error:
        say(f"passed over: {name}: {error.strerror or error}")
        return b""


def classical_sizes(chunks: Sequence[bytes], threads: int) -> list[int]:
    """Return the bytes that each chunk takes without a model: a mount keeps what is smaller."""
    with ThreadPoolExecutor(threads) as pool:
        payloads = pool.map(ContextMixing().encode, chunks)
        return [len(chunk if payload is None else payload) for chunk, payload in zip(chunks, payloads, strict=True)]


def stored_size(w: Weights, chunks: Sequence[bytes], rivals: Sequence[int], threads: int) -> int:
    """Return the bytes that chunks take with a model, or as `rivals` says, where that is less."""
    payloads = Neural(w, threads).encode_many(chunks)
    return sum(size if p is None else min(len(p), size) for p, size in zip(payloads, rivals, strict=True))


def dictionary_in(changes: Tensors) -> bytes:
    """Return the bytes of the dictionary among the changes."""
    stored = changes[DICTIONARY].tobytes()
    return ContextMixing().decode(stored[4:], int.from_bytes(stored[:4], "little"))


def _dictionary(sample: Sample, seed: int) -> Tensors:
    """Return the dictionary that saves most, empty if none saves: by the mixer alone, since the network is slow."""
    tried = sample.learn[:2]
    plain = sum(map(len, tried))
    best, chosen = float(_mixed(tried, None)) / plain * sample.all_bytes, Tensors()
    for size in SIZES:
        found = dictionary.choose(sample.rest, size, seed)
        if not found:
            break
        try:
            stored = stored_dictionary(found)
        except CodecError:
            continue
        cost = _mixed(tried, Dictionary(found)) / plain * sample.all_bytes + COPIES * stored.size
        say(f"dictionary of {len(found)} bytes, stored in {stored.size}: {cost / best - 1:+.1%} so far")
        if cost < best:
            best, chosen = cost, {DICTIONARY: stored}
        elif chosen:
            break
    return chosen


def _mixed(chunks: Sequence[bytes], own: Dictionary | None) -> int:
    state = MixState(1, CHUNK, dictionary=own)
    total = 0
    for chunk in chunks:
        state.start(0, chunk, lanes_for(len(chunk)))
        total += len(bitstream.encode(state, 0))
    return total


def _start(w: Weights, sample: Sample, own: Dictionary | None) -> Tensors:
    """Return the changes of the start values beside this network."""
    examples = list(mixing.beside(open_model(w), sample.learn, own)) * ROUNDS
    learnt = mixing.train(examples, len(examples), w.start, STEPS, own)
    found = {}
    for name in STORED:
        steps = delta.steps_between(name, getattr(w.start, name), getattr(learnt, name))
        found[f"start.{name}"] = delta.planes(steps)
    return found


def _adapted(w: Weights, sample: Sample, own: Dictionary | None, rank: int, seconds: float, seed: int) -> Tensors:
    """Return changes of the weights, none where torch is not installed or cannot compile."""
    try:
        from nnfs.train.adapt import adapt
    except ImportError as error:
        say(f"the weights stay: {error.name} is not installed")
        return {}
    say(f"learning changes of rank {rank} for {seconds:.0f} s")
    try:
        return adapt(w, sample.rest + sample.learn, own, rank, seconds, say, seed)
    except RuntimeError as error:
        say(f"the weights stay: {str(error).splitlines()[0]}")
        return {}
