"""The walk through LMDB's pages finds what the engine finds."""

from __future__ import annotations

import random
from pathlib import Path

import lmdb

from tests.damage.pages import PAGE, Walk


def test_walk_finds_every_record_and_page(tmp_path: Path) -> None:
    rng = random.Random(1)
    truth = {}
    with lmdb.open(str(tmp_path), map_size=1 << 28, max_dbs=4, lib_version=0) as env:
        tables = {name: env.open_db(name.encode()) for name in ("one", "two")}
        for _ in range(3):  # several txns, so that there are free pages
            with env.begin(write=True) as txn:
                for n in range(600):
                    name = rng.choice(("one", "two"))
                    key, value = b"%d" % n, rng.randbytes(rng.choice((5, 300, 9000)))
                    txn.put(key, value, db=tables[name])
                    truth[name, key] = value
        last = env.info()["last_pgno"]
        pages = dict.fromkeys(tables, 0)
        with env.begin() as txn:
            for name, table in tables.items():
                stat = txn.stat(table)
                pages[name] = stat["branch_pages"] + stat["leaf_pages"]
    content = (tmp_path / "data.mdb").read_bytes()
    walk = Walk(content)
    for name in tables:
        found = {record.key: content[record.start : record.end] for record in walk.of(name)}
        assert found == {key: value for (table, key), value in truth.items() if table == name}
        headers = [s for s in walk.spans if s.table == name and s.what in ("branch header", "leaf header")]
        assert len(headers) == pages[name]
    free = sum(1 for span in walk.spans if span.what == "free page")
    assert 0 < free <= last + 1 - sum(pages.values())
    assert all(0 <= span.start <= span.end <= len(content) for span in walk.spans)
    assert len(content) // PAGE == last + 1


def test_newest_meta_page_is_found(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), map_size=1 << 28, max_dbs=4, lib_version=0) as env:
        for n in range(5):
            with env.begin(write=True) as txn:
                txn.put(b"k", b"%d" % n)
            content = (tmp_path / "data.mdb").read_bytes()
            [record] = Walk(content).of("main")
            assert content[record.start : record.end] == b"%d" % n
