"""The second decoder, which was written from the document, reads snapshots that nnfs has taken."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnfs.fs import apply as apply_module
from tests.format.decoder.snapshots import SnapshotStore
from tests.fs.pastkit import World, model


@pytest.mark.parametrize("seed", [100, 101])
def test_snapshots_can_be_read_by_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(apply_module, "RELEASE_NODES", 2)
    world = World(tmp_path / "store", seed)
    try:
        while len(world.past) < 3 or world.taken < 8:
            world.step()
        world.commit()
    finally:
        world.close()
    for name, tree in world.past.items():
        reader = SnapshotStore(os.fspath(tmp_path / "store"), name)
        try:
            entries = list(reader.tree())
        finally:
            reader.close()
        seen = {one.path.decode().lstrip("/"): (one.inode.mode, one.chunks, one.xattrs) for one in entries}
        assert seen == {path: (mode, chunks, xattrs) for path, (mode, _, chunks, xattrs, _) in model(tree).items()}
