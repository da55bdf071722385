# mypy: disable-error-code="no-untyped-def,no-any-return"
"""A chunk and its bit stream: the mixer (`nnfs.mixer.mixing`) joined to the entropy coder, column by column."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nnfs.codec import rans
from nnfs.mixer import native
from nnfs.mixer.architecture import P_BEGIN, P_LANES, P_SIZE
from nnfs.mixer.compiling import njit
from nnfs.mixer.mixing import begin, encode_path, half, learn, one, predict
from nnfs.mixer.networkbits import branch
from nnfs.mixer.state import MixState

NO_NETWORK = np.zeros((0, 0, 0), np.uint16)
NO_FREQUENCIES = np.zeros((0, 256), np.uint32)


def encode(state: MixState, c: int, network: npt.NDArray[np.uint16] = NO_NETWORK, states: int = 1) -> bytes:
    """Return the stream of the chunk that row c was started with.

    network: the network's `net_path` (columns, lanes, 8), if there is one.
    """
    size, lanes, start = (int(state.stack.parameters[c, i]) for i in (P_SIZE, P_LANES, P_BEGIN))
    probabilities = np.zeros((-(-size // lanes), lanes, 8), np.uint16)
    kernels = native.kernels()
    if kernels and kernels.fits(state, c):
        kernels.encode_path(state, c, network, probabilities)
    else:
        encode_path(state.stack, c, network, probabilities)
    return rans.encode(state.stack.plain[c, start : start + size], lanes, probabilities, states)


@njit(cache=True, nogil=True)
def decode_column(stack, c, t, frequencies, states, words, cursor):
    """Decode column t of chunk c into its `plain` and learn it.

    frequencies: (lanes, 256) uint32, of the network, or (0, 256); states, words, cursor: of the chunk's stream, see
    `rans.start`."""
    s = one(stack, c)
    size, lanes = s.parameters[P_SIZE], s.parameters[P_LANES]
    columns = (size + lanes - 1) // lanes
    active = (size - t + columns - 1) // columns
    network = frequencies.shape[0] > 0
    so_far, totals = s.partial[0], s.partial[1]
    for lane in range(active):
        begin(s, columns, lane, t)
        so_far[lane] = 1
        if network:
            total = np.int64(0)
            for i in range(256):
                total += np.int64(frequencies[lane, i])
            totals[lane] = total
    for k in range(8):
        for lane in range(active):
            c0 = so_far[lane]
            if k == 4:
                half(s, lane, c0)
            ones, own = np.int64(0), np.int64(0)
            if network:
                ones, own = branch(frequencies[lane], c0, k, totals[lane])
            p = predict(s, lane, k, c0, own)
            bit = rans.decode_bit(states, lane % states.size, p, words, cursor)
            if network:
                totals[lane] = ones if bit else totals[lane] - ones
            so_far[lane] = c0 << 1 | bit
    for lane in range(active):
        s.plain[s.parameters[P_BEGIN] + lane * columns + t] = so_far[lane] & 255
    for lane in range(active):
        learn(s, columns, lane, t)


@njit(cache=True, nogil=True)
def _decode_all(stack, c, states, words, cursor, frequencies):
    parameters = stack.parameters[c]
    columns = (parameters[P_SIZE] + parameters[P_LANES] - 1) // parameters[P_LANES]
    for t in range(columns):
        decode_column(stack, c, t, frequencies, states, words, cursor)


def decode(state: MixState, c: int, stream: bytes, states: int = 1) -> bytes:
    """Return the bytes of a stream without a network; row c was started with their number. Raises `CodecError`."""
    values, words, cursor = rans.start(stream, states)
    kernels = native.kernels()
    if kernels and kernels.fits(state, c):
        kernels.decode(state, c, values, words, cursor)
    else:
        _decode_all(state.stack, c, values, words, cursor, NO_FREQUENCIES)
    rans.finish(values, words, cursor)
    plain: bytes = state.stack.plain[c, : int(state.stack.parameters[c, P_SIZE])].tobytes()
    return plain
