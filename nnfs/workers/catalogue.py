"""The codecs and models that one process can serve, opened when they are first needed."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Protocol

from nnfs.codec import CODECS, NAMES
from nnfs.codec.base import CM, CM_LIGHT, NEURAL, PPM, ColdCodec, coder_of
from nnfs.constants import PRODUCT_VARIABLE
from nnfs.errors import CodecError, ModelMissing
from nnfs.workers.threaded import ThreadedCodec
from nnfs.workers.wire import NO_MODEL

log = logging.getLogger(__name__)


class Served(Protocol):
    """The codecs and models of a worker: one object per process, made by `Served(device, threads)`.

    `device`, `names` and `models` may be called by any thread at any time and return at once; the rest by one thread.
    """

    @property
    def device(self) -> str:
        """Return the device that the work runs on; before torch is imported, the name that was asked for."""

    def names(self) -> dict[int, str]:
        """Return the names of the codecs by id."""

    def models(self) -> tuple[bytes, ...]:
        """Return the fingerprints of the models that are shipped or loaded."""

    def find(self, codec: int, model: bytes) -> ColdCodec:
        """Return a codec with its model. Raises `CodecError` for an unknown id, `ModelMissing` for a fingerprint."""

    def load(self, model: bytes, data: bytes) -> None:
        """Keep a model's file for `find`. Raises `CodecError` when it does not have this fingerprint."""

    def warm(self) -> None:
        """Do now the work that the first work item would wait for: imports, self-test of the device, default model."""


PRESETS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "model", "presets")
SUFFIX = ".safetensors"
CANNOT_LOOK = 3  # exit status of `main`


