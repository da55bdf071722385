"""The models in a store. A store holds its models, so it can be read whatever models a later nnfs ships.

A model's record and its file are kept twice, like the superblock, so one damaged copy loses nothing. The record of a
retired model stays when its file is deleted: so a number names one model for ever, and a retired model stays retired.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from nnfs.errors import ModelMissing, RecordDamaged, StoreDamaged, UsageError
from nnfs.proof import payload_checksum, wrong_payload
from nnfs.store import schema
from nnfs.store.blocks import BlockWriter
from nnfs.store.fragments import cut_payload
from nnfs.store.schema import Block, Model, Total
from nnfs.store.txn import Snapshot, WriteTxn

COPY = b"nnfs.model"  # followed by the number: key of a record's second copy, in the main table
LAST = (1 << 16) - 1
ADD = "(nnfs model add PATH FILE with its file brings it back)"


def key_of(number: int) -> bytes:
    """Return the key of a model record."""
    return number.to_bytes(2, "big")


def places(number: int) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    """Return table and key of both copies of a model's record."""
    return ("model", key_of(number)), ("main", COPY + key_of(number))


def numbers(snapshot: Snapshot) -> list[int]:
    """Return the numbers of all models in order, those that are gone or have damaged records included."""
    found = set()
    for table, prefix in (("model", b""), ("main", COPY)):
        with contextlib.suppress(StoreDamaged):
            for key, _ in snapshot.prefix(table, prefix):
                if len(key) == len(prefix) + 2:
                    found.add(int.from_bytes(key[-2:], "big"))
    return sorted(found)


def records(snapshot: Snapshot) -> dict[int, Model]:
    """Return the sound records by number, those of models that are gone included."""
    found = {}
    for number in numbers(snapshot):
        with contextlib.suppress(ModelMissing):
            found[number] = load_model(snapshot, number)
    return found


def models(snapshot: Snapshot) -> dict[int, Model]:
    """Return the models by number. Those with damaged records are left out (fsck and scrub name them)."""
    return {number: model for number, model in records(snapshot).items() if not model.gone}


def load_model(snapshot: Snapshot, number: int) -> Model:
    """Return a model's record, also when it is gone. Raises `ModelMissing` when there is none, or no sound one."""
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
    raise ModelMissing(f"model {number}: {what} {ADD}")


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
        yield None if wrong_payload(data, model.size, model.xxh3) else data


def read_model(snapshot: Snapshot, number: int) -> bytes:
    """Return a model's file from the first sound copy. Raises `ModelMissing` when there is none."""
    model = load_model(snapshot, number)
    for data in copies(snapshot, model):
        if data is not None and not model.gone:
            return data
    name = model.fingerprint.hex()[:16]
    why = "it was retired, and no block needed it" if model.gone else "both copies of its file are damaged"
    raise ModelMissing(f"model {number} ({name}): {why} {ADD}")


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
    """Return whether blocks of a model can be decoded: its file is there, and that of its base."""
    try:
        return wanting(snapshot, number) is None
    except StoreDamaged:
        return False


class Wanting(NamedTuple):
    """A model without which blocks cannot be decoded."""

    number: int
    fingerprint: bytes  # empty: not known, its record is lost
    why: str


def wanting(snapshot: Snapshot, number: int) -> Wanting | None:
    """Return the missing part of a model, itself or its base, None when it can be used. Raises `StoreDamaged`."""
    fingerprint = b""
    for _ in range(2):
        base = 0
        try:
            model = load_model(snapshot, number)
            fingerprint, base = model.fingerprint, model.base
            data = read_model(snapshot, number)
        except ModelMissing as error:
            return Wanting(number, fingerprint, str(error))
        if not base:
            return None
        from nnfs.model import delta

        number, fingerprint = base, delta.base_of(data) if delta.is_delta(data) else b""
    return Wanting(number, b"", f"model {number} is a delta over a delta")


def counted(snapshot: Snapshot) -> Counter[int]:
    """Return how many blocks need each model, as far as the totals tell. Raises `StoreDamaged`."""
    blocks: Counter[int] = Counter()
    for key, record in snapshot.range("total", b""):
        with contextlib.suppress(RecordDamaged):
            blocks[int.from_bytes(key[1:], "big")] += Total.unpack(key, record).blocks
    return blocks


def lost(snapshot: Snapshot) -> dict[int, Wanting]:
    """Return the missing parts of the models that blocks need, by the number that their headers name.

    The number of blocks is as the totals tell. Reads every file, so call it in a thread. Raises `StoreDamaged`.
    """
    found, blocks = {}, counted(snapshot)
    for number in sorted(+blocks):
        if number and (one := wanting(snapshot, number)) is not None:
            found[number] = one._replace(why=f"{one.why}; {blocks[number]} blocks cannot be read without it")
    return found


