"""The codecs that workers serve in tests of recompression: quick ones under the ids of the real ones, and failing ones.

Environment of a worker (`kit.Chaos` sets it): CHAOS_KILL=N dies at each N-th chunk or soon after, but not of a chunk
of which one has just died (two deaths fail it); CHAOS_WRONG and CHAOS_FAIL name the workers that decode something else,
or refuse to encode; CHAOS_SLOW is the seconds in which the neural codec decodes a chunk; CHAOS_BROKEN are the ids of
codecs that cannot be opened, and CHAOS_HOW says why, see `fail`. Chunks themselves can ask for trouble, see `obey`.
"""

from __future__ import annotations

import bz2
import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import md5
from pathlib import Path

from nnfs.codec.base import CM, CM_LIGHT, NEURAL, PPM, ColdCodec, Tell, nothing, untold
from nnfs.errors import CodecError, ModelMissing
from nnfs.workers.wire import NO_MODEL

SERVE = "tests.background.coding:Served"
WORKER = "CHAOS_WORKER"  # variable: the worker's name
NO_GAIN = b"no gain:"  # begins a chunk that no codec makes smaller
POLL_S = 0.01


def model_file(word: str, size: int = 20_000) -> bytes:
    """A model's file as far as the daemon looks at it. Its fingerprint tells the word."""
    header = json.dumps({"__metadata__": {"fingerprint": fingerprint(word).hex()}}).encode()
    return len(header).to_bytes(8, "little") + header + word.encode() * (size // len(word))


def text(seed: int, size: int = 20_000) -> bytes:
    """Text that bzip2 stores in a fifth less than zstd does, from some 16 KB on."""
    return b" ".join(random.Random(seed).choices(_WORDS, k=size // 5)).ljust(size, b".")[:size]


_WORDS = [bytes(random.Random(n).choices(b"abcdefghijklmnop", k=3 + n % 7)) for n in range(256)]


def fingerprint(word: str) -> bytes:
    """The fingerprint of `model_file`."""
    return word.encode().ljust(64, b"-")


def folder_of_models(path: Path) -> Path:
    """A folder like the one of the models that are shipped."""
    path.mkdir(exist_ok=True)
    (path / "default.safetensors").write_bytes(model_file("default"))
    return path


class Quick:
    """bzip2 for all codecs. The neural one writes down its model, the others waste some bytes, the quicker the more."""

    batch = 1 << 20

    def __init__(self, number: int, model: bytes) -> None:
        self.id, self.name = number, "quick"
        self._model = model[:8]
        name = os.environ.get(WORKER, "-")
        self._kill = int(os.environ.get("CHAOS_KILL", "0"))
        self._wrong = name in os.environ.get("CHAOS_WRONG", "").split("+")
        self._fail = name in os.environ.get("CHAOS_FAIL", "").split("+")
        self._slow = float(os.environ.get("CHAOS_SLOW", "0")) if number == NEURAL else 0.0
        self._done = 0

    @contextlib.contextmanager
    def _mortal(self, chunks: Sequence[bytes]) -> Iterator[None]:
        """Die in the middle of a batch whose turn it is."""
        if not self._kill:
            yield
            return
        folder = os.environ["CHAOS_MODELS"]
        struck = [os.path.join(folder, f"struck-{md5(chunk).hexdigest()}") for chunk in chunks]
        self._done += len(chunks)
        if self._done >= self._kill and not any(map(os.path.exists, struck)):
            for path in struck:
                os.close(os.open(path, os.O_CREAT))
            os.kill(os.getpid(), signal.SIGKILL)
        yield
        for path in struck:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def obey(self, plain: bytes, between: Callable[[], None]) -> None:
        """`gate:PATH` on the first line: encoding waits until that file exists; `gate16:PATH`: with codec 16.

        `die:`: the worker dies.
        """
        command, _, rest = plain.partition(b":")
        path = rest.partition(b"\n")[0]
        if command in (b"gate", b"gate%d" % self.id):
            with contextlib.suppress(OSError):
                os.close(os.open(path + b".reached", os.O_CREAT))
            while not os.path.exists(path):
                between()
                time.sleep(POLL_S)
        elif command == b"die":
            os.kill(os.getpid(), signal.SIGKILL)

    def encode(self, plain: bytes) -> bytes | None:
        if plain.startswith(NO_GAIN):
            return None
        return self._mark(len(plain)) + bz2.compress(plain, 2)

    def _mark(self, plain: int) -> bytes:
        """The first bytes of a payload: each rung saves more than a sixteenth of what the quicker one stores."""
        light = b"l" * (plain * 13 // 280)
        return {NEURAL: self._model, CM: b"c" * (plain // 32), CM_LIGHT: light, PPM: b"p" * (plain // 16)}[self.id]

    def decode(self, stored: bytes, plain_length: int) -> bytes:
        mark = self._mark(plain_length)
        if not stored.startswith(mark):
            raise CodecError("another model's payload")
        packed = stored[len(mark) :]
        try:
            plain = bz2.decompress(packed)
        except (OSError, ValueError) as error:
            raise CodecError(str(error)) from error
        return plain[:-1] + bytes([plain[-1] ^ 1]) if self._wrong else plain

    def encode_many(
        self, plains: Sequence[bytes], between: Callable[[], None] = nothing, tell: Tell = untold
    ) -> list[bytes | None]:
        found: list[bytes | None] = []
        if self._fail:
            raise CodecError("this worker encodes nothing")
        with self._mortal(plains):
            for plain in plains:
                self.obey(plain, between)
                found.append(self.encode(plain))
                between()
        return found

    def decode_many(
        self, payloads: Sequence[tuple[bytes, int]], between: Callable[[], None] = nothing, tell: Tell = untold
    ) -> list[bytes | CodecError]:
        found: list[bytes | CodecError] = []
        with self._mortal([stored for stored, _ in payloads]):
            for stored, length in payloads:
                time.sleep(self._slow)
                try:
                    found.append(self.decode(stored, length))
                except CodecError as error:
                    found.append(error)
                between()
        return found


def fail(how: str, codec: int) -> None:
    """Break a codec in one of the ways of real installations."""
    match how:
        case "missing":
            raise CodecError(f"codec {codec} needs torch, which is not installed")
        case "import":
            raise ImportError("libgomp.so.1: cannot open shared object file")
        case "bug":
            raise OSError("a library of another machine")
        case "self-test":
            raise CodecError("cpu does not compute what it should: the neural codec cannot run on it")
        case "model":
            raise ModelMissing("/presets/default.safetensors: the model's file is damaged")
        case "memory":
            raise MemoryError("weights")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)


class Served:
    """Codec 16, with any model that was sent, and the codecs without one."""

    def __init__(self, device: str, threads: int) -> None:
        self.device = device
        self.files: dict[bytes, bytes] = {}
        self._open: dict[tuple[int, bytes], Quick] = {}

    def names(self) -> dict[int, str]:
        return {NEURAL: "neural", CM: "cm", CM_LIGHT: "cm-light", PPM: "ppm"}

    def models(self) -> tuple[bytes, ...]:
        return tuple(self.files)

    def find(self, codec: int, model: bytes) -> ColdCodec:
        if str(codec) in os.environ.get("CHAOS_BROKEN", "").split("+"):
            fail(os.environ["CHAOS_HOW"], codec)
        if codec == NEURAL and model not in self.files:
            raise ModelMissing(f"no model {model.hex()[:16]}")
        if codec not in self.names() or (codec != NEURAL and model != NO_MODEL):
            raise CodecError(f"unknown codec {codec}")
        return self._open.setdefault((codec, model), Quick(codec, model))

    def load(self, model: bytes, data: bytes) -> None:
        if model.hex().encode() not in data:
            raise CodecError("not this fingerprint")
        self.files[model] = data

    def warm(self) -> None:
        pass
