"""A daemon with a bug: `python buggy_daemon.py STORE MNT [-o OPTIONS]`; link(2) raises."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

from nnfs.fs.namespace import Namespace
from nnfs.mount import daemon, logs


def broken(self: Namespace, *args: object) -> NoReturn:
    """What a bug does."""
    raise ZeroDivisionError("a bug in link")


if __name__ == "__main__":
    Namespace.link = broken  # type: ignore[method-assign]
    logs.configure(Path(sys.argv[1]), foreground=True)
    options = [word for word in sys.argv[3:] if word != "-o"]
    sys.exit(daemon.run(Path(sys.argv[1]), Path(sys.argv[2]), options, lambda: None))
