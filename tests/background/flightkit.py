"""Workers in place of real ones, and an encoder that uses them, for tests of work in flight."""

from __future__ import annotations

from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

from nnfs.background.encoder import ColdEncoder
from nnfs.config import Options
from nnfs.constants import Policy
from nnfs.fs.policy import Rules
from nnfs.store.schema import Block

RULES = Rules(Policy.AUTO)
PLAIN = b"plain " * 20_000


def block(number: int = 1, plain: bytes = PLAIN) -> Block:
    return Block(1, 0, len(plain), 30_000, 0, 0, number, 1, blake2b(plain).digest())


def coder(workers: Any = None, **options: Any) -> ColdEncoder:
    models = SimpleNamespace(wanted=lambda _: b"", default=lambda: b"")
    return ColdEncoder(workers, models, Options(**options))  # type: ignore[arg-type]
