"""A store with something of everything, made through a mount."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

from nnfs.model import selftest
from nnfs.model.weights import save_weights
from nnfs.store import modelfiles
from nnfs.store.blocks import BlockWriter
from nnfs.store.env import Store
from nnfs.workers.catalogue import fingerprint
from tests.caches import sync_fs
from tests.damage.truth import Mounted, Truth
from tests.harness import Mount, nnfs

CHUNK = 16384


@dataclass(frozen=True)
class Sample:
    """The store's data file, and what it holds."""

    content: bytes
    truth: Truth


def populate(root: Path) -> None:
    """Files of all kinds, in several commits, with deletions between them: the store gets free and stale pages."""
    rng = random.Random(3)
    for turn in range(3):
        for n in range(60):
            folder = root / f"d{n % 4}"
            folder.mkdir(exist_ok=True)
            path = folder / f"file-{n}"
            path.write_bytes(rng.randbytes(rng.choice((0, 10, 900, 5000))) + b"%d %d " % (turn, n) * rng.randrange(900))
            os.setxattr(path, "user.n", b"%d-%d" % (turn, n))
        sync_fs(root)
    with (root / "large").open("wb") as file:
        for n in range(150):  # three map nodes
            file.write(rng.randbytes(CHUNK) if n % 3 else b"%d" % n * (CHUNK // len(b"%d" % n)))
    sync_fs(root)
    with (root / "large").open("r+b") as file:
        for n in range(0, 150, 11):
            file.seek(n * CHUNK + 100)
            file.write(b"overwritten %d" % n)
    with (root / "sparse").open("wb") as file:
        for n in (0, 70, 300):
            file.seek(n * CHUNK * 3)
            file.write(rng.randbytes(3000))
    (root / "copy").write_bytes((root / "large").read_bytes()[: 40 * CHUNK])
    (root / "link").symlink_to("x" * 200)
    os.link(root / "large", root / "d0" / "hard")
    os.setxattr(root / "large", "user.big", rng.randbytes(3000))
    for n in range(0, 60, 5):
        (root / f"d{n % 4}" / f"file-{n}").unlink()
    many = root / "many"
    many.mkdir()
    for n in range(400):  # several leaf pages of dentries
        (many / f"a rather long name, so that a page holds few of them {n}").touch()


def build(folder: Path) -> Sample:
    """Make the sample in a directory."""
    store = folder / "sample"
    nnfs("mkfs", str(store), "--chunk-size", str(CHUNK))
    keep_model(store, folder / "model")
    with Mount(store) as mount:
        mount.deadline()
        populate(mount.path)
        mount.remount()
        mount.deadline()
        truth = Truth.of(Mounted(mount.path))
    return Sample((store / "data.mdb").read_bytes(), truth)


def keep_model(path: Path, file: Path) -> None:
    """Put a small model into the store, as a commit would."""
    save_weights(selftest.weights(selftest.ARCHITECTURE, b"damage"), str(file), {})
    data = file.read_bytes()
    store = Store.open(path)
    with store.write() as txn:
        state = store.state
        state.commit += 1
        state.clean_commit = state.commit
        blocks = BlockWriter(txn, state, 0, 0)
        modelfiles.add_model(txn, blocks, fingerprint(data), data, base=0, added=7, commit=state.commit)
        blocks.flush()
        txn.put_state(state)
    store.close()
