"""Conversion of photographs to image files without compression. Needs Pillow, which no other module here does."""

from __future__ import annotations

import importlib
import io
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

SIZES = [(768, 512), (512, 768), (640, 480), (800, 600)]


def pictures(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield raw images as (suffix, file) from one compressed picture.

    They are scaled down at least twofold, so that the blocks of JPEG are gone. Most are PPM, some BMP, grey PGM, 16-bit
    PGM and samples without a header. Raises OSError or ValueError for data that is no picture, and ImportError without
    Pillow.
    """
    try:
        image = importlib.import_module("PIL.Image")
    except ImportError as error:
        raise ImportError("decoding photographs wants Pillow: pip install pillow") from error
    rng = random.Random(zlib.crc32(name.encode(errors="surrogateescape")))
    with image.open(io.BytesIO(data)) as opened:
        if min(opened.size) < 900 or opened.size[0] * opened.size[1] > 90_000_000:
            return
        picture = opened.convert("RGB")
    for _ in range(2 if min(picture.size) < 2000 else 4):
        size = rng.choice(SIZES[:2] if rng.random() < 0.7 else SIZES)
        scale = rng.uniform(2.0, max(2.0, min(picture.size[0] / size[0], picture.size[1] / size[1])))
        box = [int(side * scale) for side in size]
        if box[0] > picture.size[0] or box[1] > picture.size[1]:
            size, box = (picture.size[0] // 2, picture.size[1] // 2), [picture.size[0], picture.size[1]]
        left, top = (rng.randint(0, picture.size[axis] - box[axis]) for axis in (0, 1))
        part = picture.resize(size, image.Resampling.LANCZOS, (left, top, left + box[0], top + box[1]))
        yield _encoded(np.asarray(part, np.uint8), rng.random())


def _encoded(pixels: Any, choice: float) -> tuple[str, bytes]:
    height, width, _ = pixels.shape
    grey = pixels @ np.array([299, 587, 114], np.int64)  # (height, width), 0 to 255000
    if choice < 0.65:
        return "ppm", b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes()
    if choice < 0.80:
        rows = np.zeros((height, (3 * width + 3) // 4 * 4), np.uint8)
        rows[:, : 3 * width] = pixels[::-1, :, ::-1].reshape(height, 3 * width)
        info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, rows.size, 2835, 2835, 0, 0)
        return "bmp", struct.pack("<2sIHHI", b"BM", 54 + rows.size, 0, 0, 54) + info + rows.tobytes()
    if choice < 0.90:
        return "pgm", b"P5\n%d %d\n255\n" % (width, height) + (grey // 1000).astype(np.uint8).tobytes()
    if choice < 0.95:
        return "pgm16", b"P5\n%d %d\n4095\n" % (width, height) + (grey * 4095 // 255000).astype(">u2").tobytes()
    return "raw16", (grey * 1023 // 255000).astype("<u2").tobytes()
