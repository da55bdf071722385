from __future__ import annotations

import random

from nnfs.codec.compressible import compressible

TEXT = b"the same words again and again, " * 64
NOISE = random.Random(1).randbytes(1 << 16)  # 4 KiB of it may by chance look uneven


def test_compressible() -> None:
    assert compressible(TEXT)
    assert compressible(bytes(100))
    assert compressible(NOISE + NOISE)
    assert not compressible(NOISE)
    assert not compressible(b"")
