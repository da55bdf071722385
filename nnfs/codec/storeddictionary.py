"""The dictionary of a fitted model (`nnfs.model.dictionary`), as the model's file holds it.

It is 4 bytes, its length (little-endian), and a payload of codec 17.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nnfs.codec.cm import ContextMixing
from nnfs.errors import CodecError, ModelMissing
from nnfs.model.dictionary import LARGEST, Dictionary
from nnfs.model.weights import Weights


def dictionary_of(weights: Weights) -> Dictionary | None:
    """Return a model's dictionary, if it has one. Raises `ModelMissing` for one that cannot be read."""
    if not weights.dictionary.size:
        return None
    stored = weights.dictionary.tobytes()
    size = int.from_bytes(stored[:4], "little")
    if not 0 < size <= LARGEST:
        raise ModelMissing(f"the model has a dictionary of {size} bytes, this nnfs takes {LARGEST} at the most")
    try:
        return Dictionary(ContextMixing().decode(stored[4:], size))
    except CodecError as error:
        raise ModelMissing(f"the model's dictionary cannot be read: {error}") from error


def stored_dictionary(plain: bytes) -> NDArray[np.uint8]:
    """Return a dictionary as a model's file holds it. Raises `CodecError` when it does not get smaller."""
    payload = ContextMixing().encode(plain)
    if payload is None:
        raise CodecError("a dictionary that does not get smaller")
    return np.frombuffer(len(plain).to_bytes(4, "little") + payload, np.uint8)
