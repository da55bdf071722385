"""Keys of branch pages: sound ones are never complained of, wrong ones are found."""

from __future__ import annotations

import os
import random
from pathlib import Path

import lmdb
import pytest

from nnfs.store.branchkeys import misleading_branch_keys
from nnfs.store.verify import page_damage
from tests.harness import FULL

PAGE = 4096


def complaints(file: Path) -> list[str]:
    fd = os.open(file, os.O_RDONLY)
    try:
        return list(misleading_branch_keys(fd))
    finally:
        os.close(fd)


def churn(env: lmdb.Environment, draw: random.Random, rounds: int) -> None:
    """Splits, merges and moves between pages: keys and values of all sizes come and go, in runs and at random."""
    tables = [env.open_db(name) for name in (b"one", b"two")]
    for _ in range(rounds):
        with env.begin(write=True) as txn:
            for table in tables:
                start, long = draw.randrange(9000), draw.choice((1, 8, 400))
                for step in range(draw.randrange(600)):
                    number = start + step if draw.random() < 0.7 else draw.randrange(9000)
                    key = b"%d" % number + b"k" * draw.randrange(long)
                    if draw.random() < 0.6:
                        txn.delete(key, db=table)  # a second, shorter value in one txn: lmdb's verifier calls it damage
                        txn.put(key, b"v" * draw.choice((1, 30, 700, 5000)), db=table)
                    else:
                        with txn.cursor(table) as cursor:
                            if cursor.set_range(key):
                                for _ in range(draw.randrange(15)):
                                    if not cursor.delete():
                                        break


@pytest.mark.long
@pytest.mark.parametrize("seed", range(60 if FULL else 6))
def test_what_lmdb_leaves_is_right(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    with lmdb.open(os.fspath(tmp_path), map_size=1 << 30, max_dbs=2, lib_version=0, sync=False) as env:
        for _ in range(8):
            churn(env, draw, 12)
            assert page_damage(tmp_path / "data.mdb") == []


def branch_nodes(content: bytes) -> list[slice]:
    """Return the places of the keys of branch pages in a data file in which all branch pages are in use."""
    found = []
    for start in range(2 * PAGE, len(content), PAGE):
        if int.from_bytes(content[start + 10 : start + 12], "little") != 0x01:
            continue
        lower = int.from_bytes(content[start + 12 : start + 14], "little")
        for pointer in range(start + 16 + 2, start + lower, 2):
            node = start + int.from_bytes(content[pointer : pointer + 2], "little")
            found.append(slice(node + 8, node + 8 + int.from_bytes(content[node + 6 : node + 8], "little")))
    return found


def test_every_wrong_key_is_found(tmp_path: Path) -> None:
    with lmdb.open(os.fspath(tmp_path), map_size=1 << 30, max_dbs=1, lib_version=0) as env:
        table = env.open_db(b"numbers")
        with env.begin(write=True) as txn:  # one txn: no page has been freed
            for number in range(0, 40_000, 4):
                txn.put(number.to_bytes(8, "big") + b"k" * 100, b"v" * 100, db=table)
    file = tmp_path / "data.mdb"
    sound = file.read_bytes()
    nodes = branch_nodes(sound)
    assert len(nodes) > 500
    assert complaints(file) == []
    for node in random.Random(1).sample(nodes, 60):
        number = int.from_bytes(sound[node][:8], "big")
        for wrong, is_wrong in ((number + 1, True), (number - 4, True), (number - 3, False)):
            content = bytearray(sound)
            content[node.start : node.start + 8] = wrong.to_bytes(8, "big")
            file.write_bytes(content)
            assert bool(complaints(file)) == is_wrong, (number, wrong)
