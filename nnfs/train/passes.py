# mypy: disable-error-code="no-untyped-call"
"""The forward and backward pass over a batch: by autograd here, or by native code (`nnfs.train.fused`)."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (the customary name)
from torch import Tensor

from nnfs.train.examples import PAD, Rows
from nnfs.train.network import Network

ENGINES = ("fused", "torch")


class Passes(Protocol):
    """Forward and backward passes of a network."""

    def round(self) -> None:
        """Take notice of changed parameters."""

    def learn(self, batch: list[Tensor], share: float) -> float:
        """Add `share` times the gradients of the batch's mean loss; return that loss in nats per position.

        batch: the fields of `nnfs.train.examples.Rows`. Gradients are complete after `take`.
        """

    def take(self) -> None:
        """Complete the gradients of all parameters."""


class Compiled:
    """The passes that torch derives from `nnfs.train.network`, on a CPU or a GPU."""

    def __init__(self, network: Network) -> None:
        self._loss = torch.compile(lambda *batch: loss(network, *batch), dynamic=False)

    def round(self) -> None:
        pass

    def learn(self, batch: list[Tensor], share: float) -> float:
        value: Tensor = self._loss(*batch)
        (value * share).backward()
        return float(value.detach())

    def take(self) -> None:
        pass


def best_engine(network: Network, device: str) -> str:
    """Return the quickest of `ENGINES` that this machine has."""
    from nnfs.train import fused

    return "fused" if device == "cpu" and fused.is_available(network.a) else "torch"


def passes_of(engine: str, network: Network, time: int) -> Passes:
    """Return the passes of an engine of `ENGINES` over rows of `time` positions. Raises `BuildFailed`."""
    if engine == "torch":
        return Compiled(network)
    from nnfs.train.fused import Fused

    return Fused(network, time)


def loss(
    network: Network, rows: Tensor, ngrams: Tensor, candidates: Tensor, buckets: Tensor, start: Tensor, target: Tensor
) -> Tensor:
    """Return the mean cross-entropy in nats over the positions that count."""
    logits = network(rows, ngrams, candidates, buckets, start)
    return F.cross_entropy(logits.view(-1, 256), target.view(-1), ignore_index=PAD)


def tensors(rows: Rows, device: str = "cpu") -> list[Tensor]:
    """Return the fields of a batch as tensors."""
    return [torch.from_numpy(field).to(device) for field in rows]
