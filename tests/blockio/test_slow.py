"""Cold reads whose worker is stopped: they wait, the rest of the mount must not notice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from xxhash import xxh3_64_intdigest

from nnfs.blockio.cold import READ
from nnfs.cli.client import ask
from nnfs.store import schema
from nnfs.store.env import Store
from nnfs.store.schema import Block
from tests.caches import sync_fs
from tests.harness import Mount, wait_for
from tests.workers.kit import FAKE, payload

FILES = 200
SIZE = 8192
WRITERS = 20
SCRIPT = Path(__file__).with_name("slow_daemon.py")


def content(number: int) -> bytes:
    return number.to_bytes(4, "big") * (SIZE // 4)


def make_store(path: Path) -> None:
    """A store with `FILES` files and one more in the fake codec, and one in a hot one."""
    with Mount(path) as mount:
        for number in range(FILES + 1):
            (mount.path / f"slow{number}").write_bytes(content(number + 1))
        sync_fs(mount.path)
    store = Store.open(path)
    with store.write() as txn:
        for key, record in list(txn.range("block", b"")):
            block = Block.unpack(key, record)
            number = next(n for n in range(1, FILES + 2) if blake2b(content(n)).digest() == block.hash)
            stored = payload(content(number))
            txn.delete_prefix("payload", schema.KEY.pack(block.payload))
            for index, at in enumerate(range(0, len(stored), schema.FRAGMENT_MAX)):
                fragment = stored[at : at + schema.FRAGMENT_MAX]
                txn.put("payload", schema.FRAGMENT_KEY.pack(block.payload, index), fragment)
            block.codec, block.stored, block.xxh3 = FAKE, len(stored), xxh3_64_intdigest(stored)
            txn.put("block", key, block.pack(key))
    store.close()
    with Mount(path) as mount:
        (mount.path / "hot").write_bytes(b"hot" * 1000)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of these tests, made once."""
    path = tmp_path_factory.mktemp("made") / "store"
    make_store(path)
    return path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    copy = tmp_path / "store"
    subprocess.run(["cp", "-r", "--sparse=always", made, copy], check=True)
    return copy


def status(mount: Mount) -> dict[str, Any]:
    """Return the status without a child process, which would close its copies of our descriptors and wait."""
    return ask(mount.store, "status")


def is_read(path: Path, want: bytes) -> bool:
    """Whether a read gave what it must; with a short `read_timeout` it fails until the worker has started."""
    try:
        return path.read_bytes() == want
    except OSError:
        return False


@contextmanager
def stopped(store: Path, *options: str) -> Iterator[tuple[Mount, int]]:
    """A mount whose worker for reads is stopped (SIGSTOP) after its first read, and its process id."""
    with Mount(
        store, options=options, argv=lambda m: [sys.executable, str(SCRIPT), str(m.store), str(m.path)]
    ) as mount:
        wait_for("a first read", lambda: is_read(mount.path / f"slow{FILES}", content(FILES + 1)))
        pid = next(worker["pid"] for worker in status(mount)["workers"] if worker["name"] == READ)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield mount, pid
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def read_all(mount: Mount, pool: ThreadPoolExecutor) -> list[Future[bytes]]:
    futures = [pool.submit((mount.path / f"slow{number}").read_bytes) for number in range(FILES)]
    wait_for("all reads to reach the daemon", lambda: status(mount)["reads_waiting"] >= FILES, step=0.2)
    return futures


@pytest.mark.mount
def test_two_hundred_stuck_reads_stop_nobody_else(store: Path) -> None:
    with stopped(store) as (mount, pid), ThreadPoolExecutor(FILES) as pool:
        futures = read_all(mount, pool)
        mount.deadline()
        try:
            assert (mount.path / "hot").read_bytes() == b"hot" * 1000
            assert os.stat(mount.path / "slow7").st_size == SIZE
            assert len(os.listdir(mount.path)) == FILES + 2
            with open(mount.path / "new", "wb") as file:
                file.write(os.urandom(1 << 20))
                os.fsync(file.fileno())
            os.rename(mount.path / "new", mount.path / "renamed")
            assert not any(future.done() for future in futures)
        finally:
            mount.deadline(0)
            os.kill(pid, signal.SIGCONT)
        for number, future in enumerate(futures):
            assert future.result() == content(number + 1)


