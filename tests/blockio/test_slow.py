"""Reads that wait for a slow or stuck decoder: the rest of the mount must not notice."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from nnfs.store import schema
from nnfs.store.env import Store
from nnfs.store.schema import Block
from tests.blockio.slow_daemon import GATED
from tests.harness import Mount, nnfs, wait_for

FILES = 200
SIZE = 8192
SCRIPT = Path(__file__).with_name("slow_daemon.py")


def content(number: int) -> bytes:
    return number.to_bytes(4, "big") * (SIZE // 4)


def make_store(path: Path) -> None:
    """A store with `FILES` files in the codec "gated" and one in a hot one."""
    with Mount(path) as mount:
        for number in range(FILES):
            (mount.path / f"slow{number}").write_bytes(content(number + 1))
        os.sync()
    store = Store.open(path)
    with store.write() as txn:
        for key, record in list(txn.range("block", b"")):
            block = Block.unpack(key, record)
            block.codec, block.stored = GATED, block.plain
            txn.delete_prefix("payload", schema.KEY.pack(block.payload))
            number = next(n for n in range(1, FILES + 1) if blake2b(content(n)).digest() == block.hash)
            txn.put("payload", schema.FRAGMENT_KEY.pack(block.payload, 0), content(number))
            txn.put("block", key, block.pack(key))
    store.close()
    with Mount(path) as mount:
        (mount.path / "hot").write_bytes(b"hot" * 1000)


@contextmanager
def gated(tmp_path: Path, *options: str) -> Iterator[tuple[Mount, Path]]:
    """A mount on which slow files are read only once somebody opens the FIFO for writing."""
    store, fifo = tmp_path / "store", tmp_path / "gate"
    make_store(store)
    os.mkfifo(fifo)
    with Mount(
        store, options=options, argv=lambda m: [sys.executable, str(SCRIPT), str(fifo), str(m.store), str(m.path)]
    ) as mount:
        yield mount, fifo


def reads_waiting(mount: Mount) -> int:
    status: dict[str, int] = json.loads(nnfs("status", str(mount.store), "--json").stdout)
    return status["reads_waiting"]


def read_all(mount: Mount, pool: ThreadPoolExecutor) -> list[Future[bytes]]:
    futures = [pool.submit((mount.path / f"slow{number}").read_bytes) for number in range(FILES)]
    wait_for("all reads to reach the daemon", lambda: reads_waiting(mount) >= FILES, 120, 0.2)
    return futures


def open_gate(fifo: Path, futures: Sequence[Future[Any]]) -> None:
    while not all(future.done() for future in futures):
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            assert error.errno == errno.ENXIO  # no decoder waits just now
        wait_for("a moment", lambda: True, 1)


@pytest.mark.mount
def test_two_hundred_stuck_reads_stop_nobody_else(tmp_path: Path) -> None:
    with gated(tmp_path) as (mount, fifo), ThreadPoolExecutor(FILES) as pool:
        futures = read_all(mount, pool)
        mount.deadline(60)
        try:
            assert (mount.path / "hot").read_bytes() == b"hot" * 1000
            assert os.stat(mount.path / "slow7").st_size == SIZE
            assert len(os.listdir(mount.path)) == FILES + 1
            with open(mount.path / "new", "wb") as file:
                file.write(os.urandom(1 << 20))
                os.fsync(file.fileno())
            os.rename(mount.path / "new", mount.path / "renamed")
            assert not any(future.done() for future in futures)
        finally:
            mount.deadline(0)
            open_gate(fifo, futures)
        for number, future in enumerate(futures):
            assert future.result() == content(number + 1)


@pytest.mark.mount
def test_a_stuck_read_ends_within_its_bound(tmp_path: Path) -> None:
    with gated(tmp_path, "read_timeout=0.2") as (mount, _):
        mount.expect_log("not answered within 0.2 s|waits for the decoding")
        for number in range(3):
            with pytest.raises(OSError, match="Input/output error"):
                (mount.path / f"slow{number}").read_bytes()
        assert (mount.path / "hot").read_bytes() == b"hot" * 1000


@pytest.mark.mount
def test_an_overlay_waits_for_its_base_in_memory(tmp_path: Path) -> None:
    """A partial write over a chunk that is not decoded in time is reported by fsync, kept, and lands once it can be."""
    page = os.urandom(4096)
    with gated(tmp_path, "read_timeout=0.5") as (mount, fifo):
        mount.expect_log("not answered within|waits for the decoding")
        descriptor = os.open(mount.path / "slow0", os.O_WRONLY)
        os.pwrite(descriptor, page, 4096)  # a whole page: the kernel need not read before it writes
        with pytest.raises(OSError, match="Input/output error"):
            os.fsync(descriptor)
        (mount.path / "other").write_bytes(b"other")
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(wait_for, "the overlay to be stored", lambda: stored(descriptor), 60)
            open_gate(fifo, [future])
        os.close(descriptor)
        with ThreadPoolExecutor(1) as pool:
            mount.drop_caches()
            future = pool.submit((mount.path / "slow0").read_bytes)
            open_gate(fifo, [future])
            assert future.result() == content(1)[:4096] + page


def stored(descriptor: int) -> bool:
    try:
        os.fsync(descriptor)
    except OSError as error:
        assert error.errno == errno.EIO
        return False
    return True
