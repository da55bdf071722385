"""Start values of codec 20 are learnt from chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnfs.errors import CodecError
from nnfs.mixer import lightstate, native
from nnfs.mixer.lightstate import LightState, LightValues, light_values
from nnfs.train.light import train, untrained
from tests.kernels.kit import library
from tests.model.golden import sample

KERNELS = native.Kernels(library(), "portable")


def cost(values: LightValues, plain: bytes) -> float:
    """Return the bits that a chunk takes."""
    path = np.empty((len(plain), 8), np.uint16)
    KERNELS.light_encode(LightState().start(plain, values), path)
    ones = np.unpackbits(np.frombuffer(plain, np.uint8)).reshape(-1, 8)
    return float(-np.log2(np.where(ones, path, 65536.0 - path) / 65536).sum())


def test_what_was_learnt_is_of_use_for_other_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "kernels", lambda: KERNELS)
    found = train([sample(1500, seed) for seed in range(8)])
    other = sample(1500, 99)
    assert cost(found, other) < 0.95 * cost(untrained(), other)
    lightstate.save(found, str(tmp_path / "light.npz"))
    with np.load(tmp_path / "light.npz") as stored:
        for name, array in vars(light_values()).items():
            assert (stored[name].dtype, stored[name].shape) == (array.dtype, array.shape)
            assert np.array_equal(stored[name], getattr(found, name))


def test_it_needs_native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "kernels", lambda: None)
    with pytest.raises(CodecError, match=r"nnfs\.kernels\.build"):
        train([b"abc"])
