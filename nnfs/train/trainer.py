# mypy: disable-error-code="no-untyped-call,attr-defined"
"""Training on one machine: single-threaded processes share the parameters, and each learns from rows of its own.

On a CPU two processes of one thread do twice the work of one process of two threads (tools/LOG.md): the tensors of a
batch fit the caches, and no thread waits for another inside an operator. Each step, every process adds the gradients of
its rows to its own buffers; then each updates the parameters that it owns with everyone's gradients. On CUDA one
process does it all.

The rate warms up, stays, and falls to nothing over the last `cooldown` of the run (warm-up, stable, decay: Hu et al.
2024), so a run can be prolonged from any checkpoint taken before the fall. A run that starts from a model file has its
weights as floats again, and optimizers that know nothing yet: they warm up with the rate.

While the file `pause` exists in a run's folder, it waits, at the latest after one forward and backward pass.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import queue
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from nnfs.errors import UsageError
from nnfs.model.architecture import Architecture
from nnfs.model.weights import load_weights
from nnfs.train import fused
from nnfs.train.corpus import Corpus
from nnfs.train.examples import PIECES, batches
from nnfs.train.network import Network
from nnfs.train.optimizers import Optimizers, Shared
from nnfs.train.passes import Passes, best_engine, passes_of, tensors
from nnfs.train.quantise import restored

PAUSE = "pause"  # the file in a run's folder that makes it wait
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
    start: str = ""  # the model file that a new run goes on from; none: random weights
    engine: str = ""  # of `passes.ENGINES`; none: the best that there is


def rate_at(plan: Plan, step: int) -> float:
    """Return the factor of all learning rates at `step`."""
    fall = max(1, int(plan.steps * plan.cooldown))
    return plan.rate * min(1.0, (step + 1) / 100, max(plan.steps - step, 0) / fall)


def save(shared: Shared, path: Path, about: dict[str, str]) -> None:
    """Write a checkpoint, in one piece or not at all."""
    tensors = {f"p.{n}": p for n, p in shared.parameters.items()}
    tensors |= {f"m.{n}": p for n, p in shared.first.items()} | {f"v.{n}": p for n, p in shared.second.items()}
    part = path.with_suffix(".part")
    save_file({n: t.clone() for n, t in tensors.items()}, part, about | {"step": str(int(shared.step))})
    os.replace(part, path)


def load(shared: Shared, path: Path) -> None:
    """Take a checkpoint's values."""
    with safe_open(path, "pt") as file:
        shared.step.fill_(int(file.metadata()["step"]))
    for name, tensor in load_file(path).items():
        kind, name = name.split(".", 1)
        {"p": shared.parameters, "m": shared.first, "v": shared.second}[kind][name].copy_(tensor)


def train(plan: Plan, architecture: Architecture) -> Path:
    """Run `plan`, resuming from its last checkpoint. Returns the checkpoint's path.

    Raises `UsageError` for a plan that cannot be run, `ModelMissing` for a model to start from that is none.
    """
    out = Path(plan.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    if plan.device != "cpu" and plan.processes != 1:
        raise UsageError("a GPU is trained on by one process: say --processes 1")
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    network = begin(plan, architecture).to(plan.device)
    engine = plan.engine or best_engine(network, plan.device)
    if engine == "fused":
        fused.library()  # compiled once, before the processes start
    shared = Shared(network, plan.processes)
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        load(shared, checkpoint)
    barrier = mp.get_context("spawn").Barrier(plan.processes)
    arguments = (dataclasses.replace(plan, engine=engine), network.a, shared, barrier, checkpoint)
    if plan.processes == 1:
        work(0, *arguments)
    else:
        mp.spawn(work, arguments, nprocs=plan.processes)
    return checkpoint


def begin(plan: Plan, architecture: Architecture) -> Network:
    """Return the network that a new run starts with: a random one, or that of a model file."""
    if not plan.start:
        return Network(architecture)
    try:
        return restored(load_weights(Path(plan.start).read_bytes()))
    except OSError as error:
        raise UsageError(f"{plan.start}: {error.strerror}") from error


def work(rank: int, plan: Plan, architecture: Architecture, shared: Shared, barrier: Any, checkpoint: Path) -> None:
    """Train as process `rank` of the run, until its end."""
    if plan.device == "cpu":
        torch.set_num_threads(1)
    network = Network(architecture).to(plan.device)
    for name, p in network.named_parameters():
        p.data, p.grad = shared.parameters[name], shared.gradients[rank][name]
    optimizers = Optimizers(shared, network, rank, native=plan.engine == "fused")
    passes = passes_of(plan.engine, network, plan.time)
    start = int(shared.step)
    feed = Feeder(plan, architecture, f"{plan.seed} {rank} {start}")
    log = Log(checkpoint.parent / f"log-{rank}.jsonl")
    about = {"architecture": architecture.to_json(), "plan": json.dumps(dataclasses.asdict(plan))}
    for step in range(start, plan.steps):
        bits, seen = _learn(plan, passes, feed)
        log.add(step, bits, seen)
        barrier.wait()
        optimizers.step(rate_at(plan, step))
        barrier.wait()
        if rank == 0:
            shared.step.fill_(step + 1)
            if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
                save(shared, checkpoint, about)
                if (step + 1) % (plan.save_every * 5) == 0:
                    with contextlib.suppress(FileExistsError):
                        os.link(checkpoint, checkpoint.with_name(f"checkpoint-{step + 1}.safetensors"))
    feed.close()


def _learn(plan: Plan, passes: Passes, feed: Feeder) -> tuple[float, dict[str, int]]:
    """Add the gradients of one process's share of a step. Returns bits per byte, and the bytes seen of every kind."""
    total, seen = 0.0, dict[str, int]()
    pause = Path(plan.out) / PAUSE
    passes.round()
    for _ in range(plan.passes):
        while pause.exists():
            time.sleep(0.2)
        batch, kinds = feed.get()
        for kind, count in kinds.items():
            seen[kind] = seen.get(kind, 0) + count
        total += passes.learn(batch, 1 / (plan.passes * plan.processes)) / plan.passes
    passes.take()
    return total / math.log(2), seen


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
