"""Stores where the address space is limited. `RLIMIT_AS` is set in child processes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import pytest

from nnfs.constants import DATA_FILE
from nnfs.errors import OutOfSpace, StoreError
from nnfs.store import mapsize, schema
from nnfs.store.env import Store
from nnfs.store.txn import translate
from tests.caches import wrote
from tests.conftest import why_no_mount
from tests.harness import command, environment, mounted_at, nnfs, wait_for

needs_mount = pytest.mark.skipif(why_no_mount() is not None, reason=f"mounting {why_no_mount()}")
MIB = 1 << 20


def limited(argv: list[str], mib: int) -> subprocess.CompletedProcess[str]:
    """Run a command with so much address space."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (mib * MIB, mib * MIB))

    return subprocess.run(argv, env=environment(), capture_output=True, text=True, preexec_fn=limit)


def test_without_a_limit_the_map_is_full_size(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    assert (store.map_size, store.is_limited) == (mapsize.FULL, False)
    store.close()


@pytest.mark.parametrize("mib", [8_000_000 // 1024, 4000, 2000, 1000])
def test_a_limit_leaves_a_smaller_map(mib: int, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom nnfs.store import mapsize\nfrom nnfs.store.env import Store\n"
        "used = mapsize.used()\nstore = Store.create(Path(sys.argv[1]))\n"
        "print(store.map_size, store.is_limited, used)\nstore.mark_clean()\n"
        "store.close()\nStore.open(Path(sys.argv[1])).close()\n"
    )
    done = limited([sys.executable, "-c", script, str(tmp_path / "store")], mib)
    assert done.returncode == 0, done.stderr
    size, is_limited, used = done.stdout.split()
    rest = mib * MIB - int(used)  # how much an interpreter takes before differs between machines
    assert rest // 4 <= int(size) <= rest // 2
    assert is_limited == "True"
    assert nnfs("fsck", str(tmp_path / "store")).returncode == 0
    store = Store.open(tmp_path / "store")  # the next one has it all again
    assert not store.is_limited
    store.close()


def test_a_store_that_does_not_fit_says_what_to_do(tmp_path: Path) -> None:
    Store.create(tmp_path / "store").close()
    os.truncate(tmp_path / "store" / DATA_FILE, 2 << 30)
    done = limited(command("df", str(tmp_path / "store")), 1000)
    assert done.returncode == StoreError.exit_code
    assert "limited to 1000 MiB" in done.stderr
    assert "ulimit -v unlimited" in done.stderr
    assert "LimitAS=infinity" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_machine_that_cannot_map_so_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = lmdb.open

    def small(path: bytes, map_size: int, **words: Any) -> lmdb.Environment:
        sizes.append(map_size)
        if map_size > 1 << 38:
            raise lmdb.MemoryError("Cannot allocate memory")
        return real(path, map_size=map_size, **words)

    monkeypatch.setattr("nnfs.store.env.lmdb.open", small)
    store = Store.create(tmp_path / "store")
    assert (store.map_size, store.is_limited) == (1 << 38, True)
    store.close()
    monkeypatch.setattr("nnfs.store.env.lmdb.open", lambda *_, **__: (_ for _ in ()).throw(lmdb.MemoryError("none")))
    with pytest.raises(StoreError, match="cannot map"):
        Store.open(tmp_path / "store")
    assert sizes[:3] == [1 << 44, 1 << 43, 1 << 42]


def test_a_full_map_says_so() -> None:
    error = translate(lmdb.MapFullError("MDB_MAP_FULL"))
    assert isinstance(error, OutOfSpace)
    assert "ulimit -v" in str(error)


@needs_mount
@pytest.mark.mount
def test_mounted_with_a_limit(tmp_path: Path) -> None:
    store, mnt, log = tmp_path / "store", tmp_path / "mnt", tmp_path / "log"
    mnt.mkdir()
    Store.create(store).close()
    done = limited(command("mount", str(store), str(mnt), "--log", str(log), "-o", "compact=off"), 8_000_000 // 1024)
    assert done.returncode == 0, done.stderr
    try:
        assert mounted_at(mnt)
        (mnt / "file").write_bytes(os.urandom(1 << 20))
    finally:
        nnfs("umount", str(mnt))
    assert "address space or file sizes are limited" in log.read_text()
    assert nnfs("fsck", str(store), "--data").returncode == 0


def test_a_file_that_may_not_grow_is_mapped_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = resource.getrlimit
    monkeypatch.setattr(
        "nnfs.store.mapsize.resource.getrlimit",
        lambda which: (100 * MIB + 7, 100 * MIB + 7) if which == resource.RLIMIT_FSIZE else real(which),
    )
    store = Store.create(tmp_path / "store")
    assert (store.map_size, store.is_limited) == (100 * MIB, True)
    left = store.map_left(1)
    assert 99 * MIB < left < 100 * MIB
    with store.write() as txn:
        txn.put("payload", schema.KEY.pack(1), os.urandom(10 * MIB))
    assert left - 11 * MIB < store.map_left(1) <= left - 10 * MIB
    store.close()
    os.truncate(tmp_path / "store" / DATA_FILE, 200 * MIB)  # larger than the limit already: it cannot grow
    store = Store.open(tmp_path / "store")
    assert store.map_size == 200 * MIB
    store.close()


@needs_mount
@pytest.mark.mount
def test_a_full_map_is_a_full_disk(tmp_path: Path) -> None:
    """Before, the limit was met within a commit: the mount turned read-only, and what was not synced was lost."""
    store, mnt = tmp_path / "store", tmp_path / "mnt"
    mnt.mkdir()
    Store.create(store).close()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (96 * MIB, 96 * MIB))

    kept = ["setpriv", "--bounding-set=-sys_resource"]  # else root lifts the limit
    done = subprocess.run(
        [*kept, *command("mount", str(store), str(mnt), "-o", "compact=off")],
        env=environment(), capture_output=True, text=True, preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (mnt / "old").write_bytes(b"old")
    try:
        written = next(n for n in range(20) if not wrote(mnt / f"f{n}", os.urandom(8 * MIB)))
        assert 5 <= written <= 11
        assert os.statvfs(mnt).f_bavail * os.statvfs(mnt).f_frsize < 8 * MIB
        for number in range(written + 1):
            (mnt / f"f{number}").unlink()
        data = os.urandom(16 * MIB)
        wait_for("room", lambda: wrote(mnt / "new", data))
        assert (mnt / "old").read_bytes() == b"old"
    finally:
        ended = nnfs("umount", str(mnt))
    assert ended.returncode == 0, ended.stderr
    assert nnfs("fsck", str(store), "--data").returncode == 0
