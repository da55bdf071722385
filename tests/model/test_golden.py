"""Frequencies, features and payloads are those of every other machine, whatever instructions this one has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnfs.model import selftest
from tests.model import golden

GOLDEN = {
    "network": selftest.DIGEST,
    "network_by_numpy": selftest.DIGEST,
    "features": "87e00dc5e4aadf43545f7967b71a42c3",
    "dictionary": "53f2b33d2ef87fd9fb51cb758534d92c",
    "payloads": "6f544c483da2a33f5cf547a4e0a23cf2",
}

ENVIRONMENTS = {
    "numpy without AVX-512": {"OPENBLAS_CORETYPE": "Haswell"},
    "numpy with SSE alone": {"OPENBLAS_CORETYPE": "Nehalem"},
    "numba without vectors": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
}


def test_the_digest_of_the_self_test_is_not_changed_by_mistake() -> None:
    assert selftest.DIGEST == "a254c95b748e49532949084cba30a162"


@pytest.mark.parametrize("name", GOLDEN)
def test_on_this_machine(name: str) -> None:
    assert getattr(golden, name)() == GOLDEN[name]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_with_fewer_instructions(name: str, tmp_path: Path) -> None:
    environment = os.environ | ENVIRONMENTS[name]
    wanted = ["network_by_numpy"]
    if "NUMBA_CPU_NAME" in environment:  # all kernels are compiled anew
        environment["NUMBA_CACHE_DIR"] = str(tmp_path)
        wanted = list(GOLDEN)
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.golden", *wanted], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: GOLDEN[name] for name in wanted}
