"""SIGTERM as an orderly end: for commands with something to clear up."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import NoReturn


@contextlib.contextmanager
def cleared_up() -> Iterator[None]:
    """Let SIGTERM end the body as ^C does: its child process ends, and its files are removed."""

    def end(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
