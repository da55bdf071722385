"""Training of the values that the mixer starts from (`nnfs.mixer.startvalues`), by running it over many chunks.

Weights are averaged as Reptile does (Nichol 2018): each chunk starts from the average so far, and the average moves a
little towards where the chunk ended. Maps are carried from chunk to chunk, so that they end as averages over the last
thousand uses of each entry. Steps get smaller; everything that is stored is an integer."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nnfs.codec.neural import network_paths, prepared
from nnfs.mixer import startvalues
from nnfs.mixer.architecture import P_MAP_LIMIT, P_REFINE_LIMIT
from nnfs.mixer.mixing import encode_path
from nnfs.mixer.startvalues import StartValues
from nnfs.mixer.state import MixState
from nnfs.model.dictionary import Dictionary
from nnfs.model.engines import Model
from nnfs.model.lanes import lanes_for
from nnfs.train.examples import Source

NO_NETWORK = np.zeros((0, 0, 0), np.uint16)
SIZES = (1500, 4000, 12000, 32768, 131072)  # bytes: small files matter as much as whole chunks
STEP, LAST_STEP = 0.1, 0.005
TRUST = 40  # uses that a trained map entry counts for, at the most
LONG = 1023


@dataclass(frozen=True)
class Example:
    """A chunk to learn from; `network` is its `net_path` (columns, lanes, 8), None without a network."""

    plain: bytes
    lanes: int = 1
    network: npt.NDArray[np.uint16] | None = None


def pieces(corpus: Source, count: int, seed: int = 1) -> Iterator[bytes]:
    """Yield pieces of all sizes; every second one is the beginning of a file, or of its part in the corpus."""
    chance = random.Random(seed)
    for i in range(count):
        plain, _ = corpus.sample(chance)
        size = chance.choice(SIZES)
        begin = chance.randrange(max(1, len(plain) - size)) if i % 2 else 0
        if plain:
            yield plain[begin : begin + size]


def alone(plains: Iterable[bytes]) -> Iterator[Example]:
    """Yield examples without a network, as the codec `cm` codes them."""
    for plain in plains:
        yield Example(prepared(plain)[0])


def beside(model: Model, plains: Iterable[bytes], dictionary: Dictionary | None = None) -> Iterator[Example]:
    """Yield examples with a network's probabilities, as the neural codec computes them."""
    for plain in plains:
        plain, _ = prepared(plain)
        lanes = lanes_for(len(plain))
        yield Example(plain, lanes, network_paths(model, [plain], [lanes], dictionary=dictionary)[0])


def train(
    examples: Iterable[Example],
    total: int,
    first: StartValues,
    steps: tuple[float, float] = (STEP, LAST_STEP),
    dictionary: Dictionary | None = None,
) -> StartValues:
    """Return start values learnt from `total` examples, starting from `first`; `steps`: first and last step size."""
    state = MixState(1, dictionary=dictionary)
    now = first
    weights, last = now.weights.astype(np.float64), now.weights_last.astype(np.float64)
    for i, example in enumerate(examples):
        state.start(0, example.plain, example.lanes, values=now)
        stack = state.stack
        stack.parameters[0, [P_MAP_LIMIT, P_REFINE_LIMIT]] = LONG
        columns = -(-len(example.plain) // example.lanes)
        given = NO_NETWORK if example.network is None else example.network
        encode_path(stack, 0, given, np.empty((columns, example.lanes, 8), np.uint16))
        step = steps[0] + (steps[1] - steps[0]) * i / total
        weights += step * (stack.weights[0] - weights)
        last += step * (stack.weights_last[0] - last)
        now = replace(
            now,
            maps=stack.maps[0].copy(),
            match_maps=stack.match_maps[0].copy(),
            weights=np.rint(weights).astype(np.int32),
            weights_last=np.rint(last).astype(np.int32),
        )
    return replace(now, maps=trusted(now.maps), match_maps=trusted(now.match_maps))


def trusted(entries: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Return map entries that can still learn."""
    kept: npt.NDArray[np.uint32] = ((entries >> 10 << 10) | np.minimum(entries & 1023, TRUST)).astype(np.uint32)
    return kept


def save(values: StartValues, path: str) -> None:
    """Write the start values of a mixer without a network, as `nnfs.mixer.startvalues` reads them."""
    with open(path, "wb") as file:
        np.savez_compressed(file, **{field: getattr(values, field) for field in startvalues.STORED})
