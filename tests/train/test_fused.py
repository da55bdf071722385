"""The native passes and optimizer of the trainer compute what torch computes."""

from __future__ import annotations

import random
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from nnfs.model.architecture import Architecture  # noqa: E402
from nnfs.train import fused  # noqa: E402
from nnfs.train.examples import Packer, stacked  # noqa: E402
from nnfs.train.network import Network  # noqa: E402
from nnfs.train.optimizers import Optimizers, Shared  # noqa: E402
from nnfs.train.passes import loss, tensors  # noqa: E402

SIZES = (
    Architecture(layers=2, heads=4, kv_heads=1, hidden=96, width=96, ngram_bits=8, ngram_widths=(32, 16, 16, 16, 16)),
    Architecture(layers=1, heads=8, kv_heads=2, hidden=64, width=128, ngram_bits=9, ngram_widths=(32, 32, 32, 16, 16)),
)
needs_amx = pytest.mark.skipif(not fused.is_available(SIZES[0]), reason="this processor has no AMX for bf16")
WORDS = ("one", "two", "three", "and", "a", "\n", "0x17", "äöü", "return")


def network_of(architecture: Architecture) -> Any:
    torch.manual_seed(5)
    network: Any = Network(architecture)
    with torch.no_grad():
        for layer in network.layers:
            layer.distance.normal_(0, 0.5)
        network.biases.normal_(0, 0.5)
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    return network


def batch_of(architecture: Architecture, time: int, rows: int, lanes: int) -> Any:
    chance = random.Random(lanes)
    text = " ".join(chance.choices(WORDS, k=4000)).encode()
    packer = Packer(time, architecture.ngram_bits)
    found = list(packer.add(text[: time * rows], None, lanes)) + list(packer.rest())
    return tensors(stacked(found[:rows]))


@needs_amx
@pytest.mark.parametrize("architecture", SIZES)
@pytest.mark.parametrize(("time", "lanes"), [(64, 1), (256, 5), (1024, 11), (192, 3)])
def test_gradients_are_autograds(architecture: Architecture, time: int, lanes: int) -> None:
    network = network_of(architecture)
    batch = batch_of(architecture, time, 2, lanes)
    wanted = loss(network, *batch)
    value: Any = wanted * 0.5
    value.backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters()}
    for p in network.parameters():
        p.grad.zero_()
    passes = fused.Fused(network, time)
    passes.round()
    assert passes.learn(batch, 0.5) == pytest.approx(float(wanted.detach()), rel=2e-3)
    passes.take()
    for name, p in network.named_parameters():
        mine, torchs = p.grad.double().flatten(), gradients[name].double().flatten()
        assert float((mine - torchs).norm()) <= 0.1 * float(torchs.norm()) + 1e-7, name
        assert float(mine @ torchs) >= 0.995 * float(mine.norm() * torchs.norm()), name


@needs_amx
def test_rows_side_by_side_are_rows_one_by_one() -> None:
    network = network_of(SIZES[0])
    batch = batch_of(SIZES[0], 128, 4, 3)
    found = []
    for rows in (1, 2, 4):
        passes = fused.Fused(network, 128, rows)
        passes.round()
        value = passes.learn(batch, 1.0)
        passes.take()
        found.append((value, network.head.weight.grad.clone(), network.layers[0].up.weight.grad.clone()))
        for p in network.parameters():
            p.grad.zero_()
    for other in found[1:]:
        assert other[0] == pytest.approx(found[0][0], rel=1e-6)
        assert torch.allclose(other[1], found[0][1], rtol=1e-3, atol=1e-7)
        assert torch.allclose(other[2], found[0][2], rtol=1e-3, atol=1e-7)


@needs_amx
def test_a_row_of_padding_teaches_nothing() -> None:
    network = network_of(SIZES[0])
    batch = batch_of(SIZES[0], 64, 1, 1)
    batch[-1].fill_(-100)
    passes = fused.Fused(network, 64)
    passes.round()
    assert passes.learn(batch, 1.0) == 0
    passes.take()
    assert not any(bool(p.grad.any()) for p in network.parameters())


@needs_amx
@pytest.mark.parametrize("processes", [1, 2])
def test_native_adam_is_torchs(processes: int) -> None:
    found = []
    for native in (False, True):
        network = network_of(SIZES[0])
        shared = Shared(network, processes)
        ranks = []
        for rank in range(processes):
            mine = Network(SIZES[0])
            for name, p in mine.named_parameters():
                p.data, p.grad = shared.parameters[name], shared.gradients[rank][name]
            ranks.append(Optimizers(shared, mine, rank, native))
        generator = torch.Generator().manual_seed(1)
        for step in range(4):
            for gradients in shared.gradients:
                for name, gradient in gradients.items():
                    shape = shared.parameters[name].shape
                    gradient.copy_(torch.randn(shape, generator=generator) * (step + 1) / 10)
            for optimizers in ranks:
                optimizers.step(0.5)
            assert not any(bool(g.any()) for gradients in shared.gradients for g in gradients.values())
        found.append({name: p.clone() for name, p in shared.parameters.items()})
    for name in found[0]:
        assert torch.allclose(found[0][name], found[1][name], rtol=1e-4, atol=1e-6), name


def test_what_it_is_not_written_for_is_refused() -> None:
    assert not fused.is_available(Architecture(head=16))
    assert not fused.is_available(Architecture(window=32))
    assert not fused.is_available(Architecture(heads=32, kv_heads=8))
    assert not fused.is_available(Architecture(ngram_widths=(72, 56, 56, 40, 32)))
