"""The models of a store: whoever has the store can read it, whatever models a later nnfs ships.

A model's record and its file are kept twice, like the superblock: one damaged copy costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from xxhash import xxh3_64_intdigest

from nnfs.errors import ModelMissing, StoreDamaged, UsageError
from nnfs.store import schema
from nnfs.store.blocks import BlockWriter
from nnfs.store.env import Snapshot, WriteTxn, cut_payload
from nnfs.store.schema import Block, Model

COPY = b"nnfs.model"  # followed by the number: key of a record's second copy, in the main table
LAST = (1 << 16) - 1


def key_of(number: int) -> bytes:
    """Return the key of a model record."""
    return number.to_bytes(2, "big")


def places(number: int) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    """Return table and key of both copies of a model's record."""
    return ("model", key_of(number)), ("main", COPY + key_of(number))


def numbers(snapshot: Snapshot) -> list[int]:
    """Return the numbers of all models, those with damaged records included, in order."""
    found = set()
    for table, prefix in (("model", b""), ("main", COPY)):
        with contextlib.suppress(StoreDamaged):
            for key, _ in snapshot.prefix(table, prefix):
                if len(key) == len(prefix) + 2:
                    found.add(int.from_bytes(key[-2:], "big"))
    return sorted(found)


def models(snapshot: Snapshot) -> dict[int, Model]:
    """Return the models by number; those with damaged records are left out (fsck and scrub name them)."""
    found = {}
    for number in numbers(snapshot):
        with contextlib.suppress(ModelMissing):
            found[number] = load_model(snapshot, number)
    return found


def load_model(snapshot: Snapshot, number: int) -> Model:
    """Return a model's record. Raises `ModelMissing` when there is none, or no sound one."""
    is_there = False
    for table, key in places(number):
        try:
            record = snapshot.get(table, key)
            if record is not None:
                is_there = True
                return Model.unpack(key_of(number), record)
        except StoreDamaged:
            continue
    what = "both copies of its record are damaged" if is_there else "it is not in the store"
    raise ModelMissing(f"model {number}: {what}: restore a backup")


def put_model(txn: WriteTxn, number: int, model: Model) -> None:
    """Store both copies of a model's record."""
    record = model.pack(key_of(number))
    for table, key in places(number):
        txn.put(table, key, record)


def by_fingerprint(snapshot: Snapshot, fingerprint: bytes) -> int | None:
    """Return the number of the model with this fingerprint, None when the store does not hold it."""
    return next((n for n, model in models(snapshot).items() if model.fingerprint == fingerprint), None)


def copies(snapshot: Snapshot, model: Model) -> Iterator[bytes | None]:
    """Yield both copies of a model's file, None for one that is damaged."""
    for payload in model.payloads:
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


def whole_model(snapshot: Snapshot, number: int) -> bytes:
    """Return a model's file as workers take it: a delta is put together with its base. Raises `ModelMissing`."""
    data, base = read_model(snapshot, number), load_model(snapshot, number).base
    if not base:
        return data
    if load_model(snapshot, base).base:
        raise ModelMissing(f"model {number} is a delta over a delta")
    from nnfs.model.delta import compose

    return compose(read_model(snapshot, base), data)


def is_usable(snapshot: Snapshot, number: int) -> bool:
    """Whether what was encoded with a model can be decoded: its file is there, and that of its base."""
    try:
        base = load_model(snapshot, number).base
        for one in (number, base) if base else (number,):
            read_model(snapshot, one)
    except (ModelMissing, StoreDamaged):
        return False
    return True


def add_model(
    txn: WriteTxn, blocks: BlockWriter, fingerprint: bytes, data: bytes, *, base: int, added: int, commit: int
) -> int:
    """Store a model's file twice and return its number; one that is there is made whole and taken out of retirement.

    `base` is the number of the model that `data` is a delta over, 0 when it is whole. `added` is in unix seconds.
    Raises `UsageError` for a base that is itself a delta, or when there are too many models.
    """
    if base and load_model(txn, base).base:
        raise UsageError("the model is a delta over a model that is itself a delta: fit it to a whole one")
    number = by_fingerprint(txn, fingerprint)
    if number is None:
        number = _free_number(txn)
    else:
        old = load_model(txn, number)
        if None not in copies(txn, old):
            if old.retired:
                old.flags, old.commit = old.flags & ~Model.FLAG_RETIRED, commit
                put_model(txn, number, old)
            return number
        _delete_files(txn, old)
    first, second = blocks.add_payload(data), blocks.add_payload(data)
    checksum = xxh3_64_intdigest(data)
    put_model(txn, number, Model(fingerprint, base, 0, len(data), checksum, first, second, added, commit))
    return number


def _free_number(txn: WriteTxn) -> int:
    """Return a number above all others while there are such: whoever remembers one finds no other model under it."""
    used = {0, *numbers(txn)}
    if max(used) < LAST:
        return max(used) + 1
    for number in range(1, LAST):
        if number not in used:
            return number
    raise UsageError(f"there are {LAST} models in the store: nnfs model retire some")


def retire_model(txn: WriteTxn, number: int, commit: int) -> None:
    """Encode nothing with a model any more. Raises `ModelMissing`."""
    model = load_model(txn, number)
    model.flags |= Model.FLAG_RETIRED
    model.commit = commit
    put_model(txn, number, model)


def drop_model(txn: WriteTxn, number: int) -> None:
    """Delete a model that no block and no other model needs; the caller has made sure. Raises `ModelMissing`."""
    _delete_files(txn, load_model(txn, number))
    for table, key in places(number):
        txn.delete(table, key)


def _delete_files(txn: WriteTxn, model: Model) -> None:
    for payload in model.payloads:
        txn.delete_prefix("payload", schema.KEY.pack(payload))


def needed(snapshot: Snapshot) -> set[int]:
    """Return the numbers of the models that block headers name. Raises `StoreDamaged` when one cannot be read."""
    return {Block.unpack(key, record).model for key, record in snapshot.range("block", b"")}


def damaged_copies(snapshot: Snapshot, number: int) -> int:
    """Return how many copies of a model's record and of its file are not as they should be.

    Raises `ModelMissing` when there is no sound one of either, other `NnfsError`s for damaged pages of the engine: a
    write txn that meets those is lost, so nothing may be mended there.
    """
    model = load_model(snapshot, number)
    for payload in model.payloads:
        for _ in snapshot.prefix("payload", schema.KEY.pack(payload)):
            pass
    read_model(snapshot, number)
    return len(_stale_records(snapshot, number, model)) + list(copies(snapshot, model)).count(None)


def mend_copies(txn: WriteTxn, number: int) -> bool:
    """Write the damaged copy of a model's record or file anew from the sound one; return whether there was one.

    Raises `ModelMissing` when there is no sound record, or, with the record mended, no sound file.
    """
    model = load_model(txn, number)
    stale = _stale_records(txn, number, model)
    for table, key in stale:
        txn.put(table, key, model.pack(key_of(number)))
    data = read_model(txn, number)
    damaged = [payload for payload, copy in zip(model.payloads, copies(txn, model), strict=True) if copy is None]
    for payload in damaged:
        txn.delete_prefix("payload", schema.KEY.pack(payload))
        txn.put_many("payload", cut_payload(payload, data, 0)[0])
    return bool(stale or damaged)


def _stale_records(snapshot: Snapshot, number: int, model: Model) -> list[tuple[str, bytes]]:
    """Return where the record is not."""
    record = model.pack(key_of(number))
    return [place for place in places(number) if snapshot.get(*place) != record]
