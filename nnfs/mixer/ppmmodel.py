"""The model of prediction by partial matching as arrays: contexts, their states, the escape estimators."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

ORDER = 8
MOST_FREQUENCY = 124
PERIOD = 7
STATES_A_BYTE, FIRST_STATES = 5 * ORDER, 512
# Places in `v`
SYMBOLS, CONTEXTS, WRITTEN, LEAST, MOST, FOUND, FALL, ESCAPE, SUCCESS, HIGH, RUN, FAILED = range(12)
LOW, RANGE, CODE, AT, WAITING, KEPT = range(6)  # in `r`
ESCAPES = np.array([25, 14, 9, 7, 5, 5, 4, 4, 4, 3, 3, 3, 2, 2, 2, 2])
FIRST_BINARY = np.array([0x3CDD, 0x1F3F, 0x59BF, 0x48F3, 0x64A1, 0x5ABC, 0x6632, 0x6051])


class Model(NamedTuple):
    """The model and the range coder of one chunk. Contexts count from 1."""

    v: Any  # int64: the fields named above
    r: Any  # int64: the range coder
    stream: Any  # uint8
    text: Any  # (size + 1,) uint8
    symbol: Any  # uint8, of each state
    frequency: Any  # int32
    following: Any  # int32: 0 nothing, above it a context, below it -1 - a place in `text`
    count: Any  # int32, of each context: states
    room: Any
    total: Any
    first: Any
    suffix: Any
    see: Any  # (401, 3) int32: sum, shift, count; the last one stands for a context of 256 symbols
    see_of: Any  # (256,)
    binary: Any  # (128, 64) int32


def see_classes() -> list[int]:
    """Return the row of `see` for each number of symbols, less 1."""
    found, value, left = [0, 1, 2], 3, 1
    while len(found) < 256:
        found.append(value)
        left -= 1
        if left == 0:
            value += 1
            left = value - 2
    return found


def start(size: int, stream: Any) -> Model:
    """Return the empty model of a chunk of `size` bytes."""
    states, contexts = FIRST_STATES + STATES_A_BYTE * size, 2 + (ORDER + 1) * size
    see = np.zeros((401, 3), np.int32)
    see[:400] = np.repeat([((5 * i + 10) << (PERIOD - 4), PERIOD - 4, 4) for i in range(25)], 16, 0)
    see[400] = 0, PERIOD, 64
    m = Model(
        np.zeros(12, np.int64), np.zeros(6, np.int64), stream, np.zeros(size + 1, np.uint8),
        np.zeros(states, np.uint8), np.zeros(states, np.int32), np.zeros(states, np.int32),
        np.zeros(contexts, np.int32), np.zeros(contexts, np.int32), np.zeros(contexts, np.int32),
        np.zeros(contexts, np.int32), np.zeros(contexts, np.int32), see, np.array(see_classes()),
        (1 << 14) - np.tile(FIRST_BINARY, 8)[None, :] // (np.arange(128)[:, None] + 2),
    )  # fmt: skip
    m.symbol[:256], m.frequency[:256] = np.arange(256), 1
    m.count[1] = m.room[1] = 256
    m.total[1] = 257
    m.v[:] = 256, 2, 0, 1, 1, 0, ORDER, 0, 0, 0, -ORDER - 1, 0
    m.r[RANGE] = 0xFFFFFFFF
    return m
