"""A store with quotas, made when they were new and kept for ever: every later version counts as it does.

`python -m tests.test_golden_quotas FILE` made it: one quota within another, one whose inodes were being counted, and an
open file without a name.
"""

from __future__ import annotations

import lzma
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from struct import unpack

import pytest

from nnfs.constants import DATA_FILE
from nnfs.fs import fsck, quotareport
from nnfs.fs.filesystem import Filesystem
from nnfs.store import quotas, schema
from nnfs.store.env import Store
from tests.fs.quotakit import QuotaWorld

GOLDEN = Path(__file__).parent / "golden" / "quotas-1.mdb.xz"
RECORDS = {  # root above flags max_bytes max_inodes size inodes
    1: (16, 0, 0, 1000, 6, 150, 3), 2: (17, 1, 0, 60, 0, 50, 2), 3: (18, 0, 1, 0, 9, 0, 1),
}  # fmt: skip
PATHS = {1: "/d", 2: "/d/e", 3: "/g"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / DATA_FILE).write_bytes(lzma.decompress(GOLDEN.read_bytes()))
    opened = Store.open(tmp_path)
    yield opened
    opened.close()


def test_the_records_are_those_of_the_document(store: Store) -> None:
    """Read by the byte table of FORMAT.md."""
    with store.read() as snapshot:
        for number, fields in RECORDS.items():
            key = b"nnfs.quota" + number.to_bytes(2, "big")
            assert snapshot.get("meta", key) == snapshot.get("main", key)
            assert unpack(">QHBQQQQ", (snapshot.get("meta", key) or b"")[:43]) == fields
        assert [line["path"] for line in quotareport.lines(snapshot)] == list(PATHS.values())
    assert store.superblock.ro_compat == quotas.RO_QUOTAS
    assert not store.read_only


def test_it_is_sound(store: Store) -> None:
    assert not fsck.check(store, data=True, repair=False, progress=lambda *_: None).problems
    with store.read() as snapshot:
        assert quotareport.check(snapshot) == quotareport.Found()


def test_the_open_file_counts_no_more(store: Store) -> None:
    fs = Filesystem(store)
    levels = {number: fs.quotas.chain(number)[0] for number in RECORDS}
    assert {number: (level.size, level.inodes) for number, level in levels.items()} == {
        1: (100, 4), 2: (50, 2), 3: (0, 1),
    }  # fmt: skip
    fs.close()


def make(target: Path) -> None:
    """Write the store into a file."""
    with tempfile.TemporaryDirectory() as folder:
        world = QuotaWorld(Path(folder, "store"), 1)
        for path in ("d", "d/e", "g"):
            above, _, name = path.rpartition("/")
            world.names.create(world.inode(above).ino, name.encode(), 0o40755, 0, 0, 0)
        world.service().set_limits(world.inode("d"), 1000, 6)
        world.service().set_limits(world.inode("d/e"), 60)
        world.settle()
        for path, size in (("d/a", 50), ("d/e/b", 50), ("d/open", 100), ("g/c", 10)):
            above, _, name = path.rpartition("/")
            inode = world.names.create(world.inode(above).ino, name.encode(), 0o100644, 0, 0, 0)
            world.attributes.resized(inode, size)
        opened = world.inode("d/open").ino
        world.fs.remember(opened)
        world.names.unlink(world.inode("d").ino, b"open")
        world.service().set_limits(world.inode("g"), None, 9)
        world.commit()
        world.close()
        target.write_bytes(lzma.compress(Path(folder, "store", DATA_FILE).read_bytes(), preset=9))


if __name__ == "__main__":
    assert schema.ROOT_INO == 1
    make(Path(os.path.abspath(sys.argv[1])))
