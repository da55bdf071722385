"""The quick cold codec: prediction by partial matching, variant H, of order 8.

Payload: a byte, 0 or `X86` (the chunk is what `nnfs.codec.x86` made of it), and a stream of the range coder
(section 12 of FORMAT.md). It runs in native code where that was compiled, else in numba's.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from nnfs.codec import x86
from nnfs.codec.base import PPM
from nnfs.errors import CodecError
from nnfs.kernels import library as native
from nnfs.kernels.library import Library, address
from nnfs.mixer import native as mixer
from nnfs.mixer import ppm, ppmmodel

PLAIN, X86 = 0, 16
LARGEST = 1 << 18  # bytes of a chunk: 465 times as many are set aside, and touched as far as they are used

Bytes = npt.NDArray[np.uint8]


def kernels() -> Library | None:
    """Return the library that is used, None for numba's kernels."""
    found = mixer.kernels()
    return found.library if found else None


class PartialMatching:
    """PPMd variant H, with memory for any chunk. Thread-safe: memory is kept per thread."""

    id = PPM
    name = "ppm"

    def __init__(self) -> None:
        self._local = threading.local()

    def _room(self, library: Library, size: int) -> Bytes:
        needed = library.calls.nnfs_ppm_size(size)
        room: Bytes | None = getattr(self._local, "room", None)
        if room is None or room.size < needed:
            room = self._local.room = native.zeros((library.calls.nnfs_ppm_size(max(size, 1 << 17)),), np.uint8)
        return room

    def encode(self, plain: bytes) -> bytes | None:
        if not 2 < len(plain) <= LARGEST:
            return None
        code = x86.absolute(plain)
        given, stream = np.frombuffer(code or plain, np.uint8), np.zeros(len(plain) - 2, np.uint8)
        library = kernels()
        if library:
            room = self._room(library, given.size)
            size = library.calls.nnfs_ppm_encode(
                address(room), room.size, address(given), given.size, address(stream), stream.size
            )
        else:
            size = ppm.encode(ppmmodel.start(given.size, stream), given)
        return None if size < 0 else bytes([X86 if code else PLAIN]) + stream[:size].tobytes()

    def decode(self, payload: bytes, plain_length: int) -> bytes:
        if not payload or not 0 < plain_length <= LARGEST:
            raise CodecError("ppm: empty payload or impossible length")
        if payload[0] not in (PLAIN, X86):
            raise CodecError(f"ppm: unknown kind {payload[0]}")
        stream, plain = np.frombuffer(payload, np.uint8)[1:], np.zeros(plain_length, np.uint8)
        library = kernels()
        if library:
            room = self._room(library, plain_length)
            is_whole = not library.calls.nnfs_ppm_decode(
                address(room), room.size, address(stream), stream.size, address(plain), plain.size
            )
        else:
            is_whole = ppm.decode(ppmmodel.start(plain_length, stream.copy()), plain)
        if not is_whole:
            raise CodecError("ppm: the stream does not hold so many bytes")
        return x86.relative(plain.tobytes()) if payload[0] == X86 else plain.tobytes()
