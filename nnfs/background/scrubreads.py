"""Reads of a scrub, for threads: slices of the block table, and the models."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field

from nnfs import codec
from nnfs.errors import BlockDamaged, StoreDamaged
from nnfs.proof import wrong_payload
from nnfs.store import modelfiles, schema
from nnfs.store.blocks import load_block
from nnfs.store.env import Store
from nnfs.store.schema import TOTAL_KEY, Block, Total
from nnfs.workers.ladder import decode_hot

SLICE_S, SLICE_BLOCKS = 0.02, 64  # of one look at the store, whichever comes first
BACK = 64  # numbers before the first that are read again: a seek in a page (of 30 keys) with a damaged key is misled


@dataclass(slots=True)
class Look:
    """The result of one slice."""

    next: int  # number of the first block behind it
    blocks: int = 0
    plain: int = 0  # bytes, by sound headers, but for those of `cold`
    damaged: list[tuple[int, Block | None, bytes, str]] = field(default_factory=list)  # number, stored bytes, why
    cold: list[tuple[int, Block, bytes]] = field(default_factory=list)  # to be decoded
    sound: list[int] = field(default_factory=list)  # of those that were said to be damaged
    is_last: bool = False


def look_at(store: Store, first: int, deep: bool, suspects: Collection[int] = ()) -> Look:
    """Check some blocks from number `first` on. Those in `suspects` are decoded even if not `deep`.

    Raises `StoreDamaged` for damaged pages.
    """
    look, is_sound = Look(first), False
    until = time.monotonic() + SLICE_S
    with store.read() as snapshot:
        for key, record in snapshot.range("block", schema.KEY.pack(max(0, first - BACK))):
            # Do not go on behind a damaged header: its number may be wrong, and would lead past others, or back.
            if is_sound and (look.blocks >= SLICE_BLOCKS or time.monotonic() >= until):
                return look
            if len(key) != schema.KEY.size:
                continue  # fsck removes it
            number: int = schema.KEY.unpack(key)[0]
            block, payload, is_sound = None, b"", False
            decode = deep or number in suspects
            try:
                block, is_sound = Block.unpack(key, record), number >= first
                if not is_sound:
                    continue  # seen before
                look.next = number + 1
                payload = snapshot.payload(block.payload, block.stored)
                _check(number, block, payload, deep=decode)
                if decode and block.codec >= codec.FIRST_COLD:
                    look.cold.append((number, block, payload))
                    look.blocks += 1
                    continue
                if decode:
                    look.sound.append(number)
            except BlockDamaged as error:
                look.damaged.append((number, block, payload, str(error)))
            except StoreDamaged as error:  # a header, or pages of the engine, where no repair may be written
                look.damaged.append((number, None, b"", str(error)))
            look.blocks += 1
            look.plain += block.plain if block is not None else 0
    look.is_last = True
    return look


def _check(number: int, block: Block, payload: bytes, *, deep: bool) -> None:
    """Check a block's stored bytes and, if it is to be decoded and hot, its content. Raises `BlockDamaged`."""
    wrong = wrong_payload(payload, block.stored, block.xxh3)
    if wrong:
        raise BlockDamaged(number, wrong)
    if deep and block.codec < codec.FIRST_COLD:
        decode_hot(number, block, payload)


def totals(store: Store) -> tuple[int, dict[int, int]]:
    """Return about how many blocks the store has, and their plain bytes by codec."""
    plain: dict[int, int] = {}
    with store.read() as snapshot:
        try:
            for key, record in snapshot.range("total", b""):
                number = TOTAL_KEY.unpack(key)[0]
                plain[number] = plain.get(number, 0) + Total.unpack(key, record).plain
        except StoreDamaged:
            pass  # statistics
    return store.entries("block"), plain


def payload_of(store: Store, number: int) -> int | None:
    """Return the number under which a block's stored bytes lie now, None when it is gone."""
    with store.read() as snapshot:
        try:
            block = load_block(snapshot, number)
        except StoreDamaged:
            return None
    return None if block is None else block.payload


def model_numbers(store: Store) -> list[int]:
    """Return the numbers of all models, damaged ones included."""
    with store.read() as snapshot:
        return modelfiles.numbers(snapshot)


def damaged_copies(store: Store, number: int) -> int:
    """Return how many copies of a model are damaged. Raises as `modelfiles.damaged_copies` does."""
    with store.read() as snapshot:
        return modelfiles.damaged_copies(snapshot, number)


def model_size(store: Store, number: int) -> int:
    """Return the bytes of a model's file. Raises `ModelMissing`."""
    with store.read() as snapshot:
        return modelfiles.load_model(snapshot, number).size


def lost_models(store: Store) -> dict[int, str]:
    """Return by number which models are missing that blocks need, with advice."""
    with store.read() as snapshot:
        return {number: wanting.why for number, wanting in modelfiles.lost(snapshot).items()}
