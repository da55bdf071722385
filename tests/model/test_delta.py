"""Deltas: what they make of a base is the same everywhere, and what is no delta is refused."""

from __future__ import annotations

import lzma
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from nnfs.errors import ModelMissing
from nnfs.model import delta, selftest
from nnfs.model.weights import load_weights, save_weights
from tests.model.kit import random_weights

FINGERPRINT = "8812a481d5d40576e0879f804e263ebb"  # of the base with CHANGES


def base_file(tmp_path: Path) -> bytes:
    path = tmp_path / "base"
    save_weights(random_weights(), str(path), {"provenance": "{}"})
    return path.read_bytes()


@pytest.fixture
def base(tmp_path: Path) -> bytes:
    return base_file(tmp_path)


def changes() -> delta.Tensors:
    """Return one change of each kind."""
    numbers, w = selftest.Numbers(b"delta"), random_weights()
    return {
        "dictionary": np.arange(200, dtype=np.uint8),
        "biases": numbers.take(-1000, 1000, len(w.biases)),
        "left.head": numbers.take(-20, 20, 256, 2).astype(np.int8),
        "right.head": numbers.take(-20, 20, 2, w.architecture.width).astype(np.int8),
        "start.weights": delta.planes(numbers.take(-300, 300, *w.start.weights.shape).astype(np.int64)),
        "start.maps": delta.planes(numbers.take(-300, 300, *w.start.maps.shape).astype(np.int64)),
    }


def packed(changed: delta.Tensors) -> bytes:
    return delta.pack(random_weights().fingerprint(), changed)


def test_a_delta_names_its_base(base: bytes) -> None:
    data = packed({})
    assert delta.is_delta(data)
    assert not delta.is_delta(base)
    assert delta.base_of(data) == random_weights().fingerprint()


def test_a_delta_that_changes_nothing_makes_the_base(base: bytes) -> None:
    assert load_weights(delta.compose(base, packed({}))).fingerprint() == random_weights().fingerprint()


def test_the_model_it_makes_is_the_same_everywhere(base: bytes) -> None:
    made = load_weights(delta.compose(base, packed(changes())))
    assert made.fingerprint().hex()[:32] == FINGERPRINT
    assert made.dictionary.tobytes() == bytes(range(200))
    assert (made.head.weight != random_weights().head.weight).mean() > 0.2
    assert np.array_equal(made.layers[0].up.weight, random_weights().layers[0].up.weight)


def test_what_is_made_is_a_whole_model_with_its_fingerprint(base: bytes, tmp_path: Path) -> None:
    from nnfs.workers.catalogue import stated_fingerprint

    path = tmp_path / "whole"
    path.write_bytes(delta.compose(base, packed(changes())))
    assert stated_fingerprint(str(path)) == load_weights(path.read_bytes()).fingerprint()


def test_neither_torch_nor_numba_is_needed(base: bytes, tmp_path: Path) -> None:
    (tmp_path / "delta").write_bytes(packed(changes()))
    program = (
        "import sys; from pathlib import Path; from nnfs.model.delta import compose;"
        "compose(Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]).read_bytes());"
        "sys.exit(bool({'torch', 'numba'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path / "base", tmp_path / "delta"]).returncode == 0


def test_small_changes_add_up() -> None:
    """A change of a tenth of a step moves a tenth of the weights, spread over each row."""
    weight = np.zeros((64, 256), np.int8)
    left, right = np.full((64, 1), 1, np.int8), np.full((1, 256), 2, np.int8)  # 2 / UNIT^2: an eighth
    moved = delta.adapted(weight, left, right)
    assert set(np.unique(moved)) == {0, 1}
    assert np.all(np.abs(moved.mean(1) - 0.125) < 0.04)
    assert np.all(np.abs(moved.mean(0) - 0.125) < 0.08)
    assert not delta.adapted(weight, 0 * left, right).any()
    assert delta.adapted(weight + np.int8(127), 127 * left, right).max() == 127
    assert delta.adapted(weight - np.int8(127), -127 * left, right).min() == -127


def test_start_values_come_within_half_a_step() -> None:
    w, numbers = random_weights(), selftest.Numbers(b"start")
    after = w.start.weights + numbers.take(-(1 << 20), 1 << 20, *w.start.weights.shape)
    steps = delta.from_planes(delta.planes(delta.steps_between("weights", w.start.weights, after)))
    assert np.abs(delta.moved("weights", w.start.weights, steps).astype(np.int64) - after).max() <= delta.STEP // 2


def test_a_map_that_is_moved_can_still_learn() -> None:
    maps = random_weights().start.maps
    steps = np.zeros(maps.shape, np.int64)
    steps[0, :3] = 5, -5000, 5000
    moved = delta.moved("maps", maps, steps)
    assert np.array_equal(moved[1:], maps[1:])
    assert set((moved[0, :3] & 1023).tolist()) == {delta.TRUST}
    assert (moved[0, 1:3] >> 10).tolist() == [0, (1 << 22) - 1]


def test_another_base_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other"
    save_weights(random_weights(1), str(path), {})
    with pytest.raises(ModelMissing, match="not over the one given"):
        delta.compose(path.read_bytes(), packed({}))


def test_damaged_deltas_are_refused(base: bytes) -> None:
    data = packed(changes())
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    for bad in (b"", data[:8], data[: delta.HEAD], data[:-1], data[: len(data) // 2], data + b"x", bytes(flipped)):
        with pytest.raises(ModelMissing, match="not the delta"):
            delta.compose(base, bad)
    with pytest.raises(ModelMissing, match="not the delta"):
        delta.compose(data, data)


BAD: dict[str, delta.Tensors] = {
    "an unknown change": {"more": np.zeros(1, np.int8)},
    "a factor alone": {"left.head": np.zeros((256, 2), np.int8)},
    "factors that do not meet": {"left.head": np.zeros((256, 2), np.int8), "right.head": np.zeros((3, 64), np.int8)},
    "another shape": {"left.head": np.zeros((256, 2), np.int8), "right.head": np.zeros((2, 65), np.int8)},
    "a product that is not there": {"left.x": np.zeros((1, 1), np.int8), "right.x": np.zeros((1, 1), np.int8)},
    "other start values": {"start.weights": np.zeros((2, 3), np.int8)},
    "start values that are not there": {"start.more": np.zeros((2, 3), np.int8)},
    "other biases": {"biases": np.zeros(3, np.int32)},
}


@pytest.mark.parametrize("what", BAD)
def test_changes_that_do_not_fit_are_refused(what: str, base: bytes) -> None:
    with pytest.raises(ModelMissing):
        delta.compose(base, packed(BAD[what]))


def test_a_delta_that_would_fill_the_memory_is_refused(base: bytes) -> None:
    bomb = lzma.compress(save({"dictionary": np.zeros(delta.MOST + 1, np.uint8)}), lzma.FORMAT_XZ)
    with pytest.raises(ModelMissing, match="not the delta"):
        delta.compose(base, packed({})[: delta.HEAD] + bomb)