def add_model(
    txn: WriteTxn, blocks: BlockWriter, fingerprint: bytes, data: bytes, *,
    base: int, added: int, commit: int, number: int | None = None,
) -> int:  # fmt: skip
    """Store a model's file twice and return its number. One that is there is repaired; a retired model stays retired.

    `base` is the number of the model that `data` is a delta over, 0 when it is whole. `added` is in unix seconds.
    `number` is the number of a lost record, if the model is known to be that one.
    Raises `UsageError` for a base that is itself a delta, or when there are too many models.
    """
    if base and load_model(txn, base).base:
        raise UsageError("the model is a delta over a model that is itself a delta: fit it to a whole one")
    if number is None:
        number = next((n for n, model in records(txn).items() if model.fingerprint == fingerprint), None)
    flags = 0
    with contextlib.suppress(ModelMissing):
        if number is not None:
            old = load_model(txn, number)
            if not old.gone and None not in copies(txn, old) and is_usable(txn, number):
                return number
            flags = old.flags & Model.FLAG_RETIRED
            _delete_files(txn, old)
    if number is None:
        number = _free_number(txn)
    first, second = blocks.add_payload(data), blocks.add_payload(data)
    checksum = payload_checksum(data)
    put_model(txn, number, Model(fingerprint, base, flags, len(data), checksum, first, second, added, commit))
    return number


def _free_number(txn: WriteTxn) -> int:
    """Return a number that no model has had: a block or process that still has an old one finds no other model."""
    number = max([0, *numbers(txn), *counted(txn)]) + 1  # what is lost is counted still
    if number > LAST:
        raise UsageError(f"the store has had {LAST} models, and has no number for another one")
    return number


def retire_model(txn: WriteTxn, number: int, commit: int, *, retired: bool = True) -> None:
    """Set whether a model is retired: nothing more is encoded with it then. Raises `ModelMissing`."""
    model = load_model(txn, number)
    model.flags = model.flags & ~Model.FLAG_RETIRED | Model.FLAG_RETIRED * retired
    model.commit = commit
    put_model(txn, number, model)


def drop_model(txn: WriteTxn, number: int, commit: int) -> None:
    """Delete the files of a model that no block and no other model needs; the caller has made sure.

    Its record stays. Raises `ModelMissing`.
    """
    model = load_model(txn, number)
    _delete_files(txn, model)
    model.flags, model.base = Model.FLAG_RETIRED | Model.FLAG_GONE, 0
    model.size = model.payload_a = model.payload_b = 0
    model.xxh3, model.commit = payload_checksum(b""), commit
    put_model(txn, number, model)


def _delete_files(txn: WriteTxn, model: Model) -> None:
    for payload in model.payloads:
        txn.delete_prefix("payload", schema.KEY.pack(payload))


def needed(snapshot: Snapshot) -> set[int]:
    """Return the numbers of the models that block headers name. Raises `StoreDamaged` when one cannot be read."""
    return {Block.unpack(key, record).model for key, record in snapshot.range("block", b"")}


def damaged_copies(snapshot: Snapshot, number: int) -> int:
    """Return the number of damaged copies of a model's record and of its file.

    Raises `ModelMissing` when record or file has no sound copy, and other `NnfsError`s for damaged pages of the engine:
    a write txn that reads those is lost, so nothing may be repaired there.
    """
    model = load_model(snapshot, number)
    for payload in model.payloads:
        for _ in snapshot.prefix("payload", schema.KEY.pack(payload)):
            pass
    if not model.gone:
        read_model(snapshot, number)
    return len(_stale_records(snapshot, number, model)) + list(copies(snapshot, model)).count(None)


def repair_copies(txn: WriteTxn, number: int) -> bool:
    """Write the damaged copy of a model's record or file anew from the sound one. Return whether there was one.

    Raises `ModelMissing` when there is no sound record, or, with the record repaired, no sound file.
    """
    model = load_model(txn, number)
    stale = _stale_records(txn, number, model)
    for table, key in stale:
        txn.put(table, key, model.pack(key_of(number)))
    data = b"" if model.gone else read_model(txn, number)
    damaged = [payload for payload, copy in zip(model.payloads, copies(txn, model), strict=True) if copy is None]
    for payload in damaged:
        txn.delete_prefix("payload", schema.KEY.pack(payload))
        txn.put_many("payload", cut_payload(payload, data, 0)[0])
    return bool(stale or damaged)


def _stale_records(snapshot: Snapshot, number: int, model: Model) -> list[tuple[str, bytes]]:
    """Return the places that lack the record."""
    record = model.pack(key_of(number))
    return [place for place in places(number) if snapshot.get(*place) != record]
