"""The model file: what was saved comes back, and what nnfs cannot run is refused."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load, save

from nnfs.errors import ModelMissing
from nnfs.model import fixedpoint, selftest
from nnfs.model.architecture import Architecture
from nnfs.model.cpu import CpuModel
from nnfs.model.fixedpoint import pre_shift
from nnfs.model.weights import Weights, load_weights, save_weights
from tests.model.kit import TINY, expected, extreme_weights, random_weights

FINGERPRINT = (
    "2f80bf327edbee12acdc1cc335789263507f8ba7c01603e1de9ea54617c5b9aa"
    "6314b9fc91b11685d042e64247f2b55f43943b587adaae4be0191535d0bab932"
)
Tensors = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_weights(random_weights(), str(path), {"steps": "1"})
    return path.read_bytes()


def changed(content: bytes, change: Callable[[Tensors], object], **architecture: object) -> bytes:
    """The file with other tensors or another architecture."""
    tensors = {name: tensor.copy() for name, tensor in load(content).items()}
    change(tensors)
    fields = json.loads(TINY.to_json()) | architecture
    return save(tensors, {"architecture": json.dumps(fields)})


def nothing(_: Tensors) -> None:
    """Change nothing."""


def setting(name: str, at: int, value: int) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name].reshape(-1)[at] = value

    return change


def must_refuse(content: bytes, why: str | None = None) -> None:
    with pytest.raises(ModelMissing, match=why):
        load_weights(content)


# -------------------------------------------------------------------------------------------------------- what works


def same(one: Weights, other: Weights) -> bool:
    f = selftest.features(3, 2)
    return one.fingerprint() == other.fingerprint() and np.array_equal(expected(one, f), expected(other, f))


def test_round_trip(content: bytes) -> None:
    loaded = load_weights(content)
    assert loaded.architecture == TINY
    assert same(loaded, random_weights())
    CpuModel(loaded)


def test_the_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_weights(random_weights(), str(path), {})
    assert os.listdir(tmp_path) == ["m"]
    with pytest.raises(FileNotFoundError):
        save_weights(random_weights(), str(tmp_path / "gone" / "m"), {})


def test_the_fingerprint_names_the_model_for_ever(content: bytes) -> None:
    assert random_weights().fingerprint().hex() == FINGERPRINT
    assert load_weights(content).fingerprint() == random_weights().fingerprint()
    assert load_weights(changed(content, nothing)).fingerprint() == random_weights().fingerprint()  # other provenance


def test_a_file_that_is_not_what_it_says_it_is(content: bytes) -> None:
    """A weight that changed on its way, or a file under another model's name."""
    tensors, header = load(content), json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    about = header["__metadata__"]
    assert load_weights(save(tensors, about)).fingerprint() == random_weights().fingerprint()
    for stated in (random_weights(1).fingerprint().hex(), "", "no fingerprint", FINGERPRINT.upper()):
        must_refuse(save(tensors, about | {"fingerprint": stated}), "says that it is")
    tensors["inputs"] = tensors["inputs"].copy()
    tensors["inputs"][3, 5] += 1 if tensors["inputs"][3, 5] < 0 else -1
    must_refuse(save(tensors, about), "damaged: it says that it is 2f80bf327edbee12, but its content is")


def test_every_tensor_counts_in_the_fingerprint(content: bytes) -> None:
    prints = {random_weights().fingerprint()}
    for name, tensor in load(content).items():
        at = tensor.size - 1  # not the first of a table, which is fixed
        low = int(tensor.reshape(-1)[at]) - 1 if tensor.reshape(-1)[at] > 1 else int(tensor.reshape(-1)[at]) + 1
        prints.add(load_weights(changed(content, setting(name, at, low))).fingerprint())
    assert len(prints) == 1 + len(load(content))


def test_the_shipped_limits_are_accepted(content: bytes) -> None:
    """The greatest weights that training can store are accepted; a step more is refused."""
    most = fixedpoint.MULTIPLIER_LIMIT
    load_weights(changed(content, setting("layers.0.up.multiplier", 0, most)))
    must_refuse(changed(content, setting("layers.0.up.multiplier", 0, most + 1)), "scale")
    must_refuse(changed(content, setting("layers.0.up.multiplier", 0, -1)), "scale")


@pytest.mark.parametrize("inputs", [1, 8, 64, 65, 192, 256, 768, 1024, 1040])
def test_sums_fit_after_the_shift(inputs: int) -> None:
    most = inputs * 127 * 127
    assert most < 1 << 24
    assert (most + (1 << pre_shift(inputs) >> 1)) >> pre_shift(inputs) < 1 << 16


