# mypy: disable-error-code="no-untyped-call,attr-defined"
"""Training on one machine: single-threaded processes share the parameters, and each learns from rows of its own.

On a CPU two processes of one thread do twice the work of one process of two threads (tools/LOG.md): the tensors of a
batch fit the caches, and no thread waits for another inside an operator. Each step, every process adds the gradients of
its rows to its own buffers; then each updates the parameters that it owns with everyone's gradients. On CUDA one
process does it all.

Products learn by Muon (Jordan et al. 2024), everything else by AdamW. The rate warms up, stays, and falls to nothing
over the last `cooldown` of the run (warm-up, stable, decay: Hu et al. 2024), so a run can be prolonged from any
checkpoint taken before the fall.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F  # noqa: N812 (the customary name)
from safetensors.torch import load_file, save_file
from torch import Tensor

from nnfs.errors import UsageError
from nnfs.model.architecture import Architecture
from nnfs.train.corpus import Corpus
from nnfs.train.examples import PAD, PIECES, Rows, batches
from nnfs.train.network import Network

MUON_RATE, MUON_DECAY = 0.02, 0.02
RATES = {"inputs": 2e-3, "ngrams": 2e-3, "head": 2e-3, "biases": 5e-3, "distance": 5e-3}
# For the processes: large tensors from the heap, not fresh pages each time; nobody spins while another works.
QUIET = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 33),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_TOP_PAD_": str(1 << 29),
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a training run. `steps` may grow from one run to the next; the other fields identify the run."""

    corpus: str
    out: str
    steps: int  # optimizer steps in all
    cooldown: float = 0.25  # share of the steps over which the rate falls
    batch: int = 4  # rows of one forward pass
    passes: int = 2  # forward passes of each process per step
    time: int = 1024  # positions of a row
    processes: int = 2
    seed: int = 1
    rate: float = 1.0  # factor of all rates
    save_every: int = 400  # steps
    device: str = "cpu"


def rate_at(plan: Plan, step: int) -> float:
    """Return the factor of all learning rates at `step`."""
    fall = max(1, int(plan.steps * plan.cooldown))
    return plan.rate * min(1.0, (step + 1) / 100, max(plan.steps - step, 0) / fall)


def is_product(name: str) -> bool:
    """Return whether Muon learns the parameter."""
    return name.startswith("layers.") and name.endswith(".weight")


def owner_of(name: str, processes: int) -> int:
    """Return the rank of the process that updates a parameter: the n-gram tables are most of AdamW's work."""
    return processes - 1 if name.startswith("ngrams.") else 0


class Shared:
    """Parameters, gradients and optimizer states of a run: on a CPU in memory that all its processes see."""

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

    def save(self, path: Path, about: dict[str, str]) -> None:
        tensors = {f"p.{n}": p for n, p in self.parameters.items()}
        tensors |= {f"m.{n}": p for n, p in self.first.items()} | {f"v.{n}": p for n, p in self.second.items()}
        part = path.with_suffix(".part")
        save_file({n: t.clone() for n, t in tensors.items()}, part, about | {"step": str(int(self.step))})
        os.replace(part, path)

    def load(self, path: Path) -> None:
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            self.step.fill_(int(file.metadata()["step"]))
        for name, tensor in load_file(path).items():
            kind, name = name.split(".", 1)
            {"p": self.parameters, "m": self.first, "v": self.second}[kind][name].copy_(tensor)


class Optimizers:
    """Muon and AdamW over the parameters that one process owns."""

    def __init__(self, shared: Shared, network: Network, rank: int, processes: int) -> None:
        own = {n: p for n, p in network.named_parameters() if owner_of(n, processes) == rank}
        self.own, self.shared = own, shared
        self.optimizers: list[torch.optim.Optimizer] = []
        products = [p for n, p in own.items() if is_product(n)]
        if products:
            muon = torch.optim.Muon(products, lr=MUON_RATE, weight_decay=MUON_DECAY, momentum=0.95)
            for name, p in own.items():
                if is_product(name):
                    muon.state[p] = {"momentum_buffer": shared.first[name]}
            self.optimizers.append(muon)
        groups = [{"params": [p], "lr": RATES[_group(n)]} for n, p in own.items() if not is_product(n)]
        adam = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        for name, p in own.items():
            if not is_product(name):
                step = shared.step.to(torch.float32).clone()
                adam.state[p] = {"step": step, "exp_avg": shared.first[name], "exp_avg_sq": shared.second[name]}
        self.optimizers.append(adam)
        self.rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]

    def step(self, factor: float) -> None:
        for name, p in self.own.items():
            for other in self.shared.gradients:
                if p.grad is not None and other[name] is not p.grad:
                    p.grad.add_(other[name])
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()


