"""From a checkpoint to a model file: quantised weights, start values of the mixing stage beside them, provenance."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file

from nnfs.mixer import startvalues
from nnfs.mixer.startvalues import StartValues
from nnfs.model.architecture import Architecture
from nnfs.model.engines import open_model
from nnfs.model.weights import Weights, save_weights
from nnfs.train import mixing
from nnfs.train.corpus import Corpus
from nnfs.train.network import Network
from nnfs.train.quantise import quantised

PARAMETER = "p."  # what the names of parameters begin with in a checkpoint


def network_of(checkpoint: str) -> tuple[Network, dict[str, str]]:
    """Return the network of a checkpoint, and the checkpoint's record of its run."""
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
    examples = mixing.beside(open_model(weights), mixing.pieces(corpus, count))
    return mixing.train(examples, count, startvalues.untrained(True))


def provenance(checkpoint: str, corpus: str, about: dict[str, str]) -> dict[str, object]:
    """Return the provenance of a network: the plan, the bytes seen of every kind, the corpus's sources."""
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
