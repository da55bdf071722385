"""The libraries that tests run: as set-up compiles it, and with every level emulated in plain C."""

from __future__ import annotations

from functools import cache

from nnfs.kernels import build
from nnfs.kernels.library import Library

EMULATED = ("amx", "vnni", "avxvnni", "avx2", "portable")


@cache
def library(variant: str = "") -> Library:
    """Return a library, compiled if need be."""
    return Library(build.build(variant))
