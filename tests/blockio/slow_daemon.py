"""A daemon with one more codec, 200 "gated": payloads are plain content, decoding waits for a FIFO to be opened.

`python slow_daemon.py FIFO STORE MNT OPTIONS` runs in the foreground.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nnfs import codec
from nnfs.mount import daemon, logs

GATED = 200


class Gated:
    """Raw, but slow."""

    id = GATED
    name = "gated"

    def __init__(self, fifo: str) -> None:
        self.fifo = fifo

    def encode(self, plain: bytes) -> bytes | None:
        return plain

    def decode(self, payload: bytes, plain_length: int) -> bytes:
        with open(self.fifo, "rb") as gate:  # returns when somebody opens the other end
            gate.read()
        return payload


if __name__ == "__main__":
    codec.register(Gated(sys.argv[1]))
    logs.configure(Path(sys.argv[2]), foreground=True)
    options = [word for word in sys.argv[4:] if word != "-o"]
    sys.exit(daemon.run(Path(sys.argv[2]), Path(sys.argv[3]), options, lambda: None))
