# mypy: disable-error-code="no-untyped-call,no-any-return,attr-defined"
"""Further training of a model on a sample, by changes of low rank (LoRA, Hu et al. 2021), which a delta can hold.

The base's integers stay; each product learns two narrow factors, and the sum is rounded on the way as
`nnfs.model.delta` will round it. One thread: the other processors belong to those who use the machine.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the customary name)
from numpy.typing import NDArray
from torch import Tensor, nn

from nnfs.model import weights as stored
from nnfs.model.delta import UNIT, Tensors, dither
from nnfs.model.dictionary import Dictionary
from nnfs.model.fixedpoint import (
    ACT_UNIT,
    HIDDEN_UNIT,
    LOGIT_UNIT,
    RESIDUAL_UNIT,
    SQUARE_UNIT,
)
from nnfs.train.examples import Packer, Rows, stacked
from nnfs.train.passes import loss, tensors
from nnfs.train.quantise import restored

TIME = 1024  # positions of a row
BATCH = 2  # rows of one step: as many bytes in steps of half the size learn more
LARGEST = 127 // UNIT  # of the whole numbers that factors are: their fractions would cost more than they save
ROWS = 2048  # at most: 2 MB of content
RATE, BIAS_RATE = 0.1, 2e-3
WARM_UP = 20  # steps


class Adapted(nn.Module):
    """A product of the base with a change of low rank."""

    def __init__(self, product: stored.Product, begin: int, end: int, right: nn.Parameter, units: tuple[float, float]):
        """Take the outputs from `begin` to `end`; `units`: the integers that stand for 1.0 of inputs and outputs."""
        super().__init__()
        weight = product.weight[begin:end].astype(np.float32)
        pattern = dither(*product.weight.shape)[begin:end].astype(np.float32) / 256
        scale = product.multiplier[begin:end] / 2.0 ** (product.shift + product.pre) / units[1]
        self.weight: Tensor
        self.scale: Tensor
        self.register_buffer("weight", torch.from_numpy(weight + pattern))
        self.register_buffer("scale", torch.from_numpy(scale.astype(np.float32)))
        self.left = nn.Parameter(torch.zeros(end - begin, right.shape[0]))
        self.right = right

    def forward(self, x: Tensor) -> Tensor:
        left, right = whole(self.left), whole(self.right)
        integers = (self.weight + left @ right).floor().clamp(-127, 127)
        return _Linear.apply(x, left.to(x.dtype), right.to(x.dtype), integers.to(x.dtype)) * self.scale.to(x.dtype)


class _Linear(torch.autograd.Function):
    """`x W^T`, where W is a fixed matrix and `left @ right`, rounded: gradients pass the rounding.

    Autograd would make the gradient of all of W to get those of the factors: a third of the work of a step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, left: Tensor, right: Tensor, integers: Tensor) -> Tensor:
        ctx.save_for_backward(x, left, right, integers)
        return F.linear(x, integers)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, left, right, integers = ctx.saved_tensors
        g, u = gradient.flatten(0, -2), x.flatten(0, -2)
        return gradient @ integers, g.T @ (u @ right.T), (g @ left).T @ u, None


def whole(factor: Tensor) -> Tensor:
    """Return a factor rounded as a delta stores it; the gradient passes."""
    return factor + (factor.round().clamp(-LARGEST, LARGEST) - factor).detach()


def network_of(w: stored.Weights, rank: int, seed: int) -> Any:
    """Return the network of a model: its integers fixed, changes of low rank to be learnt."""
    torch.manual_seed(seed)
    a = w.architecture
    network: Any = restored(w)
    network.requires_grad_(False)
    queries = a.heads * a.head

    def adapted(product: stored.Product, *cuts: int, units: tuple[float, float]) -> list[Adapted]:
        right = nn.Parameter(torch.randn(rank, product.weight.shape[1]))
        edges = (0, *cuts, len(product.weight))
        return [Adapted(product, begin, end, right, units) for begin, end in itertools.pairwise(edges)]

    for layer, of_layer in zip(network.layers, w.layers, strict=True):
        layer.query, layer.key_value = adapted(of_layer.qkv, queries, units=(ACT_UNIT, ACT_UNIT))
        (layer.out,) = adapted(of_layer.out, units=(ACT_UNIT, RESIDUAL_UNIT))
        (layer.up,) = adapted(of_layer.up, units=(ACT_UNIT, HIDDEN_UNIT))
        (layer.down,) = adapted(of_layer.down, units=(SQUARE_UNIT, RESIDUAL_UNIT))
    (network.head,) = adapted(w.head, units=(ACT_UNIT, LOGIT_UNIT))
    network.biases.requires_grad_(True)
    return network


