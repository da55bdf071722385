"""The samples that codecs are measured with are what this generator has made, byte for byte."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from nnfs.background import calibration
from nnfs.background.calibration import Kind, sample
from nnfs.constants import DEFAULT_CHUNK_SIZE
from nnfs.errors import CodecUnavailable


def made(kind: Kind) -> bytes:
    chance = random.Random(0)
    if kind is Kind.SAMPLES:  # 16 bits, two channels: two slow waves and some noise
        waves = (abs(n % 400 - 200) * 60 + abs(n % 91 - 45) * 40 - 6000 for n in range(DEFAULT_CHUNK_SIZE // 4))
        values = [wave + chance.randrange(-64, 64) for wave in waves]
        return b"".join(struct.pack("<hh", value, value * 3 // 4 + chance.randrange(-32, 32)) for value in values)
    if kind is Kind.RECORDS:
        records = (
            struct.pack("<IHHQII", n * 7, n % 12, chance.randrange(500), n * 60, chance.randrange(1 << 16), 0)
            for n in range(DEFAULT_CHUNK_SIZE // 24 + 1)
        )
        return b"".join(records)[:DEFAULT_CHUNK_SIZE]
    if kind is Kind.X86:
        targets = [chance.randrange(1 << 20) for _ in range(40)]
        code = bytearray()
        while len(code) < DEFAULT_CHUNK_SIZE:
            code += b"\x48\x89\xc7\x31\xc0" + bytes(chance.choices(b"\x55\x53\x5d\xc3\x90\x8b\x45\xf8", k=6))
            code += b"\xe8" + struct.pack("<i", chance.choice(targets) - len(code) - 5)
        return bytes(code[:DEFAULT_CHUNK_SIZE])
    words = [bytes(chance.choices(b"abcdefghijklmnoprstuvwy", k=chance.randrange(1, 9))) for _ in range(600)]
    return b" ".join(chance.choices(words, k=DEFAULT_CHUNK_SIZE // 4))[:DEFAULT_CHUNK_SIZE]


@pytest.mark.parametrize("kind", Kind)
def test_samples_are_as_they_were_made(kind: Kind) -> None:
    assert sample(kind) == made(kind)
    assert len(sample(kind)) == DEFAULT_CHUNK_SIZE


@pytest.mark.parametrize("content", [None, b"", b"no xz", b"\xfd7zXZ\0\0\x0a"])
def test_a_sample_that_is_missing_or_damaged_puts_codecs_out(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "__file__", str(tmp_path / "calibration.py"))
    (tmp_path / "samples").mkdir()
    if content is not None:
        (tmp_path / "samples" / "text.xz").write_bytes(content)
    with pytest.raises(CodecUnavailable, match="install nnfs again"):
        calibration.sample.__wrapped__(Kind.TEXT)
