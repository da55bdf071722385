"""The models of a store: whoever has the store can read it, whatever models a later nnfs ships.

A model's file is kept twice, like the superblock: one damaged copy costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from xxhash import xxh3_64_intdigest

from nnfs.errors import ModelMissing, RecordDamaged, StoreDamaged, UsageError
from nnfs.store import schema
from nnfs.store.blocks import BlockWriter
from nnfs.store.env import Snapshot, WriteTxn
from nnfs.store.schema import Model


def key_of(number: int) -> bytes:
    """Return the key of a model record."""
    return number.to_bytes(2, "big")


def models(snapshot: Snapshot) -> dict[int, Model]:
    """Return the models by number; damaged records are left out (fsck and scrub name them)."""
    found = {}
    for key, record in snapshot.range("model", b""):
        try:
            found[int.from_bytes(key, "big")] = Model.unpack(key, record)
        except RecordDamaged:
            continue
    return found


def load_model(snapshot: Snapshot, number: int) -> Model:
    """Return a model's record. Raises `ModelMissing`, `RecordDamaged`."""
    record = snapshot.get("model", key_of(number))
    if record is None:
        raise ModelMissing(f"model {number} is not in the store: nnfs model add FILE brings it back")
    return Model.unpack(key_of(number), record)


def by_fingerprint(snapshot: Snapshot, fingerprint: bytes) -> int | None:
    """Return the number of the model with this fingerprint, None when the store does not hold it."""
    return next((n for n, model in models(snapshot).items() if model.fingerprint == fingerprint), None)


def base_missing(fingerprint: bytes) -> UsageError:
    """Return the error for a delta whose base the store does not hold."""
    return UsageError(f"the model is a delta over {fingerprint.hex()[:16]}, which is not in the store: add that first")


def copies(snapshot: Snapshot, model: Model) -> Iterator[bytes | None]:
    """Yield both copies of a model's file, None for one that is damaged."""
    for payload in (model.payload_a, model.payload_b):
        try:
            data = snapshot.payload(payload, model.size)
        except StoreDamaged:
            data = b""
        yield data if len(data) == model.size and xxh3_64_intdigest(data) == model.xxh3 else None


def read_model(snapshot: Snapshot, number: int) -> bytes:
    """Return a model's file from the first sound copy. Raises `ModelMissing` when there is none."""
    model = load_model(snapshot, number)
    for data in copies(snapshot, model):
        if data is not None:
            return data
    name = model.fingerprint.hex()[:16]
    raise ModelMissing(f"both copies of model {name} are damaged: nnfs model add FILE with that model brings it back")


def add_model(
    txn: WriteTxn, blocks: BlockWriter, fingerprint: bytes, data: bytes, *, base: int, added: int, commit: int
) -> int:
    """Store a model's file twice and return its number; one that is there is made whole and taken out of retirement.

    `base` is the number of the model that `data` is a delta over, 0 when it is whole. `added` is in unix seconds.
    """
    number = by_fingerprint(txn, fingerprint)
    if number is None:
        used = models(txn)
        number = next(n for n in range(1, 1 << 16) if n not in used and txn.get("model", key_of(n)) is None)
    else:
        old = load_model(txn, number)
        if not old.retired and all(copy is not None for copy in copies(txn, old)):
            return number
        for payload in (old.payload_a, old.payload_b):
            txn.delete_prefix("payload", schema.KEY.pack(payload))
    first, second = blocks.add_payload(data), blocks.add_payload(data)
    model = Model(fingerprint, base, 0, len(data), xxh3_64_intdigest(data), first, second, added, commit)
    txn.put("model", key_of(number), model.pack(key_of(number)))
    return number


def retire_model(txn: WriteTxn, number: int, commit: int) -> None:
    """Encode nothing with a model any more. Raises `ModelMissing`."""
    model = load_model(txn, number)
    model.flags |= Model.FLAG_RETIRED
    model.commit = commit
    txn.put("model", key_of(number), model.pack(key_of(number)))


def drop_model(txn: WriteTxn, number: int) -> None:
    """Delete a model that no block and no other model needs; the caller has made sure. Raises `ModelMissing`."""
    model = load_model(txn, number)
    for payload in (model.payload_a, model.payload_b):
        txn.delete_prefix("payload", schema.KEY.pack(payload))
    txn.delete("model", key_of(number))
