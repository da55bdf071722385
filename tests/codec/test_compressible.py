from __future__ import annotations

import os

from nnfs.codec.compressible import compressible

TEXT = b"the same words again and again, " * 64
NOISE = os.urandom(4096)


def test_compressible() -> None:
    assert compressible(TEXT)
    assert compressible(bytes(100))
    assert compressible(NOISE + NOISE)
    assert not compressible(NOISE)
    assert not compressible(b"")
