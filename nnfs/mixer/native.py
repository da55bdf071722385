"""The mixer and its entropy coder in native code (`nnfs.kernels`), on the same states as numba's kernels."""

from __future__ import annotations

import hashlib
import os
from functools import cache

import numpy as np
from numpy.typing import NDArray

from nnfs.constants import OTHER_ENGINE, PRODUCT_VARIABLE
from nnfs.errors import CodecError
from nnfs.kernels import library as native
from nnfs.kernels.library import Coder, Library, Mixer, Past, address
from nnfs.mixer import fields, light, mixing
from nnfs.mixer.architecture import P_LANES
from nnfs.mixer.fieldstate import Fields, FieldState
from nnfs.mixer.histories import NEXT
from nnfs.mixer.lightstate import Light, LightState
from nnfs.mixer.logistic import COARSE, FINE, SQUASH, STRETCH
from nnfs.mixer.samplestate import Samples
from nnfs.mixer.state import MixState

MOST_LANES = 32  # of a chunk
TEST = (611, 3)  # bytes and lanes of the self-test: the last lane is shorter
DIGEST = "8749de037bb1576bcc2cd0db8e944f08"
LIGHT_DIGEST = "3b256b0eb5a744bfa9ba324cbabfe761"  # of codec 20
FIELDS_DIGEST = "e6422f7fdc42531af6ca1e11c940f070"  # of fields

Words = NDArray[np.uint8]


