# mypy: disable-error-code="no-untyped-call"
"""The optimizers of a run: Muon (Jordan et al. 2024) for products, AdamW (Loshchilov & Hutter 2019) for the rest.

Each process of a run updates a part of the parameters, with the gradients of all. Native code reads and writes each
value of AdamW once a step; elsewhere it is torch's.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from nnfs.model.fixedpoint import EMBEDDING_LIMIT
from nnfs.train import fused
from nnfs.train.network import Network

MUON_RATE, MUON_DECAY, MUON_MOMENTUM = 0.02, 0.02, 0.95
RATES = {"inputs": 2e-3, "ngrams": 2e-3, "head": 2e-3, "biases": 5e-3, "distance": 5e-3}
BETAS, EPSILON = (0.9, 0.99), 1e-8


def is_product(name: str) -> bool:
    """Return whether Muon learns the parameter."""
    return name.startswith("layers.") and name.endswith(".weight")


def rate_of(name: str) -> float:
    """Return AdamW's rate for a parameter."""
    return next(rate for key, rate in RATES.items() if key in name)


class Shared:
    """Parameters, gradients and optimizer states of a run: on a CPU in memory that all its processes see.

    gradients: a dictionary for each process.
    """

    def __init__(self, network: Network, processes: int) -> None:
        def shared(tensor: Tensor) -> Tensor:
            return tensor.share_memory_() if processes > 1 else tensor

        def zeros(tensor: Tensor) -> Tensor:
            return shared(torch.zeros_like(tensor))

        self.parameters = {name: shared(p.detach()) for name, p in network.named_parameters()}
        self.gradients = [{n: zeros(p) for n, p in self.parameters.items()} for _ in range(processes)]
        self.first = {n: zeros(p) for n, p in self.parameters.items()}
        self.second = {n: zeros(p) for n, p in self.parameters.items() if not is_product(n)}
        self.step = shared(torch.zeros((), dtype=torch.int64))


class Optimizers:
    """The updates of the parameters that one process of a run owns."""

    def __init__(self, shared: Shared, network: Network, rank: int, native: bool) -> None:
        processes = len(shared.gradients)
        named = dict(network.named_parameters())
        products = [name for name in named if is_product(name)]
        others = [name for name in named if not is_product(name)]
        self.shared, self.network = shared, network
        self.muon = _muon(shared, {name: named[name] for name in products[rank::processes]})
        # The tables are most of AdamW's work, so torch's is one process's: the last one has fewer products.
        own = others if native or rank == processes - 1 else []
        slices = (rank, processes) if native else (0, 1)
        self.adam: _Adam | _NativeAdam = (_NativeAdam if native else _Adam)(shared, {n: named[n] for n in own}, *slices)

    def step(self, factor: float) -> None:
        """Update with the gradients of all processes, which become 0, at `factor` times the rates."""
        for name, p in self.muon.own.items():
            _collect(self.shared, name, p)
        self.muon.step(factor)
        self.adam.step(factor)
        for name in self.muon.own:
            _clear(self.shared, name)


def _collect(shared: Shared, name: str, p: Tensor) -> None:
    assert p.grad is not None
    for other in shared.gradients:
        if other[name].data_ptr() != p.grad.data_ptr():
            p.grad.add_(other[name])


def _clear(shared: Shared, name: str) -> None:
    for other in shared.gradients:
        other[name].zero_()


class _Torch:
    """One of torch's optimizers, with rates that follow a factor."""

    def __init__(self, own: dict[str, Any], optimizer: torch.optim.Optimizer | None) -> None:
        self.own, self.optimizer = own, optimizer
        self.rates = [group["lr"] for group in optimizer.param_groups] if optimizer else []

    def step(self, factor: float) -> None:
        if self.optimizer:
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            self.optimizer.step()


def _muon(shared: Shared, own: dict[str, Any]) -> _Torch:
    if not own:
        return _Torch(own, None)
    muon = torch.optim.Muon(list(own.values()), lr=MUON_RATE, weight_decay=MUON_DECAY, momentum=MUON_MOMENTUM)
    for name, p in own.items():
        muon.state[p] = {"momentum_buffer": shared.first[name]}
    return _Torch(own, muon)


class _Adam:
    """torch's AdamW, for whole parameters."""

    def __init__(self, shared: Shared, own: dict[str, Any], _rank: int, _processes: int) -> None:
        self.shared = shared
        groups = [{"params": [p], "lr": rate_of(name)} for name, p in own.items()]
        adam = torch.optim.AdamW(groups, betas=BETAS, eps=EPSILON, weight_decay=0.0, fused=True) if own else None
        for name, p in own.items():
            step = shared.step.to(torch.float32).clone()
            assert adam is not None
            adam.state[p] = {"step": step, "exp_avg": shared.first[name], "exp_avg_sq": shared.second[name]}
        self.torch = _Torch(own, adam)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        for name, p in self.torch.own.items():
            _collect(self.shared, name, p)
        self.torch.step(factor)
        for name, p in self.torch.own.items():
            _clear(self.shared, name)
            if is_embedding(name):
                p.clamp_(-EMBEDDING_LIMIT, EMBEDDING_LIMIT)


def is_embedding(name: str) -> bool:
    """Return whether the parameter is stored with a fixed unit, and so has a limit."""
    return name.startswith(("inputs", "ngrams"))


class _NativeAdam:
    """AdamW by native code, for a share of each parameter's values."""

    def __init__(self, shared: Shared, own: dict[str, Any], rank: int, processes: int) -> None:
        self.shared, self.own, self.rank, self.processes = shared, own, rank, processes
        self.steps = int(shared.step)

    def step(self, factor: float) -> None:
        self.steps += 1
        fixes = 1 / (1 - BETAS[0] ** self.steps), (1 / (1 - BETAS[1] ** self.steps)) ** 0.5
        for name, p in self.own.items():
            begin, end = (p.numel() * (self.rank + k) // self.processes for k in (0, 1))
            gradients = [fused.at(g[name]) + 4 * begin for g in self.shared.gradients]
            fused.library().adam(
                *(fused.at(t) + 4 * begin for t in (p, self.shared.first[name], self.shared.second[name])),
                (ctypes.c_void_p * len(gradients))(*gradients), len(gradients), end - begin, rate_of(name) * factor,
                *BETAS, *fixes, EPSILON, EMBEDDING_LIMIT if is_embedding(name) else 0.0,
            )  # fmt: skip
