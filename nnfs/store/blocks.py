"""Blocks: one for each content, with a count of references, under a number that is never used again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from nnfs.errors import RecordDamaged
from nnfs.proof import payload_checksum, wrong_payload
from nnfs.store import schema
from nnfs.store.fragments import cut_payload
from nnfs.store.schema import Block, State, Total
from nnfs.store.txn import Snapshot, WriteTxn

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Encoded:
    """One chunk that is encoded and hashed, ready to be stored."""

    hash: bytes  # BLAKE2b-512 of the plain bytes
    codec: int
    plain: int
    payload: bytes
    model: int = 0
    number: int = 0  # of its block, once it is stored


@dataclass(slots=True)
class Swap:
    """Other stored bytes for a block, made from its payload number `payload`; void once it has another one.

    `data` is None when the block stays as it is since nothing is smaller. `owner` is a (file, chunk) that maps it.
    """

    number: int
    payload: int
    owner: tuple[int, int]
    codec: int = 0
    model: int = 0
    data: bytes | None = None


@dataclass(slots=True)
class ChunkChanges:
    """The changes of one commit to the chunks of one inode: first a truncation, then new content.

    `cut` is the first chunk that a truncation removed, or None; `spare` a fresh inode number that the removed
    map nodes may be moved to when they are many. `chunks` maps chunk numbers to their new content, None: a hole.
    """

    cut: int | None = None
    spare: int = 0
    chunks: dict[int, Encoded | None] = field(default_factory=dict)


def load_block(snapshot: Snapshot, number: int) -> Block | None:
    """Return a block's header, None when there is no such block. Raises `RecordDamaged`."""
    key = schema.KEY.pack(number)
    record = snapshot.get("block", key)
    return None if record is None else Block.unpack(key, record)


def always(_number: int, _block: Block) -> bool:
    """Return True: every block is taken for readable."""
    return True


