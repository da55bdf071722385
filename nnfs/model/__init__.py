"""The network: its features, its integer inference on every engine, its weights."""

from __future__ import annotations

import nnfs.kernelcache  # noqa: F401 - before numba is imported
