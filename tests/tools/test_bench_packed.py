"""tools/bench_packed: finding deflate streams, and making them again."""

from __future__ import annotations

import gzip
import io
import struct
import sys
import zipfile
import zlib

import pytest

from tests.harness import REPO

sys.path.insert(0, str(REPO / "tools" / "lib"))

from bench import packed

TEXT = b"".join(b"line %d of a text that is packed\n" % n for n in range(300))


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.txt", TEXT)
        packed.writestr("b.txt", TEXT[::-1])
    return file.getvalue()


def image() -> bytes:
    data = zlib.compress(TEXT, 9)
    parts = [(b"IHDR", bytes(13)), (b"IDAT", data[:50]), (b"IDAT", data[50:]), (b"IEND", b"")]
    packed_parts = [struct.pack(">I", len(body)) + name + body + bytes(4) for name, body in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed_parts)


def document() -> bytes:
    return b"%PDF-1.5\n1 0 obj\n<<>>\nstream\n" + zlib.compress(TEXT) + b"\nendstream\n"


@pytest.mark.parametrize(
    ("data", "plain"),
    [
        (zipped(), [TEXT, TEXT[::-1]]),
        (gzip.compress(TEXT), [TEXT]),
        (image(), [TEXT]),
        (document(), [TEXT]),
        (b"neither", []),
    ],
)
def test_deflate_streams_are_found_and_made_again(data: bytes, plain: list[bytes]) -> None:
    found = list(packed.streams(data))
    assert [content for _, content in found] == plain
    assert all(packed.made_again(raw, content) for raw, content in found)


def test_what_another_program_has_packed_is_not_made_again() -> None:
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    raw = packer.compress(TEXT[:500]) + packer.flush(zlib.Z_FULL_FLUSH) + packer.compress(TEXT[500:]) + packer.flush()
    assert not packed.made_again(raw, TEXT)


def test_the_frame_of_a_jpeg() -> None:
    baseline = b"\xff\xd8\xff\xe0\0\4ab\xff\xc0\0\x11\x08\0\x64\1\0\3\1\x22\0\2\x11\1\3\x11\1"
    assert packed.frame(baseline) == (False, 256, 100, 16)
    assert packed.frame(baseline.replace(b"\xff\xc0", b"\xff\xc2"))[0]
