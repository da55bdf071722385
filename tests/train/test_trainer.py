"""The trainer learns, stops, goes on, and what it exports computes what it learnt."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest

from nnfs.train.network import Network

torch = pytest.importorskip("torch", reason="torch is not installed")

from nnfs.codec.neural import Neural  # noqa: E402
from nnfs.errors import UsageError  # noqa: E402
from nnfs.model import features  # noqa: E402
from nnfs.model.architecture import Architecture  # noqa: E402
from nnfs.model.forward import Reference  # noqa: E402
from nnfs.model.weights import load_weights, save_weights  # noqa: E402
from nnfs.train import export as exporting  # noqa: E402
from nnfs.train.corpus import ENTRY, Corpus  # noqa: E402
from nnfs.train.examples import PAD, PIECES, Packer, batches, many_lanes  # noqa: E402
from nnfs.train.quantise import quantised, restored  # noqa: E402
from nnfs.train.trainer import PAUSE, Plan, begin, rate_at, train  # noqa: E402
from nnfs.workers.catalogue import PRESETS  # noqa: E402

TINY = Architecture(layers=1, heads=4, kv_heads=1, hidden=64, width=64, ngram_bits=8, ngram_widths=(16, 16, 16, 8, 8))
TEXT = b"".join(b"line %d of the only file there is\n" % n for n in range(400))


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = str(tmp_path / "corpus")
    Path(path).write_bytes(TEXT + TEXT[:500])
    np.save(path + ".npy", np.array([(0, len(TEXT), 0, 0, False), (len(TEXT), 500, 0, 0, False)], ENTRY))
    about = {"kinds": ["text"], "sources": ["here"], "weights": {"text": 1.0}, "licences": {"here": []}}
    Path(path + ".json").write_text(json.dumps(about))
    return path


def plan(corpus: str, out: Path, steps: int, processes: int = 1) -> Plan:
    return Plan(
        corpus, str(out), steps, batch=2, passes=1, time=256, processes=processes, save_every=2, cooldown=0.5, rate=0.3
    )


def bits(out: Path) -> list[float]:
    return [json.loads(line)["bits"] for line in (out / "log-0.jsonl").read_text().splitlines()]


def test_learns_goes_on_and_exports(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)  # the compiler's minutes are not what is tested
    out = tmp_path / "run"
    train(plan(corpus, out, 25), TINY)
    checkpoint = train(plan(corpus, out, 50), TINY)
    first, second = bits(out)
    assert second < first < 8.5
    network, about = exporting.network_of(str(checkpoint))
    assert about["step"] == "50"

    model = tmp_path / "model.safetensors"
    fingerprint = exporting.export(str(checkpoint), corpus, str(model), examples=2)
    weights = load_weights(model.read_bytes())
    assert weights.fingerprint() == fingerprint
    assert weights.inputs.tobytes() == quantised(network).inputs.tobytes()


def test_the_exported_network_predicts_as_the_trained_one(corpus: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = Network(TINY)
    weights = quantised(network)
    plain = np.frombuffer(TEXT[:1024], np.uint8).copy()
    f = features.of_chunk(plain, 4, TINY.ngram_bits)
    fields = [torch.from_numpy(field) for field in f]
    found = Reference(weights, 4).forward(*fields).double()
    p = (found / found.sum(-1, keepdim=True)).transpose(0, 1)
    with torch.no_grad():
        rows, ngrams, candidates, buckets = (field.transpose(0, 1).contiguous() for field in fields)
        logits = network(rows, ngrams, candidates.long(), buckets, torch.zeros(4, 256, dtype=torch.int32))
    difference = (p.log() - torch.log_softmax(logits.double(), -1)).abs()
    assert float((difference * p).sum(-1).mean()) < 0.05  # nats: rounding, not another network


def test_a_model_becomes_the_network_that_it_was_made_of() -> None:
    torch.manual_seed(4)
    weights = quantised(Network(TINY))
    again = quantised(restored(weights))
    assert again.fingerprint() == weights.fingerprint()


def test_the_shipped_model_can_be_trained_on() -> None:
    weights = load_weights(Path(PRESETS, "default.safetensors").read_bytes())
    again = quantised(restored(weights))
    for mine, theirs in zip((*again.layers, again), (*weights.layers, weights), strict=True):
        names = ("head",) if mine is again else ("qkv", "out", "up", "down")
        for name in names:
            assert (getattr(mine, name).weight == getattr(theirs, name).weight).all()
            assert (getattr(mine, name).multiplier == getattr(theirs, name).multiplier).all()
    assert (again.inputs == weights.inputs).all()


def test_starts_from_a_model(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    torch.manual_seed(4)
    model = tmp_path / "model.safetensors"
    save_weights(quantised(Network(TINY)), str(model), {})
    begun = begin(dataclasses.replace(plan(corpus, tmp_path, 1), start=str(model)), Architecture())
    assert begun.a == TINY
    with pytest.raises(UsageError, match="No such file"):
        begin(dataclasses.replace(plan(corpus, tmp_path, 1), start=str(tmp_path / "none")), TINY)


def test_waits_while_it_is_paused(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    pause, naps = tmp_path / PAUSE, list[float]()
    pause.touch()

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            pause.unlink()

    monkeypatch.setattr("nnfs.train.trainer.time.sleep", nap)
    train(plan(corpus, tmp_path, 1), TINY)
    assert len(naps) == 3
    assert max(naps) < 1


def test_a_gpu_wants_one_process(corpus: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one process"):
        train(Plan(corpus, str(tmp_path), 1, processes=2, device="cuda"), TINY)


def test_the_rate_rises_stays_and_falls() -> None:
    p = Plan("", "", 1000, cooldown=0.25)
    assert [round(rate_at(p, step), 2) for step in (0, 49, 99, 500, 749, 875, 999)] == [0.01, 0.5, 1, 1, 1, 0.5, 0]


def test_rows_hold_every_byte_once_with_its_features() -> None:
    packer = Packer(256, 8)
    rows = [*packer.add(TEXT[:1000], None, lanes=3), *packer.rest()]
    seen = np.concatenate([row.target[row.target != PAD] for row in rows])
    assert bytes(seen.astype(np.uint8)) == TEXT[:1000]
    expected = features.of_chunk(np.frombuffer(TEXT[:1000], np.uint8).copy(), 3, 8)
    assert np.array_equal(rows[0].rows, expected.rows[:256, 0])
    for row in rows:
        assert (row.start <= np.arange(256)).all()


def test_short_lanes_share_a_row() -> None:
    chunk = (TEXT * 9)[:8192]
    rows = list(Packer(256, 8).add(chunk, random.Random(1), lanes=128))
    assert len(rows) == PIECES
    assert all(sorted(set(row.start)) == [0, 64, 128, 192] for row in rows)


def test_a_third_of_the_chunks_have_many_lanes() -> None:
    rng = random.Random(1)
    lengths = [131072 / lanes for _ in range(3000) if (lanes := many_lanes(131072, rng))]
    assert 0.3 < len(lengths) / 3000 < 0.37
    assert min(lengths) < 80
    assert max(lengths) > 3500
    assert max(lengths) <= 4096
    assert all(many_lanes(127, rng) is None for _ in range(20))
    assert all((many_lanes(129, rng) or 3) in (2, 3) for _ in range(20))


def test_batches_are_the_same_for_the_same_seed(corpus: str) -> None:
    made = [next(batches(Corpus(corpus), 2, 256, 8, "7"))[0].target for _ in range(2)]
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], next(batches(Corpus(corpus), 2, 256, 8, "8"))[0].target)


def test_an_untrained_network_still_codes(corpus: str) -> None:
    torch.manual_seed(1)
    codec = Neural(quantised(Network(Architecture(layers=1, ngram_bits=8))))
    payload = codec.encode(TEXT)
    assert payload is not None
    assert codec.decode(payload, len(TEXT)) == TEXT
