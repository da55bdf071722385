"""Fixtures of the codec's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


class Gate:
    """`chunk` is worked on until `open` is called (see `tests.workers.kit`)."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self.chunk = b"gate:" + os.fsencode(path)
        self.fd: int | None = None

    def open(self) -> None:
        if self.fd is None:
            self.fd = os.open(self.path, os.O_RDWR)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path / "gate")
    yield made
    made.open()
    assert made.fd is not None
    os.close(made.fd)
