"""An LMDB environment of its own, and the verifier of lmdb, for tests of pages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lmdb
from lmdb import verify as lmdb_verify

from nnfs.store.freepages import FreeDb

verify: Any = lmdb_verify.verify
PAGE = 4096


def open_env(path: Path) -> Any:
    """Not durable: what is tested here is not, and commits are 20 times faster."""
    return lmdb.open(os.fspath(path), map_size=1 << 30, lib_version=0, meminit=False, max_dbs=4, sync=False)


def data_file(env: Any) -> Path:
    return Path(env.path()) / "data.mdb"


def free_by_us(path: Path) -> dict[int, set[int]]:
    fd = os.open(path, os.O_RDONLY)
    try:
        free_db = FreeDb(fd)
        return {record.txnid: set(free_db.pages(record)) for record in free_db.records()}
    finally:
        os.close(fd)


def contents(env: Any, txn: Any = None) -> dict[bytes, bytes]:
    with txn or env.begin() as reader:
        return dict(reader.cursor())
