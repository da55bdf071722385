"""Codecs that workers serve in tests of fsck and scrub: a cold payload is the chunk backwards. Some of them fail."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence

from nnfs.codec.base import ColdCodec, Tell, nothing, untold
from nnfs.errors import CodecError, ModelMissing

HERE = "tests.fs.coldcodec"


class Backwards:
    """The codec."""

    id, name, batch = 17, "backwards", 1 << 20

    def __init__(self, wrong: bool = False) -> None:
        self.wrong = wrong

    def encode(self, plain: bytes) -> bytes | None:
        return plain[::-1]

    def decode(self, payload: bytes, plain_length: int) -> bytes:
        if len(payload) != plain_length:
            raise CodecError("not that long")
        return payload[::-1].swapcase() if self.wrong else payload[::-1]

    def encode_many(
        self, plains: Sequence[bytes], between: Callable[[], None] = nothing, tell: Tell = untold
    ) -> list[bytes | None]:
        return [self.encode(plain) for plain in plains]

    def decode_many(
        self, payloads: Sequence[tuple[bytes, int]], between: Callable[[], None] = nothing, tell: Tell = untold
    ) -> list[bytes | CodecError]:
        return [self.decode(*item) for item in payloads]


class Honest:
    """Codecs 16, with any model that was sent, and 17."""

    def __init__(self, device: str, threads: int) -> None:
        self.device = device
        self.files: dict[bytes, bytes] = {}

    def names(self) -> dict[int, str]:
        return {}

    def models(self) -> tuple[bytes, ...]:
        return tuple(self.files)

    def find(self, codec: int, model: bytes) -> ColdCodec:
        if any(model) and model not in self.files:
            raise ModelMissing(f"no model {model.hex()[:16]}")
        return Backwards()

    def load(self, model: bytes, data: bytes) -> None:
        self.files[model] = data

    def warm(self) -> None:
        pass


class ErringDevice(Honest):
    """Only the CPU computes as it should."""

    def find(self, codec: int, model: bytes) -> ColdCodec:
        return Backwards(wrong=self.device != "cpu")


class RefusingDevice(Honest):
    """Only the CPU takes the payloads."""

    def find(self, codec: int, model: bytes) -> ColdCodec:
        return Refusing() if self.device != "cpu" else Backwards()


class Refusing(Backwards):
    """A codec that takes every payload for a damaged one."""

    def decode(self, payload: bytes, plain_length: int) -> bytes:
        raise CodecError("a device's bad day")


class DyingDevice(Honest):
    """Only the CPU survives."""

    def find(self, codec: int, model: bytes) -> ColdCodec:
        return Backwards() if self.device == "cpu" else Dying(self.device, 1).find(codec, model)


class NotInstalled(Honest):
    """Raises as a worker without numba."""

    def find(self, codec: int, model: bytes) -> ColdCodec:
        raise CodecError("codec backwards needs numba, which is not installed")


class Dying(Honest):
    """Ends its process, as the OOM killer does."""

    def find(self, codec: int, model: bytes) -> ColdCodec:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError
