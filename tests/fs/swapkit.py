"""Swaps of payloads and models of made-up content, for tests of amendments."""

from __future__ import annotations

from functools import partial
from typing import Any

from nnfs.codec.base import CM
from nnfs.fs import fsck, swapping
from nnfs.store import modelfiles, schema
from nnfs.store.blocks import ChunkChanges, Swap, load_block
from nnfs.store.schema import Block, Inode
from tests.fs.test_apply import Files, chunks, damage

A, B = b"A" * 64, b"B" * 64
FILE_A, FILE_B = b"weights of A " * 1000, b"weights of B " * 700


def keep(files: Files, fingerprint: bytes = A, data: bytes = FILE_A, base: bytes | None = None, **how: Any) -> int:
    return files.amend(partial(swapping.keep_model, fingerprint=fingerprint, data=data, base=base, now=7, **how))


def retire(files: Files, number: int) -> None:
    files.amend(partial(swapping.retire_model, number=number))


def drop(files: Files) -> list[int]:
    """Drop the models that nothing needs."""
    with files.store.read() as snapshot:
        idle = swapping.idle_models(snapshot)
    return files.amend(partial(swapping.drop_models, idle=idle))


def written(files: Files, *numbers: int) -> Inode:
    inode = files.create(b"f")
    files.commit({inode.ino: ChunkChanges(chunks=chunks(*numbers))})
    return inode


def swap(files: Files, inode: Inode, at: int, codec: int = CM, model: int = 0, data: bytes | None = b"small") -> Any:
    [number] = files.fs.block_numbers(inode, at, at)
    with files.store.read() as snapshot:
        block = load_block(snapshot, number)
    assert block is not None
    one = Swap(number, block.payload, (inode.ino, at), codec, model, data)
    return files.amend(partial(swapping.swap, swaps=[one]))[0]


def block_at(files: Files, inode: Inode, at: int) -> Block:
    with files.store.read() as snapshot:
        block = load_block(snapshot, files.fs.block_numbers(inode, at, at)[0])
    assert block is not None
    return block


def checked(files: Files) -> None:
    """Every invariant but for the content of cold blocks, which these tests make up."""
    report = fsck.check(files.store, data=False, repair=False, progress=lambda *_: None)
    assert not report.problems, report.problems


def damage_copy(files: Files, number: int, what: str, which: int) -> None:
    """Damage a copy (0 or 1) of a model's "file" or "record"."""
    with files.store.read() as snapshot:
        model = modelfiles.load_model(snapshot, number)
    if what == "file":
        damage(files.store, "payload", schema.FRAGMENT_KEY.pack(model.payloads[which], 0))
    else:
        damage(files.store, *modelfiles.places(number)[which])


def damage_files(files: Files, number: int) -> None:
    with files.store.read() as snapshot:
        payloads = modelfiles.load_model(snapshot, number).payloads
    for payload in payloads:
        damage(files.store, "payload", schema.FRAGMENT_KEY.pack(payload, 0))


def forget(files: Files, number: int) -> None:
    """Both copies of a model's record are lost, and with them where its files are."""
    with files.store.write() as txn:
        for payload in modelfiles.load_model(txn, number).payloads:
            txn.delete_prefix("payload", schema.KEY.pack(payload))
        for place in modelfiles.places(number):
            txn.delete(*place)
