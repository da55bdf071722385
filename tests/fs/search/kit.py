"""Stores with files for tests of search."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnfs.fs.search import asking, upkeep
from nnfs.fs.search.catalog import Catalog
from nnfs.store.env import Store
from tests.fs.kit import CHUNK, Maker

Request = dict[str, Any]


class Committed:
    """A commit's work, as an amendment sees it."""

    def __init__(self, txn: Any, commit: int) -> None:
        self.txn, self.epoch = txn, self
        self.commit = commit


def make(path: Path, files: Mapping[str, bytes]) -> Store:
    """A store with these files, its directories made."""
    store = Store.create(path, CHUNK)
    with store.write() as txn:
        maker = Maker(txn, store)
        inos = {"": 1}
        for name, data in files.items():
            parts = name.split("/")
            for depth in range(1, len(parts)):
                folder, parent = "/".join(parts[:depth]), "/".join(parts[: depth - 1])
                if folder not in inos:
                    inos[folder] = 15 + len(inos)
                    maker.inode(inos[folder], stat.S_IFDIR | 0o755)
                    maker.name(inos[parent], parts[depth - 1].encode(), inos[folder])
            inos[name] = 15 + len(inos)
            maker.inode(inos[name], stat.S_IFREG | 0o644)
            maker.name(inos["/".join(parts[:-1])], parts[-1].encode(), inos[name])
            chunks = {at // CHUNK: data[at : at + CHUNK] for at in range(0, len(data), CHUNK)}
            maker.content(inos[name], chunks, len(data))
        maker.finish()
    return store


def index(store: Store, since: int = 0) -> int:
    """Make all vectors that are missing, as a mount does. Return how many there were."""
    walk, made = upkeep.Walk(store, since), list[upkeep.Made]()
    while (found := walk.next()) is not None:
        made += found.made
    with store.write() as txn:
        upkeep.store_vectors(Committed(txn, store.state.commit), made, store.state.commit)
    return len(made)


def paths(store: Store, catalog: Catalog | None = None, **request: Any) -> list[str]:
    """The answers to a request, best first."""
    catalog = catalog or Catalog(store, 1 << 30)
    return [one["path"] for one in asking.answer(store, catalog, request)["found"]]


def tree(names: Iterable[str]) -> dict[str, bytes]:
    """Empty files of these names."""
    return dict.fromkeys(names, b"")