# ------------------------------------------------------------------------------------------------------ what does not


def test_damaged_files_are_refused(content: bytes) -> None:
    for end in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        must_refuse(content[:end])
    must_refuse(content + b"\0")
    must_refuse(b"\xff" * 100)
    must_refuse(b"\x08" + bytes(7) + b"[[[[]]]]")
    must_refuse((2).to_bytes(8, "little") + b"{}")
    flipped = bytearray(content)
    flipped[20] ^= 0x40
    must_refuse(bytes(flipped))


CHANGES: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "a weight of -128": (setting("layers.1.down.weight", 5, -128), "-128"),
    "an embedding of -128": (setting("inputs", 0, -128), "-128"),
    "no shift": (setting("head.shift", 0, 0), "scale"),
    "too great a shift": (setting("head.shift", 0, 25), "scale"),
    "a distance too far": (setting("layers.0.distance", 3, (1 << 24) + 1), "range"),
    "the least distance": (setting("layers.0.distance", 3, -(1 << 31)), "range"),
    "the least bias": (setting("biases", 3, -(1 << 31)), "range"),
    "a table that begins low": (setting("attention_table", 0, 2046), "range"),
    "a table that rises": (setting("frequency_table", 9, (1 << 20) + 1), "range"),
    "a negative weight in a table": (setting("frequency_table", 9, -1), "range"),
    "a tensor too many": (lambda t: t.update(more=np.zeros(1, np.int8)), "unknown tensors: more"),
    "a layer too many": (lambda t: t.update({"layers.2.distance": np.zeros((4, 64), np.int32)}), "unknown"),
    "a tensor too few": (lambda t: t.pop("biases"), "biases"),
    "another type": (lambda t: t.update(biases=t["biases"].astype(np.int64)), "int64"),
    "floats": (lambda t: t.update(inputs=t["inputs"].astype(np.float32)), "float32"),
    "another shape": (lambda t: t.update(biases=t["biases"][:-1]), "biases"),
    "turned": (lambda t: t.update({"head.weight": t["head.weight"].T.copy()}), "head.weight"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_tensors_that_do_not_fit_are_refused(what: str, content: bytes) -> None:
    change, why = CHANGES[what]
    must_refuse(changed(content, change), why)


def test_logits_that_do_not_fit_are_refused(content: bytes) -> None:
    def change(tensors: Tensors) -> None:
        tensors["head.shift"][:] = 1
        tensors["head.multiplier"][:] = fixedpoint.MULTIPLIER_LIMIT
        tensors["biases"][:] = 1 << 24

    must_refuse(changed(content, change), "logits")


@pytest.mark.parametrize(
    "fields",
    [
        {"profile": 2},
        {"profile": "1"},
        {"width": 0},
        {"width": 128},
        {"width": 64.0},
        {"layers": -1},
        {"layers": True},
        {"heads": 0},
        {"kv_heads": 0},
        {"kv_heads": 3},
        {"head": 1 << 40},
        {"heads": 64},
        {"window": 65},
        {"hidden": 1041},
        {"ngram_bits": 0},
        {"ngram_bits": 60},
        {"ngram_widths": [64]},
        {"ngram_widths": [16, 16, 16, 16, 0]},
        {"ngram_widths": "16"},
        {"ngram_widths": None},
        {"depth": 3},
    ],
    ids=str,
)
def test_networks_that_nnfs_cannot_run_are_refused(fields: dict[str, object], content: bytes) -> None:
    must_refuse(changed(content, nothing, **fields))


def test_a_file_without_an_architecture_is_refused(content: bytes) -> None:
    must_refuse(save(load(content), {"steps": "1"}), "architecture")
    must_refuse(save(load(content)))
    for text in ("", "[]", "1", "{}", "[" * 100_000):
        must_refuse(save(load(content), {"architecture": text}))


def test_a_newer_profile_says_what_to_do() -> None:
    with pytest.raises(ModelMissing, match="install a newer nnfs"):
        Architecture.from_json(json.dumps(dataclasses.asdict(TINY) | {"profile": 2}))


def test_the_weights_of_the_extreme_tests_may_be_stored(tmp_path: Path) -> None:
    """The weights by which engines are tested at their limits are within the ranges of a file."""
    for kind, shift in (("same", 2), ("halves", 24)):
        w = extreme_weights(kind, shift)
        path = tmp_path / kind
        save_weights(w, str(path), {})
        assert load_weights(path.read_bytes()).fingerprint() == w.fingerprint()
