"""Fitting: what comes out is a delta that makes similar content smaller."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnfs.codec.neural import Neural
from nnfs.errors import UsageError
from nnfs.model import delta, selftest
from nnfs.model.weights import load_weights, save_weights
from nnfs.train import dictionary, fit
from nnfs.train.__main__ import main

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu".split()


def lines(seed: int, count: int) -> bytes:
    """Return a log whose messages are the same in every file."""
    rng, messages = random.Random(seed), random.Random(0)
    kinds = [" ".join(messages.choices(WORDS, k=12)) for _ in range(100)]
    return b"".join(f"{rng.randrange(100):02d} {rng.choice(kinds)}\n".encode() for _ in range(count))


@pytest.fixture
def base(tmp_path: Path) -> str:
    path = str(tmp_path / "base.safetensors")
    save_weights(selftest.weights(), path, {})
    return path


@pytest.fixture
def content(tmp_path: Path) -> Path:
    folder = tmp_path / "content" / "below"
    folder.mkdir(parents=True)
    for n in range(6):
        (folder / f"{n}.log").write_bytes(lines(n, 150))
    (folder / "empty").touch()
    (folder / "link").symlink_to("0.log")
    return folder.parent


def test_makes_similar_content_smaller(
    base: str, content: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "delta"
    assert main(["fit", "--base", base, "--out", str(out), "--seconds", "0", "--", str(content)]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert "held out" in printed.err
    assert found["fitted_stored"] < 0.9 * found["base_stored"]
    assert found["delta_bytes"] == out.stat().st_size
    assert found["content_bytes"] == sum(p.stat().st_size for p in content.glob("*/*.log"))
    assert 0 < found["held_out_bytes"] < found["sample_bytes"] <= found["content_bytes"]

    w = load_weights(delta.compose(Path(base).read_bytes(), out.read_bytes()))
    assert w.fingerprint().hex() == found["fingerprint"]
    assert delta.base_of(out.read_bytes()).hex() == found["base"]
    new = lines(99, 150)
    fitted, plain = Neural(w).encode(new), Neural(selftest.weights()).encode(new)
    assert fitted is not None
    assert plain is not None
    assert len(fitted) < len(plain)
    assert Neural(w).decode(fitted, len(new)) == new


def test_too_little_content(base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").write_bytes(lines(1, 100))
    with pytest.raises(UsageError, match="too little"):
        fit.sampled([str(tmp_path / "one")], 1)
    assert main(["fit", "--base", base, "--out", str(tmp_path / "x"), str(tmp_path / "one")]) == UsageError.exit_code
    assert "too little" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_samples_are_disjoint_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "SAMPLE", 1 << 20)
    (tmp_path / "noise").write_bytes(random.Random(1).randbytes(3 << 20))
    sample = fit.sampled([str(tmp_path)], 1)
    chunks = sample.held_out + sample.learn + sample.rest
    assert sample.all_bytes == 3 << 20
    assert sum(map(len, chunks)) == 1 << 20
    assert len(set(chunks)) == len(chunks) == 8
    assert len(sample.held_out) == len(sample.learn) == 2


def test_a_dictionary_takes_what_most_chunks_have() -> None:
    shared, rng = lines(1, 20)[: dictionary.PIECE], random.Random(1)
    chunks = [rng.randbytes(3 * dictionary.PIECE) + shared for _ in range(4)]
    assert dictionary.choose(chunks, dictionary.PIECE) == shared
    assert len(dictionary.choose(chunks, 1 << 20)) == 16 * dictionary.PIECE
    assert dictionary.choose([b"short"], 1 << 17) == b""
    assert len(dictionary.choose([b"a small file", b"not much longer"], 1 << 17)) == 27


def test_noise_gets_no_dictionary(base: str, tmp_path: Path) -> None:
    rng = random.Random(1)
    for n in range(4):
        (tmp_path / f"noise{n}").write_bytes(rng.randbytes(4000))
    sample = fit.sampled([str(tmp_path / f"noise{n}") for n in range(4)], 1)
    assert fit._dictionary(sample, 1) == {}


# ---------------------------------------------------------------------------------------------- changes of the weights


def test_what_training_computes_is_what_a_delta_makes() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from nnfs.train import adapt

    w = selftest.weights()
    network = adapt.network_of(w, 3, 1)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.endswith(".left"):
                p.normal_()
    made = adapt.changes_of(network)
    for name, product, parts in (
        ("layers.1.qkv", w.layers[1].qkv, (network.layers[1].query, network.layers[1].key_value)),
        ("head", w.head, (network.head,)),
    ):
        inside = torch.cat([p.weight + adapt.whole(p.left) @ adapt.whole(p.right) for p in parts])
        integers = inside.detach().floor().clamp(-127, 127).numpy()
        assert np.array_equal(integers, delta.adapted(product.weight, made[f"left.{name}"], made[f"right.{name}"]))
        assert (integers != product.weight).any()
    load_weights_of = delta.pack(w.fingerprint(), made)
    assert delta.is_delta(load_weights_of)


def test_learns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, base: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from nnfs.train import adapt

    monkeypatch.setattr(torch, "compile", lambda f, **_: f)  # the compiler's minutes are not what is tested
    monkeypatch.setattr(adapt, "TIME", 256)
    w, told = selftest.weights(), list[str]()
    made = adapt.adapt(w, [lines(1, 60)], None, 2, 0, told.append)  # one step
    changed = load_weights(delta.compose(Path(base).read_bytes(), delta.pack(w.fingerprint(), made)))
    assert changed.architecture == w.architecture


def test_without_a_compiler_the_weights_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def none(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", none)
    sample = fit.Sample([], [lines(1, 60)], [lines(2, 60)], 1 << 20)
    assert fit._adapted(selftest.weights(), sample, None, 2, 0, 1) == {}


def test_gradients_pass_the_rounding() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from nnfs.train import adapt

    torch.manual_seed(1)
    product = selftest.weights().head
    right = torch.nn.Parameter(3 * torch.randn(2, product.weight.shape[1]))
    made = adapt.Adapted(product, 0, len(product.weight), right, (1.0, 1.0))
    with torch.no_grad():
        made.left.normal_(std=3)
    x = torch.randint(-127, 128, (2, 3, product.weight.shape[1])).float().requires_grad_()
    made(x).square().sum().backward()
    leaves: tuple[Any, ...] = (x, made.left, right)
    found = [one.grad.clone() for one in leaves]
    for one in leaves:
        one.grad = None
    change = adapt.whole(made.left) @ adapt.whole(right)
    integers = made.weight + change
    integers = integers + (integers.floor().clamp(-127, 127) - integers).detach()
    (torch.nn.functional.linear(x, integers) * made.scale).square().sum().backward()
    for one, gradient in zip((x, made.left, right), found, strict=True):
        assert torch.allclose(one.grad, gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


def test_counts_what_a_mount_would_store() -> None:
    chunks = [lines(1, 50), random.Random(1).randbytes(1000), b"\0" * 3000]
    rivals = fit.classical_sizes(chunks, 2)
    assert rivals[1] == 1000
    w = selftest.weights()
    neural = [fit.stored_size(w, [chunk], [1 << 20], 1) for chunk in chunks]
    assert fit.stored_size(w, chunks, rivals, 1) == sum(map(min, neural, rivals))
    assert fit.stored_size(w, chunks, [7, 7, 7], 1) == 7 + 7 + min(7, neural[2])
