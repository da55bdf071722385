"""The codecs and models that one process can serve, opened when they are first needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from nnfs.codec import CODECS, NAMES
from nnfs.codec.base import Codec
from nnfs.codec.wire import NO_MODEL
from nnfs.errors import CodecError, ModelMissing


class Served(Protocol):
    """What a worker asks for: one object per process, made by `Served(device, threads)`.

    `device`, `names` and `models` are asked by any thread at any time and answer at once; the rest by one thread.
    """

    @property
    def device(self) -> str:
        """What the work runs on, as far as that is known: the name asked for until torch has been imported."""

    def names(self) -> dict[int, str]:
        """Return the codecs by id."""

    def models(self) -> tuple[bytes, ...]:
        """Return the fingerprints of the models at hand."""

    def find(self, codec: int, model: bytes) -> Codec:
        """Return a codec with its model. Raises `CodecError` for an unknown id, `ModelMissing` for a fingerprint."""

    def load(self, model: bytes, data: bytes) -> None:
        """Take in a model's file. Raises `CodecError` when it does not have this fingerprint."""

    def warm(self) -> None:
        """Do now what the first job would wait for: imports, the self-test of this device, the default model."""


Opener = Callable[["Catalogue", bytes], Codec]  # with the fingerprint; imports what it needs when it is called
COLD: dict[int, tuple[str, Opener]] = {}  # id: name, and how it is opened


class Catalogue:
    """The hot codecs and those in `COLD`."""

    def __init__(self, device: str = "auto", threads: int = 1) -> None:
        self.device = device
        self.threads = threads
        self.files: dict[bytes, bytes] = {}  # models that were sent here: fingerprint to file
        self._open: dict[tuple[int, bytes], Codec] = {}

    def names(self) -> dict[int, str]:
        return NAMES | {number: name for number, (name, _) in COLD.items()}

    def models(self) -> tuple[bytes, ...]:
        return tuple(self.files)

    def named(self, name: str, model: bytes = NO_MODEL) -> Codec:
        """Return the codec of this name. Raises `KeyError`."""
        for number, known in self.names().items():
            if known == name:
                return self.find(number, model)
        raise KeyError(f"no codec named {name}; there are: {', '.join(self.names().values())}")

    def find(self, codec: int, model: bytes) -> Codec:
        if codec in CODECS:
            return CODECS[codec]
        if codec not in COLD:
            raise CodecError(f"unknown codec {codec}: written by a newer nnfs?")
        key = codec, model
        if key not in self._open:
            try:
                self._open[key] = COLD[codec][1](self, model)
            except ImportError as error:
                raise CodecError(f"codec {COLD[codec][0]} needs {error.name}, which is not installed") from error
        return self._open[key]

    def load(self, model: bytes, data: bytes) -> None:
        raise ModelMissing(f"no codec takes models yet ({model.hex()[:16]})")

    def warm(self) -> None:
        for number in COLD:
            self.find(number, NO_MODEL)
