"""Codecs for the tests of workers: what a chunk says is what happens to it."""

from __future__ import annotations

import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence

from nnfs.codec import progress
from nnfs.codec.base import ColdCodec, Tell, nothing, untold
from nnfs.errors import CodecError, ModelMissing

FAKE = 200
SERVE = "tests.workers.kit:Fake"
BABBLE = {  # devices whose workers begin with this
    "garbage": b"Traceback (most recent call last)",
    "newer": struct.pack("<IB8sH", 11, 1, b"nnfswire", 3),
}
MARK = b"#"  # a payload is this and the chunk backwards


def payload(plain: bytes) -> bytes:
    """Return the payload that `encode` makes of a chunk."""
    return MARK + plain[::-1]


def die() -> None:
    """End this process, as the OOM killer does."""
    os.kill(os.getpid(), signal.SIGKILL)


class Reversing:
    """Turns chunks round. Chunks that begin with a command and a colon make it misbehave."""

    id = FAKE
    name = "fake"
    batch = 100

    def __init__(self, device: str = "") -> None:
        self.decoded = 0
        self.wrong, self.stuck = device == "wrong", device == "stuck"

    def obey(self, plain: bytes, company: int, between: Callable[[], None]) -> None:
        command, _, rest = plain.partition(b":")
        if self.stuck:
            signal.pause()
        match command:
            case b"exit":
                os.write(2, b"last words\n")
                os._exit(3)
            case b"gate":  # a FIFO: wait until the test opens its other end
                os.close(os.open(rest, os.O_RDONLY))
            case b"until-decoded":
                before = self.decoded
                while self.decoded == before:
                    between()
            case b"between":
                while True:
                    between()
            case b"hang":
                signal.pause()
            case b"variable":
                raise CodecError(os.environ.get(os.fsdecode(rest), "not set"))
            case b"scheduler":
                raise CodecError(f"policy {os.sched_getscheduler(0)}, leader {os.getsid(0) == os.getpid()}")
        self.spend(command, rest)
        self.fail(command, rest, company)

    def spend(self, command: bytes, rest: bytes) -> None:
        match command:
            case b"count":  # columns, for some seconds, while it sleeps
                for _ in range(int(rest) * 20):
                    time.sleep(0.05)
                    progress.beat()
            case b"compute":  # for some seconds of CPU time, without a word
                end = time.process_time() + int(rest)
                while time.process_time() < end:
                    pass

    def fail(self, command: bytes, rest: bytes, company: int) -> None:
        match command:
            case b"die":
                die()
            case b"die-unless-alone" if company > 1:
                die()
            case b"die-once":  # a file: whoever can create it dies
                try:
                    os.close(os.open(rest, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    return
                die()
            case b"bug":
                raise ZeroDivisionError("a bug")
            case b"memory":
                raise MemoryError("too much")
            case b"memory-unless-alone" if company > 1:
                raise MemoryError("too much at once")
            case b"lacks":
                raise ModuleNotFoundError("No module named 'numba'", name="numba")
            case b"refused":
                raise CodecError("no chunk of mine")

    def encode(self, plain: bytes) -> bytes | None:
        return self.encode_many([plain])[0]

    def decode(self, stored: bytes, plain_length: int) -> bytes:
        raise NotImplementedError

    def encode_many(
        self, plains: Sequence[bytes], between: Callable[[], None] = nothing, tell: Tell = untold
    ) -> list[bytes | None]:
        payloads: list[bytes | None] = []
        for plain in plains:
            self.obey(plain, len(plains), between)
            payloads.append(None if plain.startswith(b"no-gain") else payload(plain))
            if plain.startswith(b"told"):
                tell(len(payloads) - 1, payloads[-1])
        return payloads

    def decode_many(
        self, payloads: Sequence[tuple[bytes, int]], between: Callable[[], None] = nothing, tell: Tell = untold
    ) -> list[bytes | CodecError]:
        plains: list[bytes | CodecError] = []
        for stored, _ in payloads:
            if stored.startswith(MARK):
                plain = stored[:0:-1]
                self.obey(plain, len(payloads), between)
                plains.append(plain.swapcase() if self.wrong else plain)
            else:
                plains.append(CodecError("no mark"))
            self.decoded += 1
        return plains


class Fake:
    """The codecs that a worker serves."""

    def __init__(self, device: str, threads: int) -> None:
        if device == "broken":
            raise SystemExit("no such device")
        if device in BABBLE:
            os.write(int(sys.argv[sys.argv.index("--fd") + 1]), BABBLE[device])
        self.device = device
        self.threads = threads
        self.codec = Reversing(device)
        self.files: dict[bytes, bytes] = {}

    def names(self) -> dict[int, str]:
        return {FAKE: "fake"}

    def models(self) -> tuple[bytes, ...]:
        return tuple(self.files)

    def find(self, codec: int, model: bytes) -> ColdCodec:
        if self.device == "missing":
            raise CodecError("codec fake needs torch, which is not installed")
        if codec != FAKE:
            raise CodecError(f"unknown codec {codec}")
        if any(model) and model not in self.files:
            raise ModelMissing(f"no model {model.hex()[:16]}")
        return self.codec

    def load(self, model: bytes, data: bytes) -> None:
        if data == b"die":
            die()
        if data == b"bad":
            raise CodecError("not this fingerprint")
        self.files[model] = data

    def warm(self) -> None:
        os.write(2, b"warm\n")
