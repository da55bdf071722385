"""Ways to break a small store: its maps, blocks, totals and models."""

from __future__ import annotations

import dataclasses

from nnfs.codec.base import NEURAL
from nnfs.store import schema
from nnfs.store.blocks import BlockWriter, load_block
from nnfs.store.env import Store
from nnfs.store.schema import MapNode, Total
from nnfs.store.txn import WriteTxn
from tests.fs.kit import (
    CHUNK,
    FIFO,
    FILE,
    Breaks,
    block_of,
    damage,
    edit_block,
    edit_inode,
    encoded,
    noise,
    noted,
    payload_key,
    rewrite_header,
)

BROKEN_BLOCKS: Breaks = {}
LASTING: Breaks = {}  # nothing is made up


@noted(BROKEN_BLOCKS, "map")
def map_of_nothing(txn: WriteTxn, store: Store) -> None:
    key = schema.KEY2.pack(15, 0)
    txn.put("map", key, MapNode({0: block_of(txn, FILE, 2)}, 1).pack(key))


@noted(BROKEN_BLOCKS, "beyond")
def chunks_beyond_the_end(txn: WriteTxn, store: Store) -> None:
    edit_inode(txn, FILE, size=CHUNK)


@noted(BROKEN_BLOCKS, "count")
def chunk_count(txn: WriteTxn, store: Store) -> None:
    edit_inode(txn, FILE, count=9)


@noted(BROKEN_BLOCKS, "proof")
def fifo_that_proves_chunks(txn: WriteTxn, store: Store) -> None:
    edit_inode(txn, FIFO, count=1, proof=5)


@noted(BROKEN_BLOCKS, "refs")
def references_too_high(txn: WriteTxn, store: Store) -> None:
    edit_block(txn, block_of(txn, FILE, 2), refs=5)


@noted(BROKEN_BLOCKS, "refs")
def references_too_low(txn: WriteTxn, store: Store) -> None:
    edit_block(txn, block_of(txn, FILE, 0), refs=1)


@noted(BROKEN_BLOCKS, "refs")
def block_without_references(txn: WriteTxn, store: Store) -> None:
    state = dataclasses.replace(store.state)
    writer = BlockWriter(txn, state, 0, 0)
    writer.add(encoded(noise(9)))
    writer.flush()
    txn.put_state(state)


@noted(BROKEN_BLOCKS, "index")
def index_entry_lost(txn: WriteTxn, store: Store) -> None:
    block = load_block(txn, block_of(txn, FILE, 2))
    assert block is not None
    txn.delete("hash", block.hash[:16])


@noted(BROKEN_BLOCKS, "index")
def index_entry_to_another_block(txn: WriteTxn, store: Store) -> None:
    block = load_block(txn, block_of(txn, FILE, 2))
    assert block is not None
    txn.put("hash", block.hash[:16], schema.KEY.pack(block_of(txn, FILE, 0)))


@noted(BROKEN_BLOCKS, "index")
def index_entry_to_nothing(txn: WriteTxn, store: Store) -> None:
    txn.put("hash", b"?" * 16, schema.KEY.pack(77))


@noted(BROKEN_BLOCKS, "payload")
def payload_of_no_block(txn: WriteTxn, store: Store) -> None:
    txn.put("payload", schema.FRAGMENT_KEY.pack(store.state.next_number - 1 + 40, 0), b"abc")


@noted(BROKEN_BLOCKS, "total")
def total_wrong(txn: WriteTxn, store: Store) -> None:
    key = schema.TOTAL_KEY.pack(1, 0)
    txn.put("total", key, Total(1, 2, 3, 1).pack(key))


@noted(BROKEN_BLOCKS, "total")
def total_lost(txn: WriteTxn, store: Store) -> None:
    txn.delete("total", schema.TOTAL_KEY.pack(0, 0))


@noted(BROKEN_BLOCKS, "total")
def total_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "total", schema.TOTAL_KEY.pack(0, 0))


@noted(BROKEN_BLOCKS, "queue")
def record_in_the_reserved_table(txn: WriteTxn, store: Store) -> None:
    txn.put("queue", schema.KEY.pack(1), b"??")


@noted(BROKEN_BLOCKS, "scrub")
def scrub_record_damaged(txn: WriteTxn, store: Store) -> None:
    txn.put("meta", schema.SCRUB_KEY, schema.Scrub(1, 0, 2).pack())
    damage(txn, "meta", schema.SCRUB_KEY)


@noted(LASTING, "data")
def payload_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "payload", payload_key(txn, FILE, 2), byte=50)


@noted(LASTING, "data")
def payload_lost(txn: WriteTxn, store: Store) -> None:
    txn.delete("payload", payload_key(txn, FILE, 2))


@noted(LASTING, "block")
def block_header_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "block", schema.KEY.pack(block_of(txn, FILE, 2)), byte=9)


@noted(LASTING, "map")
def block_lost(txn: WriteTxn, store: Store) -> None:
    txn.delete("block", schema.KEY.pack(block_of(txn, FILE, 2)))


@noted(LASTING, "map")
def map_node_damaged(txn: WriteTxn, store: Store) -> None:
    damage(txn, "map", schema.KEY2.pack(FILE, 0), byte=9)


@noted(LASTING, "proof")
def map_node_lost(txn: WriteTxn, store: Store) -> None:
    txn.delete("map", schema.KEY2.pack(FILE, 0))


@noted(LASTING, "proof")
def map_node_of_yesterday(txn: WriteTxn, store: Store) -> None:
    key = schema.KEY2.pack(FILE, 0)
    txn.put("map", key, MapNode({0: block_of(txn, FILE, 0), 2: block_of(txn, FILE, 200)}, 1).pack(key))


@noted(LASTING, "tail")
def chunk_longer_than_the_file(txn: WriteTxn, store: Store) -> None:
    edit_inode(txn, FILE, size=200 * CHUNK + 99)


@noted(LASTING, "block")
def codec_unknown(txn: WriteTxn, store: Store) -> None:
    rewrite_header(txn, block_of(txn, FILE, 2), codec=99)


@noted(LASTING, "model")
def model_unknown(txn: WriteTxn, store: Store) -> None:
    rewrite_header(txn, block_of(txn, FILE, 2), codec=NEURAL, model=3)


@noted(LASTING, "block")
def neural_without_a_model(txn: WriteTxn, store: Store) -> None:
    rewrite_header(txn, block_of(txn, FILE, 2), codec=NEURAL)


@noted(LASTING, "block")
def raw_with_a_model(txn: WriteTxn, store: Store) -> None:
    rewrite_header(txn, block_of(txn, FILE, 2), model=3)


@noted(LASTING, "model")
def model_damaged(txn: WriteTxn, store: Store) -> None:
    txn.put("model", b"\0\1", b"?" * 80)
