"""x86 addresses made absolute can always be undone."""

from __future__ import annotations

import random
import struct

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nnfs.codec import x86

OPCODES = [
    b"\xe8",
    b"\xe9",
    b"\x0f\x84",
    b"\xff\x15",
    b"\xff\x25",
    b"\x48\x8b\x05",
    b"\x4c\x8d\x3d",
    b"\xe8\xe8",
    b"\x0f\xe8",
]


@settings(derandomize=True, max_examples=300)
@given(
    st.lists(st.one_of(st.sampled_from([*OPCODES, b"\0", b"\xff", b"\0\0\0\0"]), st.binary(max_size=6)), max_size=60)
)
def test_inverse(pieces: list[bytes]) -> None:
    plain = b"".join(pieces)
    array = np.frombuffer(plain, np.uint8).copy()
    x86.convert(array, 1)
    assert x86.relative(array.tobytes()) == plain


def test_calls_of_one_function_look_alike() -> None:
    source, code = random.Random(1), bytearray()
    for _ in range(200):
        code += b"\x90" * source.randrange(3, 20) + b"\xe8" + struct.pack("<i", 5000 - len(code))
    found = x86.absolute(bytes(code))
    assert found is not None
    assert len({found[i + 1 : i + 5] for i in range(len(found) - 8) if found[i] == 0xE8}) <= 60  # it was 200
    assert x86.relative(found) == code


def test_text_is_left_alone() -> None:
    assert x86.absolute("Ein Text, 一段文字, текст\n".encode() * 500) is None
    assert x86.absolute(b"") is None
