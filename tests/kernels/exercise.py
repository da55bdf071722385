"""``python -m tests.kernels.exercise VARIANT``: golden payloads and damage through every level of one library.

NNFS_FULL: longer samples and more of them. A program of its own, so that it can run under AddressSanitizer
(`test_sanitized`). It prints what it did.
"""

from __future__ import annotations

import os
import random
import sys
from unittest import mock

import numpy as np

from nnfs.codec import neural
from nnfs.codec.cm import ContextMixing, _encode_numbers
from nnfs.codec.cmlight import LightMixing
from nnfs.codec.fieldlayout import Fields
from nnfs.codec.layout import Layout
from nnfs.codec.neural import Neural
from nnfs.codec.ppm import PartialMatching
from nnfs.errors import CodecError
from nnfs.kernels import library as native_library
from nnfs.mixer import native
from nnfs.mixer.lightstate import LightState
from nnfs.mixer.native import Kernels
from nnfs.mixer.state import MixState
from nnfs.model import selftest
from nnfs.model.native import NativeModel
from tests.kernels.kit import library
from tests.model.golden import sample

FULL = bool(os.environ.get("NNFS_FULL"))
ROUNDS = 8 if FULL else 2
BATCHES = ([300], [1], [400, 2, 300, 33], [5], [64, 64, 64]) if FULL else ([70, 2, 33], [1])
SIZE = 400 if FULL else 150  # bytes for the context mixing

TUNE = np.frombuffer((np.sin(np.arange(90) / 9) * 9000).astype("<i2").tobytes() + b"!", np.uint8)
LAYOUT = Layout(2, 1, 0, 0, True, False, 0)


def payloads(codec: Neural) -> list[bytes]:
    """Return payloads of batches of several shapes; all of them were decoded again."""
    made = []
    for sizes in BATCHES:
        plains = [sample(size, size) for size in sizes]
        found = codec._encode([(plain, False) for plain in sorted(plains, key=len, reverse=True)], lambda: None)
        jobs = [(p, len(plain)) for p, plain in zip(found, sorted(plains, key=len, reverse=True), strict=True)]
        assert codec.decode_many(jobs) == sorted(plains, key=len, reverse=True)
        made += found
    return made


def damage(
    codec: Neural | ContextMixing | PartialMatching | LightMixing, payload: bytes, size: int, rng: random.Random
) -> None:
    bad = bytearray(payload)
    for _ in range(rng.randrange(1, 5)):
        bad[rng.randrange(len(bad))] = rng.randrange(256)
    try:
        codec.decode(bytes(bad[: rng.randrange(1, len(bad) + 1)]), rng.choice([1, 7, size, size + 1, 2 * size]))
    except CodecError:
        pass


def wrong_arguments(kernels: Kernels, model: NativeModel) -> None:
    """Every entry point refuses numbers that cannot be."""
    calls, level = kernels.library.calls, kernels.level
    engine = model.engine(2)
    f = selftest.features(1, 2)
    given = native_library.Features(*(native_library.address(field) for field in f))
    for lanes, columns in ((0, 1), (3, 1), (1, 3), (-1, 1), (1, -1)):
        assert calls.nnfs_forward(level, model.network, engine.state, given, lanes, columns)
    assert calls.nnfs_forward(99, model.network, engine.state, given, 1, 1)
    state = MixState(1, 64, 1)
    state.start(0, b"a" * 64, 1)
    out = np.zeros((64, 1, 8), np.uint16)
    for field, value in (
        ("size", 0),
        ("size", -1),
        ("lanes", 0),
        ("lanes", 33),
        ("lines", 3),
        ("begin", -1),
        ("stride", -1),
        ("rate", 1 << 40),
    ):
        mixer = kernels.mixer(state, 0)
        setattr(mixer, field, value)
        assert calls.nnfs_mix_encode(level, mixer, None, native_library.address(out)), field
    mixer = kernels.mixer(state, 0)
    states, words, cursor = np.zeros(1, np.int64), np.zeros(0, np.uint8), np.zeros(1, np.int64)
    for change in ({"width": 0}, {"width": 999}, {"cursor": 1}, {"cursor": -1}, {"size": -1}):
        coder = native.coder_of(states, words, cursor)
        for field, value in change.items():
            setattr(coder, field, value)
        assert calls.nnfs_mix_decode(level, mixer, coder, 0, 64), change
    coder = native.coder_of(states, words, cursor)
    assert calls.nnfs_mix_decode(level, mixer, coder, 0, 65)
    assert calls.nnfs_mix_decode(level, mixer, coder, -1, 4)


def partial_matching(kernels: Kernels) -> None:
    """Round trips, damage and impossible arguments of codec 19."""
    ppm, rng, calls = PartialMatching(), random.Random(4), kernels.library.calls
    for plain in (sample(3000, 2), bytes(4000), rng.randbytes(600) * 3, bytes(range(256)) * 9):
        payload = ppm.encode(plain)
        assert payload is not None
        assert ppm.decode(payload, len(plain)) == plain
        for _ in range(4 * ROUNDS):
            damage(ppm, payload, len(plain), rng)
        damage(ppm, b"\0" + rng.randbytes(2000), 2000, rng)
    assert ppm.encode(rng.randbytes(2000)) is None
    room, given, out = np.zeros(1 << 16, np.uint8), np.zeros(64, np.uint8), np.zeros(64, np.uint8)
    there, plain_at, out_at = (native_library.address(array) for array in (room, given, out))
    assert all(calls.nnfs_ppm_size(size) == -1 for size in (0, -1, 1 << 40))
    for size, room_size, out_size in ((0, 1 << 16, 64), (-1, 1 << 16, 64), (64, 100, 64), (64, 1 << 17, -1)):
        assert calls.nnfs_ppm_encode(there, room_size, plain_at, size, out_at, out_size) == -1
        assert calls.nnfs_ppm_decode(there, room_size, out_at, out_size, plain_at, size)


