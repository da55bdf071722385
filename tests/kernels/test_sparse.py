"""A product whose inputs are mostly 0 gives the same sums from the others alone."""

from __future__ import annotations

import numpy as np
import pytest

from nnfs.kernels.library import LEVELS
from nnfs.model import selftest
from nnfs.model.native import NativeModel
from nnfs.model.weights import load_weights
from tests.format.make import SHIPPED
from tests.kernels.kit import EMULATED, library

KINDS = [f"native {level}" for level in LEVELS] + [f"emulated {level}" for level in EMULATED]


@pytest.mark.parametrize("kind", KINDS)
def test_few_inputs_give_what_all_give(kind: str) -> None:
    """The shipped model, whose hidden units are 0 in 55 to 89 of 100 cases; 21 lanes end within a tile."""
    engine, level = kind.split()
    there = library("emulated-" if engine == "emulated" else "")
    if level not in there.levels:
        pytest.skip(f"this processor has no {level}")
    weights = load_weights(SHIPPED.read_bytes())
    features = selftest.features(3, 21)
    found = []
    for sparse in (True, False):
        model = NativeModel(weights, level, there)
        for k, product in enumerate(model._products):
            assert bool(product.rows) == (k % 4 == 3)
            product.rows = product.rows if sparse else None
        found.append(selftest.frequencies(model.engine(21, 2), features, [1, 2]))
    assert np.array_equal(found[0], found[1])
