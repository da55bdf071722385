"""The hot tier: zstd, tried on a sample first so that incompressible data costs next to nothing."""

from __future__ import annotations

import threading

import zstandard

from nnfs.codec.base import ZSTD
from nnfs.errors import CodecError

LEVEL = 3
SAMPLE = 4096  # bytes; three of them are tried before a large chunk is compressed whole
SAMPLED_FROM = 32 * 1024
WORTH = 0.97  # of the plain size: a smaller gain is not worth a decompression per read


class Zstd:
    """zstd frames without content size and checksum: the block header has both. Thread-safe: one context per thread."""

    id = ZSTD
    name = "zstd"

    def __init__(self, level: int = LEVEL) -> None:
        self._level = level
        self._local = threading.local()

    def encode(self, plain: bytes) -> bytes | None:
        compressor = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = self._local.compressor = zstandard.ZstdCompressor(
                level=self._level, write_content_size=False, write_checksum=False
            )
        if len(plain) >= SAMPLED_FROM and not self._promising(compressor, plain):
            return None
        payload: bytes = compressor.compress(plain)
        return payload if len(payload) < len(plain) * WORTH else None

    @staticmethod
    def _promising(compressor: zstandard.ZstdCompressor, plain: bytes) -> bool:
        # zstd gives up on random data quickly by itself (12 us per 128 KiB here), but not on data that is
        # compressible in a few places or by its entropy alone; three samples cost 15 us.
        middle = len(plain) // 2
        sample = plain[:SAMPLE] + plain[middle : middle + SAMPLE] + plain[-SAMPLE:]
        return len(compressor.compress(sample)) < len(sample) * 0.99

    def decode(self, payload: bytes, plain_length: int) -> bytes:
        decompressor = getattr(self._local, "decompressor", None)
        if decompressor is None:
            decompressor = self._local.decompressor = zstandard.ZstdDecompressor()
        try:
            # max_output_size bounds the memory that a damaged payload can ask for.
            plain: bytes = decompressor.decompress(payload, max_output_size=plain_length, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CodecError(f"zstd: {error}") from error
        if len(plain) != plain_length:
            raise CodecError(f"zstd payload holds {len(plain)} bytes, not {plain_length}")
        return plain
