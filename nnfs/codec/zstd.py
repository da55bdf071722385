"""The codec of the hot tier: zstd, tried on a sample first so that incompressible data costs next to nothing."""

from __future__ import annotations

import threading

import zstandard

from nnfs.codec.base import ZSTD
from nnfs.errors import CodecError

LEVEL = 3
SAMPLE_LEVEL = 1
PROBE = -10  # finds whatever repeats in 128 KiB within 14-55 us, where level 3 takes up to 500 us to find nothing
SAMPLE = 4096  # bytes; two of them are tried before a large chunk is compressed whole
SAMPLED_FROM = 32 * 1024
POOR = 0.88  # of the sample's size
WORTH = 0.9  # of the plain size: a smaller gain is not worth a decompression per read, and the cold tier comes later


class Zstd:
    """zstd frames without content size and checksum, which the block header has. Thread-safe: contexts per thread."""

    id = ZSTD
    name = "zstd"

    def __init__(self) -> None:
        self._local = threading.local()

    def _compressor(self, level: int) -> zstandard.ZstdCompressor:
        made = self._local.__dict__.setdefault("compressors", {})
        if level not in made:
            made[level] = zstandard.ZstdCompressor(level=level, write_content_size=False, write_checksum=False)
        compressor: zstandard.ZstdCompressor = made[level]
        return compressor

    def encode(self, plain: bytes) -> bytes | None:
        if len(plain) >= SAMPLED_FROM and not self._promising(plain):
            return None
        payload = self._compressor(LEVEL).compress(plain)
        return payload if len(payload) < len(plain) * WORTH else None

    def _promising(self, plain: bytes) -> bool:
        # Level 1 sees what Huffman coding alone gains (base64, samples of sound), which the probe's level does not try.
        sample = plain[:SAMPLE] + plain[len(plain) // 2 : len(plain) // 2 + SAMPLE]
        return (
            len(self._compressor(SAMPLE_LEVEL).compress(sample)) < len(sample) * POOR
            or len(self._compressor(PROBE).compress(plain)) < len(plain) * WORTH
        )

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