class Catalogue:
    """The hot codecs, and the cold ones with the models that are shipped or were loaded."""

    def __init__(self, device: str = "auto", threads: int = 1) -> None:
        self.device = device
        self.threads = threads
        self._files: dict[bytes, bytes] = {}  # models that were sent here: fingerprint to file
        self._open: dict[tuple[int, bytes], ColdCodec] = {}
        self._cold: dict[int, tuple[str, Callable[[bytes], ColdCodec]]] = {
            NEURAL: ("neural", self._open_neural),
            CM: ("cm", self._open_cm),
            PPM: ("ppm", self._open_ppm),
            CM_LIGHT: ("cm-light", self._open_cm_light),
        }

    def names(self) -> dict[int, str]:
        return NAMES | {number: name for number, (name, _) in self._cold.items()}

    def models(self) -> tuple[bytes, ...]:
        return tuple(self._files)

    def resolve(self, name: str) -> tuple[int, bytes]:
        """Return (codec, model) for a name of `names`, a preset or CODEC:FILE. Raises `KeyError`."""
        numbers = {known: number for number, known in self.names().items()}
        codec, _, path = name.partition(":")
        if codec in numbers:
            return numbers[codec], self._load_file(path) if path else NO_MODEL
        if name in presets():
            return NEURAL, self._load_file(os.path.join(PRESETS, name + SUFFIX))
        raise KeyError(f"no codec {name}; there are: {', '.join([*numbers, *presets()])}")

    def file(self, model: bytes) -> bytes | None:
        """Return a model's file, if `resolve` or `load` has seen it."""
        return self._files.get(model)

    def find(self, codec: int, model: bytes) -> ColdCodec:
        codec = coder_of(codec)
        key = codec, model
        if key not in self._open:
            if codec in CODECS:
                self._open[key] = ThreadedCodec(CODECS[codec], self.threads)
            elif codec in self._cold:
                self._open[key] = self._opened(*self._cold[codec], model)
            else:
                raise CodecError(f"unknown codec {codec}: written by a newer nnfs?")
        return self._open[key]

    def _opened(self, name: str, opener: Callable[[bytes], ColdCodec], model: bytes) -> ColdCodec:
        try:
            return opener(model)
        except ImportError as error:
            if os.environ.pop(PRODUCT_VARIABLE, ""):  # somebody wanted another engine than the one that runs here
                log.warning("codec %s: %s: the usual engine is used", name, error)
                return self._opened(name, opener, model)
            if not isinstance(error, ModuleNotFoundError) or not error.name:
                raise CodecError(f"codec {name} cannot be opened: {type(error).__name__}: {error}") from error
            raise CodecError(f"codec {name} needs {error.name}, which is not installed") from error

    def load(self, model: bytes, data: bytes) -> None:
        if fingerprint(data) != model:
            raise CodecError("a model's file that does not have the fingerprint it was sent for")
        self._files[model] = data

    def warm(self) -> None:
        for number in self._cold:
            try:
                self.find(number, NO_MODEL)
            except CodecError as why:  # the other codecs are worth a start
                log.warning("%s", why)

    def _load_file(self, path: str) -> bytes:
        with open(path, "rb") as file:
            data = file.read()
        try:
            model = fingerprint(data)
        except ModelMissing as error:
            raise ModelMissing(f"{path}: {error}") from error
        self._files[model] = data
        return model

    def _open_cm(self, _model: bytes) -> ColdCodec:
        from nnfs.codec.cm import ContextMixing

        return ThreadedCodec(ContextMixing(), self.threads)

    def _open_ppm(self, _model: bytes) -> ColdCodec:
        from nnfs.codec.ppm import PartialMatching

        return ThreadedCodec(PartialMatching(), self.threads)

    def _open_cm_light(self, _model: bytes) -> ColdCodec:
        from nnfs.codec.cmlight import LightMixing

        return ThreadedCodec(LightMixing(), self.threads)

    def _open_neural(self, model: bytes) -> ColdCodec:
        why = ""
        for name in presets() if model not in self._files else ():
            try:
                sent = self._load_file(os.path.join(PRESETS, name + SUFFIX))
                model = sent if model == NO_MODEL else model  # the first preset is the default
            except (ModelMissing, OSError) as error:  # another one may be the one that is wanted
                why = f"{why}; {error}"
        if model not in self._files:
            none = f"no model {model.hex()[:16]}" if any(model) else "no model is shipped with this nnfs"
            raise ModelMissing(none + why)
        from nnfs.codec.neural import Neural
        from nnfs.model.weights import load_weights

        codec = Neural(load_weights(self._files[model]), self.threads, self.device)
        self.device = codec.device
        return codec


def presets() -> list[str]:
    """Return the names of the models that are shipped, the default one first."""
    names = sorted(name[: -len(SUFFIX)] for name in _listed(PRESETS) if name.endswith(SUFFIX))
    return sorted(names, key=lambda name: name != "default")


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def stated_fingerprint(path: str) -> bytes:
    """Return the fingerprint that a model's file states, without reading the weights. Loading the file checks it.

    Raises `ModelMissing`.
    """
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return bytes.fromhex(header["__metadata__"]["fingerprint"])
    except (OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise ModelMissing(f"{path} is no model file: {error}") from error


def fingerprint(data: bytes) -> bytes:
    """Return the fingerprint of a model's file, computed from its content. Raises `ModelMissing` for other bytes."""
    from nnfs.model.weights import load_weights

    return load_weights(data).fingerprint()


def main(arguments: list[str]) -> int:
    """Print the fingerprint of a model's file, the first N bytes of standard input. For a delta the base follows them.

    Return 1 for bytes that are no model, `CANNOT_LOOK` where this machine cannot load models.
    """
    try:
        from nnfs.model import delta

        data, base = sys.stdin.buffer.read(int(arguments[0])), sys.stdin.buffer.read()
        if delta.is_delta(data):
            data = delta.compose(base, data)
        sys.stdout.write(fingerprint(data).hex() + "\n")
    except CodecError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except ImportError as error:
        lacks = error.name or error
        sys.stderr.write(f"looking at models needs {lacks}, which is not installed: run tools/run again\n")
        return CANNOT_LOOK
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
