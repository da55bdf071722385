"""The helpers that mount(8) and umount(8) call, as commands of an installed package: see the scripts beside this."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

PYTHON = "NNFS_HELPER_PYTHON"  # the environment variable that tells a script which Python has nnfs


def _become(name: str) -> NoReturn:
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    os.environ[PYTHON] = sys.executable
    os.execv("/bin/sh", ["/bin/sh", script, *sys.argv[1:]])


def mount() -> NoReturn:
    """Mount, as /sbin/mount.fuse.nnfs."""
    _become("mount.nnfs")


def umount() -> NoReturn:
    """Unmount, as /sbin/umount.fuse.nnfs."""
    _become("umount.nnfs")