def light_mixing(kernels: Kernels) -> None:
    """Round trips, damage and impossible arguments of codec 20."""
    codec, rng, calls, level = LightMixing(), random.Random(5), kernels.library.calls, kernels.level
    for plain in (sample(1500, 2), bytes(900), rng.randbytes(300) * 3):
        payload = codec.encode(plain)
        assert payload is not None
        assert codec.decode(payload, len(plain)) == plain
        for _ in range(2 * ROUNDS):
            damage(codec, payload, len(plain), rng)
        damage(codec, b"\0" + rng.randbytes(700), 800, rng)
    s = LightState().start(64)
    out, states, words = np.zeros((64, 8), np.uint16), np.zeros(1, np.int64), np.zeros(0, np.uint8)
    for field, value in (("size", 0), ("size", -1), ("size", 1 << 40), ("lines", 3), ("lines", 0), ("lines", 1 << 30)):
        given, coder = kernels._light(s), native.coder_of(states, words, states)
        setattr(given, field, value)
        assert calls.nnfs_light_encode(level, given, native_library.address(out), None), field
        assert calls.nnfs_light_decode(level, given, coder), field
    for change in ({"width": 0}, {"cursor": 1}, {"cursor": -1}, {"size": -1}):
        coder = native.coder_of(states, words, states)
        for field, value in change.items():
            setattr(coder, field, value)
        assert calls.nnfs_light_decode(level, kernels._light(s), coder), change


def fields(kernels: Kernels) -> None:
    """Round trips, damage and impossible arguments of records of numbers."""
    codec, rng, calls, level = ContextMixing(), random.Random(6), kernels.library.calls, kernels.level
    plain = b"".join(bytes([n % 9, 0, n & 255, n >> 8, 7, 0]) for n in range(60)) + sample(40, 2)
    for layout in (Fields(6, 2), Fields(6, 3, 2, True, True), Fields(8, 8, 7), Fields(65535), Fields(1)):
        payload = codec._encode_fields(plain, layout)
        assert codec.decode(payload, len(plain)) == plain
        for _ in range(2 * ROUNDS):
            damage(codec, payload, len(plain), rng)
    s, out = codec._fields().start(64, 8, 4, 0, False), np.zeros((64, 8), np.uint16)
    states, words = np.zeros(1, np.int64), np.zeros(8, np.uint8)
    wrong = {"size": (0, -1, 1 << 40), "lines": (0, 3, 1 << 30), "stride": (0, -4, 6, 1 << 20), "width": (0, 9, 3)}
    for field, values in (wrong | {"skip": (-1, 4)}).items():
        for value in values:
            given, coder = kernels._fields(s), native.coder_of(states, words, np.zeros(1, np.int64))
            setattr(given, field, value)
            assert calls.nnfs_fields(level, given, native_library.address(out), None), field
            assert calls.nnfs_fields(level, given, None, coder), field
    assert calls.nnfs_fields(level, kernels._fields(s), None, None)


def main(variant: str) -> None:
    there = library(variant)
    wanted: list[bytes] = []
    for level in there.levels:
        kernels = Kernels(there, level)
        with mock.patch.object(native, "kernels", lambda own=kernels: own):
            weights = selftest.weights()
            model = NativeModel(weights, level, there)
            assert native.digest(kernels) == native.DIGEST, level
            assert native.light_digest(kernels) == native.LIGHT_DIGEST, level
            assert native.fields_digest(kernels) == native.FIELDS_DIGEST, level
            assert selftest.digest(model) == selftest.DIGEST, level
            with mock.patch.object(neural, "open_model", lambda *_, own=model: own):
                codec, cm = Neural(weights), ContextMixing()
            found = payloads(codec)
            plain = sample(SIZE, 1)
            found += [cm.encode(plain) or b"", cm.encode(bytes(range(40)) * 30) or b"", _encode_numbers(TUNE, LAYOUT)]
            wanted = wanted or found
            assert found == wanted, level
            assert cm.decode(found[-3], SIZE) == plain
            assert cm.decode(found[-1], TUNE.size) == TUNE.tobytes()
            rng = random.Random(3)
            for _ in range(ROUNDS):
                damage(codec, found[0], max(BATCHES[0]), rng)
                damage(codec, found[-4], max(BATCHES[-1]), rng)
                damage(cm, found[-3], SIZE, rng)
                damage(cm, found[-1], TUNE.size, rng)
            wrong_arguments(kernels, model)
            partial_matching(kernels)
            light_mixing(kernels)
            fields(kernels)
        print(f"{level}: {len(found)} payloads, {4 * ROUNDS} damaged", flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