def _group(name: str) -> str:
    return next(key for key in RATES if key in name)


def train(plan: Plan, architecture: Architecture) -> Path:
    """Run `plan`, resuming from its last checkpoint. Returns the checkpoint's path."""
    out = Path(plan.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    if plan.device != "cpu" and plan.processes != 1:
        raise UsageError("a GPU is trained on by one process: say --processes 1")
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    shared = Shared(Network(architecture).to(plan.device), plan.processes)
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        shared.load(checkpoint)
    barrier = mp.get_context("spawn").Barrier(plan.processes)
    arguments = (plan, architecture, shared, barrier, checkpoint)
    if plan.processes == 1:
        work(0, *arguments)
    else:
        mp.spawn(work, arguments, nprocs=plan.processes)
    return checkpoint


def work(rank: int, plan: Plan, architecture: Architecture, shared: Shared, barrier: Any, checkpoint: Path) -> None:
    """Train as process `rank` of the run, until its end."""
    if plan.device == "cpu":
        torch.set_num_threads(1)
    network = Network(architecture).to(plan.device)
    for name, p in network.named_parameters():
        p.data, p.grad = shared.parameters[name], shared.gradients[rank][name]
    optimizers = Optimizers(shared, network, rank, plan.processes)
    loss_of = torch.compile(lambda *b: loss(network, *b), dynamic=False)
    start = int(shared.step)
    feed = Feeder(plan, architecture, f"{plan.seed} {rank} {start}")
    log = Log(checkpoint.parent / f"log-{rank}.jsonl")
    for step in range(start, plan.steps):
        total = torch.zeros(())
        seen: dict[str, int] = {}
        for _ in range(plan.passes):
            batch, kinds = feed.get()
            for kind, count in kinds.items():
                seen[kind] = seen.get(kind, 0) + count
            value = loss_of(*batch) / (plan.passes * plan.processes)
            value.backward()
            total += value.detach().cpu() * plan.processes
        log.add(step, float(total) / np.log(2), seen)
        barrier.wait()
        optimizers.step(rate_at(plan, step))
        with torch.no_grad():
            network.keep_in_range()
        barrier.wait()
        for p in network.parameters():
            if p.grad is not None:
                p.grad.zero_()
        if rank == 0:
            shared.step.fill_(step + 1)
            if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
                about = {"architecture": architecture.to_json(), "plan": json.dumps(dataclasses.asdict(plan))}
                shared.save(checkpoint, about)
                if (step + 1) % (plan.save_every * 5) == 0:
                    with contextlib.suppress(FileExistsError):
                        os.link(checkpoint, checkpoint.with_name(f"checkpoint-{step + 1}.safetensors"))
        barrier.wait()
    feed.close()


def loss(
    network: Network, rows: Tensor, ngrams: Tensor, candidates: Tensor, buckets: Tensor, start: Tensor, target: Tensor
) -> Tensor:
    """Return the mean cross-entropy in nats over the positions that count."""
    logits = network(rows, ngrams, candidates, buckets, start)
    return F.cross_entropy(logits.view(-1, 256), target.view(-1), ignore_index=PAD)


class Feeder:
    """A thread that prepares batches in advance."""

    def __init__(self, plan: Plan, architecture: Architecture, seed: str) -> None:
        corpus = Corpus(plan.corpus, take=PIECES * plan.time)
        self._source = batches(corpus, plan.batch, plan.time, architecture.ngram_bits, seed)
        self._queue: queue.Queue[tuple[list[Tensor], dict[str, int]]] = queue.Queue(4)
        self._device = plan.device
        self._closed = False
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        for rows, seen in self._source:
            if self._closed:
                return
            self._queue.put((tensors(rows, self._device), seen))

    def get(self) -> tuple[list[Tensor], dict[str, int]]:
        return self._queue.get()

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()


def tensors(rows: Rows, device: str = "cpu") -> list[Tensor]:
    """Return the fields of a batch as tensors."""
    return [torch.from_numpy(field).to(device) for field in rows]


class Log:
    """The log of a run: a JSON line every 25 steps with step, time, bits per byte, bytes of each kind."""

    def __init__(self, path: Path) -> None:
        self.path, self.bits, self.seen = path, [0.0][:0], {"": 0}
        self.seen.clear()

    def add(self, step: int, bits: float, seen: dict[str, int]) -> None:
        self.bits.append(bits)
        for kind, count in seen.items():
            self.seen[kind] = self.seen.get(kind, 0) + count
        if (step + 1) % 25 == 0:
            bits = round(float(np.mean(self.bits)), 4)
            line = {"step": step + 1, "time": round(time.time()), "bits": bits, "bytes": self.seen}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self.bits, self.seen = [], {}
