"""The middle cold codec: context mixing with few contexts, whose bit histories have fixed meanings.

Payload: a byte, 0 or `X86` (the chunk is what `nnfs.codec.x86` made of it), and a stream of one state (sections 4
and 13 of FORMAT.md). It is native code where that was compiled, else numba's.
"""

from __future__ import annotations

import threading

import numpy as np

from nnfs.codec import rans, x86
from nnfs.codec.base import CM_LIGHT
from nnfs.errors import CodecError
from nnfs.mixer import light, native
from nnfs.mixer.lightstate import LARGEST, LightState

PLAIN, X86 = 0, 16
NOTHING, NO_PATH = np.zeros(0, np.uint8), np.zeros((0, 8), np.uint16)


class LightMixing:
    """Context mixing for quick reads. Thread-safe: memory is kept per thread."""

    id = CM_LIGHT
    name = "cm-light"

    def __init__(self) -> None:
        self._local = threading.local()

    def _state(self) -> LightState:
        state: LightState | None = getattr(self._local, "state", None)
        if state is None:
            state = self._local.state = LightState()
        return state

    def encode(self, plain: bytes) -> bytes | None:
        if not 0 < len(plain) <= LARGEST:
            return None
        code = x86.absolute(plain)
        s, path = self._state().start(code or plain), np.empty((len(plain), 8), np.uint16)
        kernels = native.kernels()
        if kernels:
            kernels.light_encode(s, path)
        else:
            light.run(s, path, np.zeros(2, np.int64), NOTHING, True)
        payload = bytes([X86 if code else PLAIN]) + rans.encode(s.plain, 1, path[:, None])
        return payload if len(payload) < len(plain) else None

    def decode(self, payload: bytes, plain_length: int) -> bytes:
        if not payload or not 0 < plain_length <= LARGEST:
            raise CodecError("cm-light: empty payload or impossible length")
        if payload[0] not in (PLAIN, X86):
            raise CodecError(f"cm-light: unknown kind {payload[0]}")
        states, words, cursor = rans.start(payload[1:])
        s, kernels = self._state().start(plain_length), native.kernels()
        if kernels:
            kernels.light_decode(s, states, words, cursor)
        else:
            both = np.array([states[0], 0])
            light.run(s, NO_PATH, both, words, False)
            states[0], cursor[0] = both
        rans.finish(states, words, cursor)
        plain: bytes = s.plain.tobytes()
        return x86.relative(plain) if payload[0] == X86 else plain
