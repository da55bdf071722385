"""Memory for the states of `nnfs.mixer.mixing`, of some chunks at once."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from nnfs.kernels.library import zeros
from nnfs.mixer.architecture import FIND_BITS, INPUTS, MATCHES, P_TABLE, PARAMETERS, REFINED, SETS, WEIGHTS, Mix
from nnfs.mixer.contexts import CONTEXTS, RECORD
from nnfs.mixer.startvalues import CERTAIN, StartValues, start_values

TABLE_LARGEST = 18  # 4 MB a chunk


class Past(Protocol):
    """Content that lies before a chunk, and the mixer's tables as it leaves them (`nnfs.model.dictionary`)."""

    size: int
    lines: int
    plain: npt.NDArray[np.uint8]
    table: npt.NDArray[np.uint8]
    find: npt.NDArray[np.int32]


def table_bits(size: int, largest: int = TABLE_LARGEST) -> int:
    """Return the binary logarithm of the lines of the table for a chunk of `size` bytes: about 4 lines a byte."""
    return min(max((size * 4 - 1).bit_length(), 10), largest)


class MixState:
    """Memory for `chunks` chunks of up to `size` bytes and `lanes` lanes, about 5 MB a chunk; it is used repeatedly.

    `stack` goes to the kernels; `start` makes one row ready for a chunk. Rows are independent: threads may work on
    different ones."""

    def __init__(
        self,
        chunks: int,
        size: int = 1 << 17,
        lanes: int = 32,
        largest: int = TABLE_LARGEST,
        dictionary: Past | None = None,
    ) -> None:
        self.size, self.largest, self.dictionary = size, largest, dictionary
        n = chunks
        begin, bits = (dictionary.size, dictionary.lines) if dictionary else (0, table_bits(size, largest))
        self.stack = Mix(
            zeros((n, begin + size), np.uint8),
            zeros((n, 16 << bits), np.uint8),
            zeros((n, CONTEXTS, 256), np.uint32),
            zeros((n, MATCHES, 512), np.uint32),
            zeros((n, WEIGHTS, INPUTS), np.int32),
            zeros((n, 256, SETS), np.int32),
            zeros((n, REFINED, CERTAIN), np.uint32),
            zeros((n, MATCHES, 1 << FIND_BITS), np.int32),
            zeros((n, lanes, RECORD), np.int64),
            zeros((n, lanes, CONTEXTS), np.int64),
            zeros((n, lanes, 2 * CONTEXTS), np.int64),
            zeros((n, lanes, 8, INPUTS), np.int32),
            zeros((n, lanes, 8, CONTEXTS), np.uint8),
            zeros((n, lanes, 8, 16), np.int32),
            zeros((n, 2, lanes), np.int64),
            zeros((n, PARAMETERS), np.int64),
        )

    def start(
        self,
        c: int,
        plain: bytes | int,
        lanes: int = 1,
        stride: int = 0,
        values: StartValues | None = None,
    ) -> None:
        """Make row c ready to encode `plain`, or to decode that many bytes.

        values: the start values; without them, those stored for a mixer without a network.
        """
        s = self.stack
        size = plain if isinstance(plain, int) else len(plain)
        values = values or start_values()
        d = self.dictionary
        begin, bits = (d.size, d.lines) if d else (0, table_bits(size, self.largest))
        s.parameters[c] = (size, lanes, stride, bits, *values.rates(lanes), begin)
        s.plain[c, begin : begin + size] = 0 if isinstance(plain, int) else np.frombuffer(plain, np.uint8)
        if d:
            s.plain[c, :begin] = d.plain
            s.table[c] = d.table
            s.find[c] = d.find
        else:
            s.table[c, : 16 << int(s.parameters[c, P_TABLE])] = 0
            s.find[c] = 0
        s.maps[c] = values.maps
        s.match_maps[c] = values.match_maps
        s.weights[c] = values.weights
        s.weights_last[c] = values.weights_last
        s.refine[c] = values.refine
        s.record[c] = 0
