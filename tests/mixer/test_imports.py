"""Importing the rooms of the coding path changes nothing and reads no sources: that happens on use."""

from __future__ import annotations

import subprocess
import sys

from tests.harness import REPO

PROGRAM = """
import importlib, os, pkgutil
from nnfs import kernelcache
before = dict(os.environ)
for room in ("mixer", "model", "codec"):
    package = importlib.import_module("nnfs." + room)
    for module in pkgutil.iter_modules(package.__path__):
        try:
            importlib.import_module(f"nnfs.{room}.{module.name}")
        except ModuleNotFoundError as error:
            assert error.name in ("torch", "jax"), error
assert dict(os.environ) == before
assert kernelcache.folder_name.cache_info().misses == 0
"""


def test_importing_sets_no_variable_and_hashes_no_sources() -> None:
    environment = {"PYTHONPATH": str(REPO), "NUMBA_DISABLE_JIT": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