class Kernels:
    """The mixer's kernels at one level. Threads may share it, each with chunks of its own."""

    def __init__(self, library: Library, level: str) -> None:
        self.library, self.level = library, native.LEVELS.index(level)
        self._tables = native.room(library.calls.nnfs_tables_size())
        arrays = (
            SQUASH.astype(np.int32), STRETCH.astype(np.int16), COARSE.astype(np.int16), NEXT.astype(np.uint8),
            FINE.astype(np.int32),
        )  # fmt: skip
        library.calls.nnfs_tables(address(self._tables), *(address(array) for array in arrays))

    def mixer(self, state: MixState, c: int) -> Mixer:
        """Return row c of a state as a structure of C. The state must outlive it, and not be started anew meanwhile."""
        s = state.stack
        size, lanes, stride, bits, rate, last, limit, refined, begin = (int(n) for n in s.parameters[c])
        return Mixer(
            address(self._tables), size, lanes, stride, begin, 1 << bits, rate, last, limit, refined,
            *(address(field[c]) for field in (s.plain, s.table, s.maps, s.match_maps, s.weights, s.weights_last)),
            *(address(field[c]) for field in (s.refine, s.find, s.record)),
        )  # fmt: skip

    def fits(self, state: MixState, c: int) -> bool:
        """Return whether there is a kernel for the lanes that row c was started with."""
        return int(state.stack.parameters[c, P_LANES]) <= MOST_LANES

    def encode_path(self, state: MixState, c: int, network: NDArray[np.uint16], out: NDArray[np.uint16]) -> None:
        """Do as `mixing.encode_path`."""
        given = address(network) if network.size else None
        if self.library.calls.nnfs_mix_encode(self.level, self.mixer(state, c), given, address(out)):
            raise CodecError("mixer: an impossible chunk")

    def decode(
        self, state: MixState, c: int, states: NDArray[np.int64], words: Words, cursor: NDArray[np.int64]
    ) -> None:
        """Decode row c, whose coder has no network, into its `plain`."""
        mixer, coder = self.mixer(state, c), coder_of(states, words, cursor)
        columns = -(-mixer.size // mixer.lanes)
        if self.library.calls.nnfs_mix_decode(self.level, mixer, coder, 0, columns):
            raise CodecError("mixer: an impossible chunk")
        cursor[0] = coder.cursor

    def enter(self, state: MixState, c: int) -> None:
        """Do as `mixing.enter`: `state` has room for the dictionary only, and one lane."""
        mixer = self.mixer(state, c)
        mixer.size = mixer.lanes = 1
        if self.library.calls.nnfs_mix_enter(self.level, mixer):
            raise CodecError("mixer: an impossible dictionary")

    def enter_features(self, plain: Words, orders: NDArray[np.uint32], starts: NDArray[np.int32], bits: int) -> None:
        """Do as `nnfs.model.features.enter`: add a dictionary to empty tables, as one lane."""
        lane = np.zeros(5, np.uint64)
        past = Past(
            address(plain), plain.size, 1, 0, bits, address(orders), orders.shape[1], address(starts), address(lane)
        )
        if self.library.calls.nnfs_features_enter(past):
            raise CodecError("features: an impossible dictionary")

    def samples(self, s: Samples, out: NDArray[np.uint16]) -> None:
        """Do as `samples.encode_path`."""
        given = native.Samples(address(self._tables), *(address(field) for field in s))
        if self.library.calls.nnfs_samples(self.level, given, address(out), None):
            raise CodecError("samples: an impossible chunk")

    def decode_samples(self, s: Samples, states: NDArray[np.int64], words: Words, cursor: NDArray[np.int64]) -> None:
        """Decode all samples into `value`."""
        given = native.Samples(address(self._tables), *(address(field) for field in s))
        coder = coder_of(states, words, cursor)
        if self.library.calls.nnfs_samples(self.level, given, None, coder):
            raise CodecError("samples: an impossible chunk")
        cursor[0] = coder.cursor

    def light_encode(self, s: Light, out: NDArray[np.uint16], counts: NDArray[np.uint32] | None = None) -> None:
        """Do as `light.run` does to encode; count what followed each history of each context, (contexts, 256, 2)."""
        given = None if counts is None else address(counts)
        if self.library.calls.nnfs_light_encode(self.level, self._light(s), address(out), given):
            raise CodecError("light mixer: an impossible chunk")

    def light_decode(self, s: Light, states: NDArray[np.int64], words: Words, cursor: NDArray[np.int64]) -> None:
        """Decode into `plain`."""
        coder = coder_of(states, words, cursor)
        if self.library.calls.nnfs_light_decode(self.level, self._light(s), coder):
            raise CodecError("light mixer: an impossible chunk")
        cursor[0] = coder.cursor

    def _light(self, s: Light) -> native.Light:
        arrays = s.plain, s.pairs, s.table, s.match_map, s.weights, s.weights_last, s.refine, s.find
        return native.Light(address(self._tables), s.plain.size, s.table.size >> 4, *map(address, arrays))

    def fields(self, s: Fields, out: NDArray[np.uint16]) -> None:
        """Do as `fields.run` does to encode."""
        if self.library.calls.nnfs_fields(self.level, self._fields(s), address(out), None):
            raise CodecError("fields: an impossible chunk")

    def decode_fields(self, s: Fields, states: NDArray[np.int64], words: Words, cursor: NDArray[np.int64]) -> None:
        """Decode into `plain`."""
        coder = coder_of(states, words, cursor)
        if self.library.calls.nnfs_fields(self.level, self._fields(s), None, coder):
            raise CodecError("fields: an impossible chunk")
        cursor[0] = coder.cursor

    def _fields(self, s: Fields) -> native.Fields:
        numbers = (s.plain.size, *(int(n) for n in s.parameters))
        return native.Fields(address(self._tables), *numbers, *(address(field) for field in s[1:12]))

    def rans(self, plain: Words, lanes: int, probabilities: NDArray[np.uint16], states: NDArray[np.int64]) -> Words:
        """Return the words of a chunk whose bits have these probabilities; `states` become the final ones."""
        words = np.empty(16 * plain.size + 2, np.uint8)
        arguments = address(plain), plain.size, lanes, address(probabilities), address(states), states.size
        at = self.library.calls.nnfs_rans_encode(*arguments, address(words))
        if at < 0:
            raise CodecError("rANS: an impossible chunk")
        return words[at:]


def coder_of(states: NDArray[np.int64], words: Words, cursor: NDArray[np.int64]) -> Coder:
    """Return an entropy decoder as a structure of C, see `nnfs.codec.rans.start`."""
    return Coder(address(states), states.size, address(words), words.size, int(cursor[0]))


def digest(kernels: Kernels | None) -> str:
    """Return the digest of the probabilities that these kernels, or numba's, give for a chunk."""
    size, lanes = TEST
    noise = np.frombuffer(hashlib.shake_256(b"mixer").digest(3 * 8 * size), np.uint8)
    plain = bytes(noise[:size] % 7 + 97)
    plain = plain[: size // 2] + plain[: size - size // 2]  # the second half repeats the first
    columns = -(-size // lanes)
    network = np.resize(noise.astype(np.uint16) * 257 | 1, (columns, lanes, 8))
    state = MixState(1, size, lanes)
    found = hashlib.blake2b(digest_size=16)
    for own in (network, np.zeros((0, 0, 0), np.uint16)):
        state.start(0, plain, lanes, stride=0 if own.size else 5)
        out = np.zeros((columns, lanes, 8), np.uint16)
        if kernels:
            kernels.encode_path(state, 0, np.ascontiguousarray(own), out)
        else:
            mixing.encode_path(state.stack, 0, own, out)
        found.update(out.astype("<u2").tobytes())
    return found.hexdigest()


def light_digest(kernels: Kernels | None) -> str:
    """Return the digest of the probabilities that these kernels, or numba's, give for a chunk of codec 20."""
    noise = np.frombuffer(hashlib.shake_256(b"light").digest(TEST[0]), np.uint8)
    plain = bytes(noise % 7 + 97) + bytes(noise[:300] % 7 + 97)
    s, out = LightState().start(plain), np.zeros((len(plain), 8), np.uint16)
    if kernels:
        kernels.light_encode(s, out)
    else:
        light.run(s, out, np.zeros(2, np.int64), np.zeros(0, np.uint8), True)
    return hashlib.blake2b(out.astype("<u2").tobytes(), digest_size=16).hexdigest()


def fields_digest(kernels: Kernels | None) -> str:
    """Return the digest of the probabilities that these kernels, or numba's, give for chunks of fields."""
    noise = np.frombuffer(hashlib.shake_256(b"fields").digest(480), np.uint8).reshape(60, 8).copy()
    noise[:, 4:] = np.cumsum(noise[:, 0].astype("<u4")).astype("<u4").view(np.uint8).reshape(60, 4)
    noise[:, 1:4] = 0
    state, found = FieldState(), hashlib.blake2b(digest_size=16)
    for stride, width, skip, big in ((8, 4, 0, False), (8, 8, 3, True), (6, 3, 1, False), (7, 1, 0, False)):
        s, out = state.start(noise.tobytes(), stride, width, skip, big), np.zeros((noise.size, 8), np.uint16)
        if kernels:
            kernels.fields(s, out)
        else:
            fields.run(s, out, np.zeros(2, np.int64), np.zeros(0, np.uint8), True)
        found.update(out.astype("<u2").tobytes())
    return found.hexdigest()


@cache
def kernels() -> Kernels | None:
    """Return the mixer's kernels at the first level that passes the self-test, None for numba's.

    Raises `CodecError` for a forced level that fails it.
    """
    if os.environ.get(PRODUCT_VARIABLE) == OTHER_ENGINE:
        return None
    there = native.library()

    def is_sound(level: str) -> bool:
        own = Kernels(there, level) if there else None
        if own is None or digest(own) != DIGEST or light_digest(own) != LIGHT_DIGEST:
            return False
        return fields_digest(own) == FIELDS_DIGEST

    name = native.sound_level(is_sound, "mixer's kernels")
    return Kernels(there, name) if there and name else None
