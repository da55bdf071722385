"""Print the digests of what must be the same on every machine: of frequencies, features and payloads.

Run as a process of its own, so that the environment can take instructions away from numpy and numba.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")


def numbers(seed: int) -> Iterator[int]:
    """Numbers that look random, below 2^31, the same ones for ever (Knuth's MMIX)."""
    while True:
        seed = (seed * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        yield seed >> 33


def sample(size: int, seed: int) -> bytes:
    """Text of few words, and numbers that count up."""
    rng = numbers(seed)
    words = [bytes(b"etaoinshrdlu"[next(rng) % 12] for _ in range(1 + next(rng) % 8)) for _ in range(50)]
    text, line = b"", 0
    while len(text) < size:
        text += b"%d %s\n" % (line, b" ".join(words[next(rng) % 50] for _ in range(6)))
        line += 1
    return text[:size]


def features() -> str:
    """The digest of the features of two chunks."""
    import numpy as np

    from nnfs.model.features import of_chunk

    digest = hashlib.blake2b(digest_size=16)
    for size, lanes in ((3000, 1), (5001, 4)):
        for field in of_chunk(np.frombuffer(sample(size, 1), np.uint8).copy(), lanes, 10):
            digest.update(field.astype("<i4").tobytes())
    return digest.hexdigest()


def payloads() -> str:
    """The digest of the payloads of chunks of 1, 2 and 9 lanes."""
    from nnfs.codec.neural import Neural
    from nnfs.model import selftest

    chunks = [sample(300, 2), sample(9001, 3), sample(500, 4) + bytes(65100)]
    digest = hashlib.blake2b(digest_size=16)
    for payload in Neural(selftest.weights()).encode_many(chunks):
        assert payload is not None
        digest.update(len(payload).to_bytes(4, "little") + payload)
    return digest.hexdigest()


def dictionary() -> str:
    """The digest of the payloads of chunks of 1 and 5 lanes, with a dictionary that is not quite the same."""
    import dataclasses

    from nnfs.codec.neural import Neural
    from nnfs.codec.storeddictionary import stored_dictionary
    from nnfs.model import selftest

    weights = dataclasses.replace(selftest.weights(), dictionary=stored_dictionary(sample(9000, 3)[:-99] + bytes(99)))
    digest = hashlib.blake2b(digest_size=16)
    for payload in Neural(weights).encode_many([sample(300, 2), sample(9001, 3), sample(500, 4) + bytes(65100)]):
        assert payload is not None
        digest.update(len(payload).to_bytes(4, "little") + payload)
    return digest.hexdigest()


def network() -> str:
    """The digest of frequencies, by the engine that this machine would use."""
    from nnfs.model import selftest
    from nnfs.model.engines import open_model

    return selftest.digest(open_model(selftest.weights()))


def network_by_numpy() -> str:
    """The same with numpy's products."""
    from nnfs.model import selftest
    from nnfs.model.cpu import CpuModel

    return selftest.digest(CpuModel(selftest.weights()))


if __name__ == "__main__":
    print(json.dumps({name: globals()[name]() for name in sys.argv[1:]}))
