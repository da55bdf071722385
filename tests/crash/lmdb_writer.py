"""Stands in for the daemon: commits to a plain LMDB environment, overwrites, deletes, punches space behind its end.

Usage: lmdb_writer.py FOLDER JOURNAL SEED COMMITS SYNC. Each commit k puts `last` = k and rewrites some of 40 keys; a
value names the commit that wrote it, so a reader can check the whole state.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys

import lmdb

from tests.crash.journal import append_ack

KEYS = 40


def value(key: int, commit: int) -> bytes:
    """Return the value that a commit puts under a key: its number and a body that proves it, up to several pages."""
    rng = random.Random(key * 1_000_003 + commit)
    return commit.to_bytes(8, "big") + rng.randbytes(rng.choice((10, 300, 1500, 5000, 20000)))


def changes(seed: int, commit: int) -> dict[int, bool]:
    """Keys that a commit puts (True) or deletes (False)."""
    rng = random.Random(seed * 7919 + commit)
    return {key: rng.random() < 0.7 for key in rng.sample(range(KEYS), 6)}


def expected(seed: int, commit: int) -> dict[bytes, bytes]:
    """The state after a commit."""
    state: dict[bytes, bytes] = {}
    for number in range(1, commit + 1):
        for key, put in changes(seed, number).items():
            state.pop(b"%d" % key, None)
            if put:
                state[b"%d" % key] = value(key, number)
        state[b"last"] = b"%d" % number
    return state


def main() -> None:
    """Commit, and note each commit in the journal when it is done."""
    folder, journal = sys.argv[1:3]
    seed, commits, sync = (int(arg) for arg in sys.argv[3:])
    acks = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    libc = ctypes.CDLL(None, use_errno=True)
    data = os.open(f"{folder}/data.mdb", os.O_RDWR)
    with lmdb.open(folder, map_size=1 << 30, lib_version=0, sync=bool(sync)) as env:
        for commit in range(1, commits + 1):
            with env.begin(write=True) as txn:
                for key, put in changes(seed, commit).items():
                    if put:
                        txn.put(b"%d" % key, value(key, commit))
                    else:
                        txn.delete(b"%d" % key)
                txn.put(b"last", b"%d" % commit)
            append_ack(acks, commit)
            tail = (env.info()["last_pgno"] + 1) * 4096  # behind the last page: free for certain
            libc.fallocate(data, 3, ctypes.c_long(tail), ctypes.c_long(65536))


if __name__ == "__main__":
    main()