def changes_of(network: Any) -> Tensors:
    """Return the learnt changes as a delta holds them."""
    found: Tensors = {"biases": _integers(network.biases * LOGIT_UNIT, 1 << 24).astype(np.int32)}

    def add(name: str, *parts: Adapted) -> None:
        for side, factor in (("left", torch.cat([part.left for part in parts])), ("right", parts[0].right)):
            found[f"{side}.{name}"] = (_integers(factor, LARGEST) * UNIT).astype(np.int8)

    for k, layer in enumerate(network.layers):
        add(f"layers.{k}.qkv", layer.query, layer.key_value)
        for part in ("out", "up", "down"):
            add(f"layers.{k}.{part}", getattr(layer, part))
    add("head", network.head)
    return found


def _integers(x: Tensor, limit: int) -> NDArray[np.float64]:
    return x.detach().double().round().clamp(-limit, limit).numpy()


def rows_of(chunks: Sequence[bytes], dictionary: Dictionary | None, ngram_bits: int, seed: int) -> list[Rows]:
    """Return rows to learn from, of all chunks."""
    packer = Packer(TIME, ngram_bits, dictionary)
    found: list[Rows] = []
    for chunk in random.Random(seed).sample(chunks, len(chunks)):
        found += packer.add(chunk, None)
        if len(found) >= ROWS:
            return found
    return found + list(packer.rest())


def adapt(
    w: stored.Weights,
    chunks: Sequence[bytes],
    dictionary: Dictionary | None,
    rank: int,
    seconds: float,
    say: Callable[[str], object],
    seed: int = 1,
) -> Tensors:
    """Learn for about `seconds`, the compiler's time included, and return the changes.

    Raises `RuntimeError` where torch cannot compile.
    """
    end = time.monotonic() + seconds
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        network = network_of(w, rank, seed)
        rows = rows_of(chunks, dictionary, w.architecture.ngram_bits, seed)
        _learn(network, rows, end, say, random.Random(seed))
    finally:
        torch.set_num_threads(threads)
    return changes_of(network)


def _learn(network: Any, rows: list[Rows], end: float, say: Callable[[str], object], chance: random.Random) -> None:
    """Take steps until `end`; the rate falls over the second half of the time that remains after the first step."""
    factors = {p for name, p in network.named_parameters() if name.endswith((".left", ".right"))}
    groups: list[dict[str, Any]] = [
        {"params": list(factors), "lr": RATE},
        {"params": [network.biases], "lr": BIAS_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0)
    loss_of = torch.compile(lambda *batch: loss(network, *batch), dynamic=False)
    start, step, bits = 0.0, 0, []
    while True:
        batch = stacked(chance.choices(rows, k=BATCH))
        value = loss_of(*tensors(batch))
        value.backward()
        bits.append(float(value.detach()) / math.log(2))
        now = time.monotonic()
        start = start or now
        done = (now - start) / max(end - start, 1e-3)
        factor = min(1.0, (step + 1) / WARM_UP) * max(0.01, min(1.0, 2 * (1 - done)))
        for group, rate in zip(optimizer.param_groups, (RATE, BIAS_RATE), strict=True):
            group["lr"] = rate * factor
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 25 == 0:
            left = max(0.0, end - now)  # of learning: what comes of it is measured then
            mean = np.mean(bits[-25:])
            say(f"learning, step {step}: {mean:.4f} bits per byte, {min(done, 1):.0%}, {left:.0f} s left")
        if done >= 1:
            return
