"""A cold block that is swapped, and whose model is dropped, after a reader has loaded it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from nnfs.errors import ModelMissing
from nnfs.store import schema
from nnfs.store.blocks import load_block
from tests.blockio.test_commit import CHUNK
from tests.blockio.test_reading import ColdVolume, start
from tests.workers.kit import payload

__all__ = ["start"]  # a fixture

Start = Callable[..., AbstractAsyncContextManager[ColdVolume]]
PLAIN = b"retired " * (CHUNK // 8)


def swap(volume: ColdVolume, number: int, stored: bytes, codec: int | None = None, model: int = 0) -> None:
    """Swap a block's payload as recompression does, under another payload number."""
    with volume.store.write() as txn:
        block = load_block(txn, number)
        assert block is not None
        block.payload += 1_000_000
        volume.recompress(txn, schema.KEY.pack(number), block, stored, model)
        if codec is not None:
            block.codec = codec
            txn.put("block", schema.KEY.pack(number), block.pack(schema.KEY.pack(number)))


@pytest.mark.parametrize("to", ["another model", "hot", "nothing"])
async def test_it_is_loaded_again(start: Start, to: str) -> None:
    async with start() as volume:
        file = await volume.add(b"file", PLAIN + os.urandom(10))
        number = volume.number(file)
        swap(volume, number, payload(PLAIN), model=7)
        asked: list[int] = []

        def fingerprint(model: int) -> bytes:
            asked.append(model)
            if len(asked) == 1 and to == "another model":
                swap(volume, number, payload(PLAIN))
            elif len(asked) == 1 and to == "hot":
                swap(volume, number, PLAIN, codec=0)
            raise ModelMissing(f"model {model} is not in the store")

        volume.cold._model = fingerprint
        if to == "nothing":
            with pytest.raises(ModelMissing):
                await volume.reader.read(file, 0, CHUNK)
        else:
            assert await volume.reader.read(file, 0, CHUNK) == PLAIN
        assert asked == [7]
