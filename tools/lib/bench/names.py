"""CPU time of name and attribute look-ups in the daemon's own layers, without FUSE: for comparing two checkouts.

`PYTHONPATH=CHECKOUT .venv/bin/python tools/lib/bench/names.py` prints microseconds of the CPU, the best of five.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from nnfs.fs.apply import apply
from nnfs.fs.filesystem import Filesystem
from nnfs.fs.namespace import Namespace
from nnfs.fs.xattrs import Xattrs
from nnfs.store.env import Store

FILES, ROUNDS, REPLY = 10_000, 5, 25


class Tree:
    """One directory of many files in a new store."""

    def __init__(self, path: Path) -> None:
        self.store = Store.create(path)
        self.fs = Filesystem(self.store)
        self.xattrs = Xattrs(self.fs)
        self.names = Namespace(self.fs, self.xattrs)

    def commit(self) -> None:
        self.fs.committed(apply(self.store, self.fs.freeze(), {}, 0, 0)[0])

    def create(self) -> None:
        for n in range(FILES):
            self.names.create(1, b"file %d" % n, 0o100644, 0, 0, 0)

    def unlink(self) -> None:
        for n in range(FILES):
            self.names.unlink(1, b"file %d" % n)

    def look_up(self, prefix: bytes) -> None:
        for n in range(FILES):
            self.names.lookup(1, prefix + b" %d" % n)

    def list(self) -> None:
        """List the directory in replies of the size that the kernel asks for first."""
        after = 0
        while found := list(islice(self.names.entries(1, after), REPLY)):
            after = found[-1][0]

    def lack_attributes(self) -> None:
        inode = self.names.lookup(1, b"file 5")
        assert inode is not None
        for _ in range(FILES):
            self.xattrs.get(inode, b"security.capability")


def measure() -> dict[str, float]:
    """Return microseconds of CPU time for each name or attribute, the best of five."""
    best: dict[str, float] = {}

    def note(name: str, work: Callable[[], None]) -> None:
        before = time.process_time()
        work()
        best[name] = min(best.get(name, 1e9), (time.process_time() - before) / FILES * 1e6)

    for _ in range(ROUNDS):
        folder = Path(tempfile.mkdtemp(prefix="nnfs-names-", dir="/var/tmp"))
        tree = Tree(folder / "store")
        note("create", tree.create)
        note("commit", tree.commit)
        note("look up a name", lambda: tree.look_up(b"file"))  # noqa: B023 - called here
        note("look up no name", lambda: tree.look_up(b"none"))  # noqa: B023
        note("list", tree.list)
        inode = tree.names.lookup(1, b"file 5")
        assert inode is not None
        for name in (b"user.a", b"user.b"):
            tree.xattrs.put(inode, name, b"value")
        tree.commit()
        note("look up no attribute of two", tree.lack_attributes)
        note("unlink", tree.unlink)
        tree.fs.close()
        tree.store.close()
        shutil.rmtree(folder)
    return best


def main() -> None:
    for what, value in measure().items():
        print(f"{what:30} {value:6.2f}")


if __name__ == "__main__":
    main()
