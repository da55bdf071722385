"""The codecs by name, all with one interface: they code lists of chunks and of payloads.

Settings of the classical ones: zstd: one frame with content size, no checksum; xz: preset 9e, .xz container with CRC64;
PPMd: variant H, order 6, 16 MB, the raw stream; brotli: quality 11, lgwin 24.
"""

from __future__ import annotations

import bz2
import lzma
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.table import Missing
from nnfs.errors import CodecError
from nnfs.workers.catalogue import Catalogue

Payload = bytes | None  # None: does not become smaller, so it is stored as it is


class Simple:
    """A codec that takes chunks one by one."""

    at_once = 1

    def __init__(self, encode: Callable[[bytes], Payload], decode: Callable[[bytes, int], bytes]) -> None:
        self._encode, self._decode = encode, decode

    def encode(self, plains: Sequence[bytes]) -> list[Payload]:
        return [self._encode(plain) for plain in plains]

    def decode(self, payloads: Sequence[tuple[bytes, int]]) -> list[bytes]:
        return [self._decode(payload, length) for payload, length in payloads]


class Batched:
    """A cold codec of nnfs: all chunks of a path at once."""

    at_once = 1 << 30

    def __init__(self, codec: Any) -> None:
        self._codec = codec

    def encode(self, plains: Sequence[bytes]) -> list[Payload]:
        return list(self._codec.encode_many(list(plains)))

    def decode(self, payloads: Sequence[tuple[bytes, int]]) -> list[bytes]:
        plains = self._codec.decode_many(list(payloads))
        for plain in plains:
            if isinstance(plain, Exception):
                raise plain
        return list(plains)


def _raw() -> Simple:
    return Simple(lambda plain: plain, lambda payload, length: payload[:length])


def _zstd(level: int) -> Simple:
    import zstandard

    coder, decoder = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
    return Simple(coder.compress, lambda payload, length: decoder.decompress(payload, max_output_size=length))


def _xz() -> Simple:
    return Simple(
        lambda plain: lzma.compress(plain, check=lzma.CHECK_CRC64, preset=9 | lzma.PRESET_EXTREME),
        lambda payload, _length: lzma.decompress(payload),
    )


def _bzip2() -> Simple:
    return Simple(lambda plain: bz2.compress(plain, 9), lambda payload, _length: bz2.decompress(payload))


def _ppmd() -> Simple:
    import pyppmd

    order, memory = 6, 16 << 20

    def encode(plain: bytes) -> bytes:
        encoder = pyppmd.Ppmd7Encoder(order, memory)
        return bytes(encoder.encode(plain) + encoder.flush())

    def decode(payload: bytes, length: int) -> bytes:
        decoder = pyppmd.Ppmd7Decoder(order, memory)
        plain = decoder.decode(payload, length)
        if len(plain) < length:  # the last symbols may need bytes that the encoder did not have to write
            plain += decoder.decode(b"\0", length - len(plain))
        return bytes(plain)

    return Simple(encode, decode)


def _brotli() -> Simple:
    import brotli

    return Simple(
        lambda plain: bytes(brotli.compress(plain, quality=11, lgwin=24)),
        lambda payload, _length: bytes(brotli.decompress(payload)),
    )


def _zpaq() -> Simple:
    """zpaq's best method. Its journal is not counted: that is an archive of nothing."""
    if not shutil.which("zpaq"):
        raise Missing("the program zpaq is not installed (apt-get install zpaq)")
    kept: dict[bytes, bytes] = {}

    def run(plain: bytes, archive: bytes = b"") -> bytes:
        """Return the archive of a chunk, or with an archive what is in it."""
        with TemporaryDirectory() as folder:
            chunk, packed = Path(folder, "chunk"), Path(folder, "a.zpaq")
            if archive:
                packed.write_bytes(archive)
                subprocess.run(["zpaq", "x", "a.zpaq"], cwd=folder, check=True, capture_output=True)
                return chunk.read_bytes()
            chunk.write_bytes(plain)
            subprocess.run(["zpaq", "a", "a.zpaq", "chunk", "-m5"], cwd=folder, check=True, capture_output=True)
            return packed.read_bytes()

    journal = len(run(b""))

    def encode(plain: bytes) -> bytes:
        whole = run(plain)
        kept[whole[journal:]] = whole
        return whole[journal:]

    return Simple(encode, lambda payload, _length: run(b"", kept[payload]))


CLASSICAL: dict[str, Callable[[], Simple]] = {
    "raw": _raw,
    "zstd-3": lambda: _zstd(3),
    "zstd-19": lambda: _zstd(19),
    "xz": _xz,
    "bzip2": _bzip2,
    "ppmd": _ppmd,
    "brotli": _brotli,
    "zpaq": _zpaq,
}


def named(name: str, device: str, threads: int) -> Simple | Batched:
    """Return the codec of this name, ready to code. Raises `Missing`."""
    if name in CLASSICAL:
        try:
            return CLASSICAL[name]()
        except ImportError as error:
            raise Missing(f"{error.name} is not installed (pip install '.[bench]')") from error
    catalogue = Catalogue(device, threads)
    try:
        codec: Any = catalogue.find(*catalogue.resolve(name))
    except KeyError as error:
        raise Missing(error.args[0]) from error
    except (OSError, CodecError) as error:
        raise Missing(str(error)) from error
    return Batched(codec)