@pytest.mark.mount
def test_a_killed_worker_is_replaced(store: Path) -> None:
    with stopped(store) as (mount, pid), ThreadPoolExecutor(FILES) as pool:
        futures = read_all(mount, pool)
        os.kill(pid, signal.SIGKILL)
        for number, future in enumerate(futures):
            assert future.result() == content(number + 1)
        (worker,) = (worker for worker in status(mount)["workers"] if worker["name"] == READ)
        assert (worker["starts"], worker["deaths"]) == (2, 1)


@pytest.mark.mount
def test_a_stuck_read_ends_within_its_bound(store: Path) -> None:
    with stopped(store, "read_timeout=0.2") as (mount, _):
        mount.expect_log("nothing was decoded for 0.2 s|waits for the decoding")
        for number in range(3):
            with pytest.raises(OSError, match="Input/output error"):
                (mount.path / f"slow{number}").read_bytes()
        assert (mount.path / "hot").read_bytes() == b"hot" * 1000


@pytest.mark.mount
def test_who_writes_into_a_cold_chunk_waits_alone(store: Path) -> None:
    """It waits as readers do. Nothing is lost or half written, even if the worker or the daemon dies."""
    page = os.urandom(4096)
    with stopped(store) as (mount, pid):
        descriptors = [os.open(mount.path / f"slow{number}", os.O_WRONLY) for number in range(WRITERS)]
        with ThreadPoolExecutor(2 * WRITERS) as pool:
            for descriptor in descriptors:
                os.pwrite(descriptor, page, 4096)  # a whole page: the kernel need not read before it writes
            synced = [pool.submit(os.fsync, descriptor) for descriptor in descriptors]
            cut = [pool.submit(os.truncate, mount.path / f"slow{WRITERS + n}", 10) for n in range(WRITERS)]
            wait_for("all to reach the daemon", lambda: status(mount)["reads_waiting"] >= 2 * WRITERS, step=0.1)
            mount.deadline()
            try:
                with open(mount.path / "other", "wb") as file:
                    file.write(b"other")
                    os.fsync(file.fileno())
                os.mkdir(mount.path / "directory")
                os.unlink(mount.path / "hot")
                assert status(mount)["dirty_bytes"] < 64 << 10
                assert not any(future.done() for future in synced + cut)
            finally:
                mount.deadline(0)
                os.kill(pid, signal.SIGCONT)
            for future in synced + cut:
                future.result()
        for descriptor in descriptors:
            os.close(descriptor)
        mount.drop_caches()
        for number in range(WRITERS):
            assert (mount.path / f"slow{number}").read_bytes() == content(number + 1)[:4096] + page
            assert (mount.path / f"slow{WRITERS + number}").read_bytes() == content(WRITERS + number + 1)[:10]


@pytest.mark.mount
def test_a_write_into_what_cannot_be_decoded_fails(store: Path) -> None:
    with stopped(store, "read_timeout=0.5") as (mount, pid):
        mount.expect_log("nothing was decoded")
        with open(mount.path / "slow0", "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), os.urandom(4096), 4096)
            with pytest.raises(OSError, match="Input/output error"):
                os.fsync(file.fileno())
        with pytest.raises(OSError, match="Input/output error"):
            os.truncate(mount.path / "slow1", 10)
        os.kill(pid, signal.SIGCONT)
        with suppress(OSError):
            mount.drop_caches()  # syncfs may say it as well, once
        mount.drop_caches()
        assert (mount.path / "slow0").read_bytes() == content(1)
        assert (mount.path / "slow1").read_bytes() == content(2)


@pytest.mark.mount
def test_what_was_thawed_outlives_a_mount(store: Path) -> None:
    with stopped(store) as (mount, _):
        pass
    with Mount(store, argv=lambda m: [sys.executable, str(SCRIPT), str(m.store), str(m.path)]) as mount:
        assert (mount.path / f"slow{FILES}").read_bytes() == content(FILES + 1)
        assert all(worker["starts"] == 0 for worker in status(mount)["workers"])