class BlockWriter:
    """The changes of blocks in one write txn, gathered, and written in the order of keys by `flush`.

    `readable(number, block)` tells whether the stored bytes of a block can be decoded, as far as that is known.
    """

    def __init__(
        self, txn: WriteTxn, state: State, born: int, room: int, readable: Callable[[int, Block], bool] = always
    ) -> None:
        self._txn = txn
        self._readable = readable
        self.repaired: set[int] = set()  # blocks whose content was written once more
        self._state = state
        self._fresh = schema.KEY.pack(state.next_number)
        self._born = born
        self._room = room  # left in the payload table's last leaf page, as far as known
        self._headers: dict[int, Block | None] = {}  # None: to be deleted
        self._payloads: dict[int, list[tuple[bytes, bytes]]] = {}  # added in this txn, in ascending order
        self._index: dict[bytes, int] = {}
        self._totals: dict[bytes, Total] = {}

    def get(self, number: int) -> Block:
        """Return a block's header as this txn sees it. Raises `RecordDamaged` when it is not there."""
        if number not in self._headers:
            self._headers[number] = load_block(self._txn, number)
        block = self._headers[number]
        if block is None:
            raise RecordDamaged("block", schema.KEY.pack(number), "missing")
        return block

    def peek(self, number: int) -> Block:
        """Do as `get`, for a header that is not to be changed."""
        block = self._headers.get(number)
        if block is None:
            block = load_block(self._txn, number) if number not in self._headers else None
        if block is None:
            raise RecordDamaged("block", schema.KEY.pack(number), "missing")
        return block

    def ref(self, number: int) -> None:
        """Count one more reference of a block. Raises `RecordDamaged`."""
        self.get(number).refs += 1

    def find(self, digest: bytes) -> int | None:
        """Return the number of the block whose plain bytes have this BLAKE2b-512, or None."""
        prefix = digest[: schema.INDEX_SIZE]
        number = self._index.get(prefix)
        if number is None:
            record = self._txn.hint("hash", prefix)
            if record is None or len(record) != schema.KEY.size:
                return None
            number = schema.KEY.unpack(record)[0]
        try:
            block = self.get(number)
        except RecordDamaged:
            return None  # the index is derived: a damaged entry or block costs a second copy, nothing else
        return number if block.hash == digest else None

    def add(self, chunk: Encoded) -> int:
        """Store a chunk, or find the equal one, and count one reference. Returns the block's number."""
        number = self.find(chunk.hash)
        if number is not None:
            block = self.get(number)
            if not self._intact(number, block):
                self._repair(number, block, chunk)
            block.refs += 1
            chunk.number = number
            return number
        number = chunk.number = self.add_payload(chunk.payload)
        self._headers[number] = Block(
            chunk.codec, chunk.model, chunk.plain, len(chunk.payload), self._born,
            payload_checksum(chunk.payload), number, 1, chunk.hash,
        )  # fmt: skip
        prefix = chunk.hash[: schema.INDEX_SIZE]
        if prefix not in self._index and self._txn.hint("hash", prefix) is None:
            self._index[prefix] = number
        self._count(chunk.codec, chunk.model, 1, chunk.plain, len(chunk.payload))
        return number

    def _intact(self, number: int, block: Block) -> bool:
        if block.payload in self._payloads:
            return True
        if not self._readable(number, block):
            return False
        payload = self._txn.payload(block.payload, block.stored)
        return not wrong_payload(payload, block.stored, block.xxh3)

    def _repair(self, number: int, block: Block, chunk: Encoded) -> None:
        """Repair a block that cannot be read with the stored bytes of an equal chunk, for all files that share it."""
        log.warning("block %d could not be read and is whole again: its content was written once more", number)
        self.repaired.add(number)
        self._replace(block, chunk.codec, chunk.model, chunk.payload)

    def _replace(self, block: Block, codec: int, model: int, payload: bytes) -> None:
        """Replace the stored bytes of a block by others of the same content."""
        if self._payloads.pop(block.payload, None) is None:
            self._txn.delete_prefix("payload", schema.KEY.pack(block.payload))
        self._count(block.codec, block.model, -1, -block.plain, -block.stored)
        block.codec, block.model, block.stored, block.flags = codec, model, len(payload), 0
        block.xxh3 = payload_checksum(payload)
        block.payload = self.add_payload(payload)
        self._count(codec, model, 1, block.plain, block.stored)

    def add_payload(self, data: bytes) -> int:
        """Store bytes under a fresh payload number, and return it."""
        number = self._state.next_number
        self._state.next_number += 1
        self._payloads[number], self._room = cut_payload(number, data, self._room)
        return number

    def swap(self, swap: Swap) -> int | None:
        """Swap a block's stored bytes. Return the bytes by which they have grown, None when the block is not as it was.

        The caller has proved that `swap.data` decodes to the block's content.
        """
        try:
            block = self.get(swap.number)
        except RecordDamaged:
            return None  # gone meanwhile
        if block.payload != swap.payload:
            return None
        if swap.data is None:
            block.note_try(self._state.round)
            return 0
        before = block.stored
        self._replace(block, swap.codec, swap.model, swap.data)
        return block.stored - before

    def unref(self, number: int) -> Block:
        """Drop one reference; the last one deletes the block. Returns the header."""
        block = self.get(number)
        block.refs -= 1
        if block.refs <= 0:
            self._remove(number, block)
        return block

    def _remove(self, number: int, block: Block) -> None:
        prefix = block.hash[: schema.INDEX_SIZE]
        if self._index.get(prefix) == number:
            del self._index[prefix]
        elif self._txn.hint("hash", prefix) == schema.KEY.pack(number):
            self._txn.delete("hash", prefix)
        if self._payloads.pop(block.payload, None) is None:
            self._txn.delete_prefix("payload", schema.KEY.pack(block.payload))
        self._headers[number] = None
        self._count(block.codec, block.model, -1, -block.plain, -block.stored)

    def models(self) -> set[int]:
        """Return the models of the blocks that this txn has gathered: their headers are not in the table yet."""
        return {block.model for block in self._headers.values() if block is not None}

    def uses_model(self, model: int) -> bool:
        """Return whether any block needs a model."""
        for codec in range(256):
            key = schema.TOTAL_KEY.pack(codec, model)
            total = self._totals.get(key)
            if total is None:
                record = self._txn.get("total", key)
                total = Total.unpack(key, record) if record else Total()
            if total.blocks:
                return True
        return False

    def _count(self, codec: int, model: int, blocks: int, plain: int, stored: int) -> None:
        key = schema.TOTAL_KEY.pack(codec, model)
        total = self._totals.get(key)
        if total is None:
            record = self._txn.get("total", key)
            try:
                total = Total.unpack(key, record) if record else Total()
            except RecordDamaged:
                total = Total()  # statistics: fsck counts anew; no write fails for them
            self._totals[key] = total
        # A store that fsck has yet to repair may count too little; that must not keep anybody from committing.
        total.blocks = max(0, total.blocks + blocks)
        total.plain = max(0, total.plain + plain)
        total.stored = max(0, total.stored + stored)

    def flush(self) -> int:
        """Write all gathered changes. Return the bytes left in the payload table's last page."""
        commit = self._state.commit
        headers = []
        for number in sorted(self._headers):
            block, key = self._headers[number], schema.KEY.pack(number)
            if block is None:
                self._txn.delete("block", key)
            else:
                block.commit = commit
                headers.append((key, block.pack(key)))
        self._txn.put_many("block", headers, self._fresh)
        self._txn.put_many("payload", [item for items in self._payloads.values() for item in items], self._fresh)
        self._txn.put_many("hash", sorted((prefix, schema.KEY.pack(n)) for prefix, n in self._index.items()))
        for key, total in self._totals.items():
            total.commit = commit
            self._txn.put("total", key, total.pack(key))
        return self._room
