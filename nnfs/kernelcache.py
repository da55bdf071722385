"""The folder of compiled kernels: importing this module names it before numba looks for one."""

from __future__ import annotations

import hashlib
import os
import sys

FOLDER = "kernels-"


def _keep_kernels_apart() -> None:
    """Give this version's compiled kernels a folder of their own.

    Numba tells whether a cached kernel is out of date by its own file only, not by the files of the functions that it
    calls: after an upgrade the encoder could be new and the decoder old. So the folder is named by the content of all
    sources.
    """
    here = os.path.dirname(os.path.abspath(__file__))
    digest = hashlib.blake2b(digest_size=12)
    for room in ("model", "mixer", "codec"):
        folder = os.path.join(here, room)
        for name in sorted(os.listdir(folder)):
            if name.endswith(".py"):
                with open(os.path.join(folder, name), "rb") as file:
                    digest.update(hashlib.blake2b(file.read()).digest())
    root = os.environ.get("NUMBA_CACHE_DIR") or os.path.join(here, "__pycache__")
    if os.path.basename(root).startswith(FOLDER):  # the parent process's
        root = os.path.dirname(root)
    if not os.access(os.path.dirname(root) if not os.path.isdir(root) else root, os.W_OK):
        root = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "nnfs")
    place = os.path.join(root, FOLDER + digest.hexdigest())
    os.environ["NUMBA_CACHE_DIR"] = place
    if "numba" in sys.modules:
        from numba.core import config

        config.CACHE_DIR = place  # type: ignore[attr-defined]


_keep_kernels_apart()
