"""The fingerprint of a file (see `nnfs.mount.fingerprint`), from its content as it passes by."""

from __future__ import annotations

from hashlib import blake2b

from nnfs.proof import content_hash, file_hash

_AT_ONCE = 1 << 14  # hashes of holes


class Passing:
    """Takes a file's content and holes in order; at the end it has the fingerprint."""

    def __init__(self, chunk_size: int, size: int) -> None:
        self._chunk_size = chunk_size
        self._whole = file_hash(chunk_size, size)
        self._chunk = blake2b()
        self._filled = 0  # bytes of the chunk
        self._zeros = content_hash(bytes(chunk_size))

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(data)
        while view:
            piece = view[: self._chunk_size - self._filled]
            self._chunk.update(piece)
            self._filled += len(piece)
            view = view[len(piece) :]
            if self._filled == self._chunk_size:
                self._end_chunk()

    def skip(self, length: int) -> None:
        """Take a hole."""
        if self._filled:
            first = min(length, self._chunk_size - self._filled)
            self.update(bytes(first))
            length -= first
        whole, rest = divmod(length, self._chunk_size)
        while whole:
            count = min(whole, _AT_ONCE)
            self._whole.update(self._zeros * count)
            whole -= count
        self.update(bytes(rest))

    def digest(self) -> bytes:
        """Return the fingerprint of what was taken."""
        if self._filled:
            self._end_chunk()
        return self._whole.digest()

    def _end_chunk(self) -> None:
        self._whole.update(self._chunk.digest())
        self._chunk, self._filled = blake2b(), 0
