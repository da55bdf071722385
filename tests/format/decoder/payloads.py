"""Section 2: the codecs."""

from __future__ import annotations

import zstandard

from tests.format.decoder import cm, light, neural, ppm
from tests.format.decoder.models import Model
from tests.format.decoder.rans import Damaged


def decode(codec: int, payload: bytes, size: int, model: Model | None = None) -> bytes:
    """The `size` plain bytes of a payload."""
    if codec == 0:
        plain = payload
    elif codec == 1:
        plain = zstandard.ZstdDecompressor().decompress(payload, size)
    elif codec == 16 and model is not None:
        plain = neural.decode(payload, size, model)
    elif codec in (17, 21):
        plain = cm.decode(payload, size)
    elif codec == 19:
        plain = ppm.decode(payload, size)
    elif codec == 20:
        plain = light.decode(payload, size)
    else:
        raise Damaged(f"codec {codec}")
    if len(plain) != size:
        raise Damaged("not that many bytes")
    return plain
