"""Checks that the quick cold codecs share: their engines write the same, read it, and refuse damage alike."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import pytest

from nnfs.codec import NAMES
from nnfs.codec.base import Codec
from nnfs.errors import CodecError
from nnfs.workers.catalogue import Catalogue
from nnfs.workers.wire import NO_MODEL
from tests.model.golden import sample

SOURCE = random.Random(6)
CASES = {
    "text": sample(20000, 3),
    "one symbol": b"a" * 9000,
    "all symbols": bytes(range(256)) * 20,
    "skewed": bytes(SOURCE.choices(range(256), [1 / (i + 1) for i in range(256)], k=20000)),
    "two symbols": bytes(SOURCE.choices(b"ab", [9, 1], k=9000)),
    "noise that comes back": SOURCE.randbytes(3000) * 4,
    "a few bytes": b"a" * 40,
}
DAMAGED = ("text", "skewed", "noise that comes back")


@dataclass(frozen=True)
class Subject:
    """A codec with its engines: `module.kernels` chooses one, and the values of `engines` take its place."""

    codec: Codec
    module: ModuleType
    engines: Mapping[str, Callable[[], object]]

    def use(self, engine: str, monkeypatch: pytest.MonkeyPatch) -> str:
        """Let the codec run on an engine."""
        monkeypatch.setattr(self.module, "kernels", self.engines[engine])
        return engine

    def results(self, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> list[object]:
        """Return the results of all engines; in place of a `CodecError` its text."""
        found: list[object] = []
        for engine in self.engines:
            with monkeypatch.context() as patch:
                self.use(engine, patch)
                try:
                    found.append(work())
                except CodecError as error:
                    found.append(str(error))
        return found

    def check_round_trip(self, plain: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        """All engines make one payload, which is smaller, and all of them read it."""
        made = self.results(monkeypatch, lambda: self.codec.encode(plain))
        payload = made[0]
        assert isinstance(payload, bytes)
        assert all(other == payload for other in made)
        assert len(payload) < len(plain)
        read = self.results(monkeypatch, lambda: self.codec.decode(payload, len(plain)))
        assert all(one == plain for one in read)

    def check_damage(self, plain: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        """All engines end alike on damaged payloads, and none returns the chunk."""
        source = random.Random(7)
        payload = self.codec.encode(plain)
        assert payload is not None
        for _ in range(30):
            bad = bytearray(payload)
            for _ in range(source.randrange(1, 4)):
                bad[source.randrange(1, len(bad))] = source.randrange(256)
            cut = source.choice([len(bad), source.randrange(1, len(bad))])
            bad = bad[:cut] + source.randbytes(source.choice([0, 9]))
            ends = self.results(monkeypatch, partial(self.codec.decode, bytes(bad), len(plain)))
            assert all(end == ends[0] for end in ends)
            assert ends[0] != plain or bytes(bad) == payload

    def check_impossible(self, payload: bytes, largest: int) -> None:
        """An impossible payload or length is a `CodecError`."""
        for data, size in ((payload, 100), (payload, 0), (payload, -1), (payload, largest + 1)):
            with pytest.raises(CodecError):
                self.codec.decode(data, size)

    def check_largest(self, size: int) -> None:
        """A chunk of the largest size comes back, and a larger one is not encoded."""
        plain = bytes(SOURCE.choices(range(40), k=size))
        payload = self.codec.encode(plain)
        assert payload is not None
        assert self.codec.decode(payload, size) == plain
        assert self.codec.encode(plain + b"a") is None

    def check_served(self) -> None:
        """Workers serve the codec, under its id and its name."""
        number, name = self.codec.id, self.codec.name
        codec = Catalogue().find(number, NO_MODEL)
        plain = CASES["text"]
        (payload,) = codec.encode_many([plain])
        assert payload is not None
        assert codec.decode_many([(payload, len(plain))]) == [plain]
        assert NAMES[number] == name
        assert Catalogue().resolve(name) == (number, NO_MODEL)
