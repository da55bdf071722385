"""The dictionary of a fitted model: typical content that every chunk has as its past, as if it had been coded before.

It lies before the chunk in the same array, so that a match can point into it. Bit histories, the bytes last seen and
the tables of the match models begin as the dictionary leaves them; weights and maps begin with the model's start
values, which have been learnt behind it. It is entered once, as one lane, and the tables are copied for each chunk.
"""

from __future__ import annotations

import numpy as np

from nnfs.mixer import mixing, native
from nnfs.mixer.architecture import P_BEGIN, P_TABLE
from nnfs.mixer.state import MixState
from nnfs.model import features
from nnfs.model.architecture import ORDERS
from nnfs.model.features import MAX_TABLE_BITS

LARGEST = 1 << 19  # bytes
LINES = 19  # binary logarithm of the lines of the mixer's table, which holds dictionary and chunk: 8 MB


class Dictionary:
    """The bytes of a dictionary, and the tables as it leaves them. Threads may share it."""

    lines = LINES
    bits = MAX_TABLE_BITS  # as `lines`, of the features' tables

    def __init__(self, plain: bytes) -> None:
        self.size = len(plain)
        self.plain = np.frombuffer(plain, np.uint8)
        state = MixState(1, max(self.size, 1 << 17), 1, LINES)
        stack = state.stack
        stack.parameters[0, [P_TABLE, P_BEGIN]] = LINES, self.size
        stack.plain[0, : self.size] = self.plain
        kernels = native.kernels()
        if kernels:
            kernels.enter(state, 0)
        else:
            mixing.enter(stack, 0)
        self.table, self.find = stack.table[0], stack.find[0]
        entries = 1 << self.bits
        self.orders = np.zeros((len(ORDERS), entries), np.uint32)
        self.starts = np.zeros(entries, np.int32)
        if kernels:
            kernels.enter_features(self.plain, self.orders, self.starts, self.bits)
        else:
            features.enter(self.plain, self.orders, self.starts, self.bits)
