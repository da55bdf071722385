"""From a checkpoint to a model file: quantised weights, start values of the mixing stage beside them, the provenance."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.torch import load_file

from nnfs.codec.neural import network_paths, prepared
from nnfs.model import start
from nnfs.model.architecture import Architecture
from nnfs.model.engines import open_model
from nnfs.model.lanes import lanes_for
from nnfs.model.start import StartValues
from nnfs.model.weights import Weights, save_weights
from nnfs.train import mixing
from nnfs.train.corpus import Corpus
from nnfs.train.network import Network
from nnfs.train.quantise import quantised

PARAMETER = "p."  # what the names of parameters begin with in a checkpoint


def network_of(checkpoint: str) -> tuple[Network, dict[str, str]]:
    """Return the network of a checkpoint and what the checkpoint tells of itself."""
    with safe_open(checkpoint, "pt") as file:
        about: dict[str, str] = file.metadata()
    network = Network(Architecture.from_json(about["architecture"]))
    tensors = load_file(checkpoint)
    network.load_state_dict({n[len(PARAMETER) :]: t for n, t in tensors.items() if n.startswith(PARAMETER)})
    return network, about


def export(checkpoint: str, corpus: str, out: str, examples: int = 400) -> bytes:
    """Write the model file and return its fingerprint. The start values are learnt from `examples` chunks."""
    network, about = network_of(checkpoint)
    weights = quantised(network)
    weights = dataclasses.replace(weights, start=start_values(weights, Corpus(corpus), examples))
    save_weights(weights, out, {"provenance": json.dumps(provenance(checkpoint, corpus, about))})
    return weights.fingerprint()


def start_values(weights: Weights, corpus: Corpus, count: int) -> StartValues:
    """Return start values of the mixing stage beside this network."""
    chance = random.Random(1)
    return mixing.train(_examples(weights, corpus, count, chance), count, start.untrained(True), network=True)


def _examples(weights: Weights, corpus: Corpus, count: int, chance: random.Random) -> Iterator[mixing.Example]:
    """Yield pieces of all sizes, each with the network's probabilities along its bytes."""
    model = open_model(weights)
    for _ in range(count):
        plain = prepared(corpus.sample(chance)[0])[0][: chance.choice(mixing.SIZES)]
        if plain:
            lanes = lanes_for(len(plain))
            paths, past = network_paths(model, [plain], [lanes])
            yield mixing.Example(plain, lanes, np.ascontiguousarray(paths[: int(past.lengths[0])]))


def provenance(checkpoint: str, corpus: str, about: dict[str, str]) -> dict[str, object]:
    """Return what the network was trained on and how: the plan, the bytes seen of every kind, the corpus's sources."""
    seen: dict[str, int] = {}
    bits: list[float] = []
    for log in sorted(Path(checkpoint).parent.glob("log-*.jsonl")):
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            if entry["step"] <= int(about["step"]):
                bits.append(entry["bits"])
                for kind, count in entry["bytes"].items():
                    seen[kind] = seen.get(kind, 0) + count
    with open(corpus + ".json", encoding="utf-8") as file:
        made = json.load(file)
    return {
        "plan": json.loads(about["plan"]) | {"corpus": Path(corpus).name, "out": None},
        "steps": int(about["step"]),
        "bytes_seen": seen,
        "bits_per_byte_at_the_end": round(sum(bits[-8:]) / max(1, len(bits[-8:])), 4),
        "sources": made["sources"],
        "licences": made["licences"],
    }
