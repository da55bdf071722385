"""The mixer and its tables: golden vectors, so that no change of the format passes unseen."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from nnfs.mixer import histories, leastsquares, logistic
from nnfs.mixer.architecture import INPUTS, WEIGHTS
from nnfs.mixer.mixing import encode_path
from nnfs.mixer.networkbits import net_path
from nnfs.mixer.startvalues import start_values, untrained
from nnfs.mixer.state import MixState

TEXT = b"".join(b"line %d of a log, status=%d\n" % (n, n * n % 7) for n in range(6000))


def digest(*arrays: np.ndarray) -> str:
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()[:16]


def test_logistic_tables() -> None:
    p = np.arange(1, 65536)
    assert np.abs(np.log(p / (65536 - p)) * logistic.UNIT - logistic.STRETCH[1:]).max() <= 0.5001
    x = np.arange(-logistic.LIMIT, logistic.LIMIT + 1) / logistic.UNIT
    assert np.abs(65536 / (1 + np.exp(-x)) - logistic.SQUASH).max() <= 0.5001
    assert np.abs((1 << 24) / (1 + np.exp(-x)) - logistic.FINE).max() <= 0.51
    assert (np.diff(logistic.STRETCH[1:].astype(int)) >= 0).all()
    assert logistic.SQUASH.min() >= 1
    assert logistic.SQUASH.max() <= 65535
    assert digest(logistic.STRETCH, logistic.SQUASH, logistic.FINE, logistic.COARSE) == "01f701fe2f8ec3c3"


def test_histories() -> None:
    assert histories.NEXT[0].tolist() == [1, 2]
    totals = histories.COUNTS.astype(int).sum(1)[:255]
    assert (np.diff(totals) >= 0).all()
    state = 0
    for _ in range(100):
        state = int(histories.NEXT[state, 1])
    assert histories.COUNTS[state].tolist() == [0, 20]
    assert histories.COUNTS[histories.NEXT[state, 0], 1] < 10  # old evidence is discounted
    assert digest(histories.NEXT, histories.COUNTS) == "c92b24b4fe21508d"


def test_least_squares() -> None:
    """A known filter is found to a thousandth; a singular problem stays bounded."""
    source = np.random.default_rng(1)
    n, most, true = 6, 8, np.array([0.9, -0.4, 0.25, 0.0, -0.1, 0.05])
    r, b, w = np.zeros((most, most), np.int64), np.zeros(most, np.int64), np.zeros(most, np.int64)
    scratch = np.zeros((most, most), np.int64), np.zeros(most, np.int64), np.zeros(most, np.int64)
    for _ in range(4000):
        x = np.zeros(most, np.int64)
        x[:n] = source.integers(-20000, 20000, n)
        leastsquares.observe(r, b, n, x, int((true * x[:n]).sum()), 10)
    leastsquares.solve(r, b, w, n, *scratch)
    assert np.abs(w[:n] / 2**leastsquares.POINT_W - true).max() < 1e-3
    for _ in range(3000):
        leastsquares.observe(r, b, n, np.full(most, 32767), -32768, 6)
    leastsquares.solve(r, b, w, n, *scratch)
    assert np.abs(w).max() <= leastsquares.CLAMP
    assert abs((w[:n] * 32767).sum() / 2**leastsquares.POINT_W + 32768) < 40


def test_net_path() -> None:
    """The probabilities along the path multiply to the byte's frequency."""
    source = np.random.default_rng(2)
    frequencies = source.integers(1, 1 << 20, (300, 256), np.uint32)
    frequencies[7] = 1
    frequencies[8, 3] = (1 << 31) - (1 << 29)
    bytes_ = source.integers(0, 256, 300).astype(np.uint8)
    out = np.empty((300, 8), np.uint16)
    net_path(frequencies, bytes_, out)
    bits = np.unpackbits(bytes_[:, None], axis=1)
    product = np.where(bits, out / 65536, 1 - out / 65536).prod(1)
    share = frequencies[np.arange(300), bytes_] / frequencies.sum(1, dtype=np.int64)
    usual = np.arange(300) != 8
    assert np.abs(product / share - 1)[usual].max() < 0.6
    assert np.median(np.abs(product / share - 1)) < 0.01


def test_start_values_fit() -> None:
    stored, made = start_values(), untrained(False)
    assert stored.weights.shape == made.weights.shape == (WEIGHTS, INPUTS)
    for field in ("maps", "match_maps", "weights", "weights_last", "refine"):
        assert getattr(stored, field).dtype == getattr(made, field).dtype


@pytest.mark.parametrize(
    ("lanes", "network", "stride", "expected"),
    [(1, False, 0, "8aa76fe79fbf5fdb"), (1, False, 27, "cd6769d35ef8d839"), (5, False, 0, "41904806de0654d6")],
)
def test_golden(lanes: int, network: bool, stride: int, expected: str) -> None:
    """Untrained values, so that a new set of trained ones does not change it."""
    plain = TEXT[:7000] + np.random.default_rng(3).integers(0, 256, 500, np.uint8).tobytes() + bytes(700) + TEXT[:1000]
    state = MixState(1, 1 << 14)
    state.start(0, plain, lanes, stride, untrained(network))
    columns = -(-len(plain) // lanes)
    shape = (columns, lanes, 8)
    given = np.random.default_rng(4).integers(1, 65536, shape, np.uint16) if network else np.zeros((0, 0, 0), np.uint16)
    out = np.zeros(shape, np.uint16)
    encode_path(state.stack, 0, given, out)
    assert out.reshape(-1)[: 8 * (len(plain) // lanes) * lanes].min() >= 1
    assert digest(out) == expected
