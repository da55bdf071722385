"""Errors that are kept hold nothing alive: no reader slot of LMDB, no chunk, no descriptor, however many there are.

Collections of cycles are off in these tests: the daemon hardly makes any.
"""

from __future__ import annotations

import errno
import gc
import os
import random
import subprocess
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest
import trio

from nnfs import errors
from nnfs.errors import BlockDamaged, NnfsError, RecordDamaged, StoreError, again, kept
from nnfs.store import schema
from nnfs.store.env import Store
from nnfs.store.schema import MapNode
from tests.blockio.test_commit import CHUNK, Volume, failing, running
from tests.caches import sync_fs
from tests.conftest import why_no_mount
from tests.harness import Mount, nnfs

CHUNKS, READERS = 2000, 16
SLOTS = 50  # far below LMDB's 126, far above what is at work at a time
mounting = pytest.mark.skipif(why_no_mount() is not None, reason="mounting needs root and /dev/fuse")


def reader_slots(store: Store) -> int:
    """Return the number of read txns that LMDB keeps a slot for."""
    return int(store._env.info()["num_readers"])


@pytest.fixture(autouse=True)
def no_collections() -> Iterator[None]:
    """Only what nothing refers to is freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty one."""
    opened = Store.create(tmp_path / "store", CHUNK)
    yield opened
    opened.close()


class Held:
    """Something that a frame holds."""


def raised(error: Exception, held: object = None) -> Exception:
    """The error, with the traceback of a frame that holds something."""
    try:
        raise error
    except Exception as caught:  # noqa: BLE001 - a traceback is wanted
        return caught


# -- errors


def every_error() -> list[Exception]:
    known: list[Exception] = [RecordDamaged("map", b"\1", "why"), BlockDamaged(7, "why"), errors.FsError(errno.ESTALE)]
    plain = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, NnfsError)]
    known += [kind("why") for kind in plain if kind not in (RecordDamaged, BlockDamaged, errors.FsError)]
    return [*known, OSError(errno.EIO, "why"), MemoryError(), KeyError("why"), ExceptionGroup("why", [ValueError(1)])]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_a_stored_error_can_be_raised_again(error: Exception) -> None:
    twin = again(kept(error))
    assert twin is not error
    assert (type(twin), twin.args, vars(twin), str(twin)) == (type(error), error.args, vars(error), str(error))
    for name in ("errno", "exit_code", "table", "key", "block", "exceptions"):
        assert getattr(twin, name, None) == getattr(error, name, None)


@pytest.mark.parametrize("wrap", [lambda error: error, lambda error: ExceptionGroup("several", [error])])
def test_a_kept_error_holds_no_frame(wrap: Callable[[Exception], Exception]) -> None:
    held = Held()
    gone = weakref.ref(held)
    try:
        raise wrap(raised(ValueError("inner"), held)) from raised(KeyError("cause"), held)
    except Exception as caught:  # noqa: BLE001
        error = kept(caught)
    del held
    assert gone() is None
    assert isinstance(error, Exception)


def test_the_traceback_of_a_bug_stays_as_text() -> None:
    bug = kept(raised(ZeroDivisionError("here")))
    assert any("in raised" in note for note in again(bug).__notes__)


# -- the store's transactions


def test_ended_transactions_hold_no_slot(store: Store) -> None:
    held: list[object] = []
    for number in range(300):
        try:
            with store.read() as snapshot:
                half = snapshot.range("inode", b"")
                next(half)
                held += [snapshot, half]
                if number % 3:
                    raise BlockDamaged(number, "damaged")
        except BlockDamaged as error:
            held.append(error)  # with all its frames
        try:
            with store.write() as txn:
                held += [txn, txn.prefix("inode", b"\0")]
                txn.put("hash", b"%d" % number, b"")
                if number % 2:
                    raise BlockDamaged(number, "damaged")
        except BlockDamaged as error:
            held.append(error)
    assert reader_slots(store) <= 3
    assert store.entries("hash") == 150


def test_what_ended_answers_with_an_error(store: Store) -> None:
    with store.read() as snapshot:
        half = snapshot.range("inode", b"")
        next(half)
    snapshot.close()
    for ask in (lambda: list(half), lambda: snapshot.get("inode", b"1"), lambda: snapshot.last("inode")):
        with pytest.raises(StoreError):
            ask()


# -- the reader


def shorten(store: Store, ino: int) -> int:
    """Cut the stored bytes of all blocks of a file: damage that no search can repair; return how many there were."""
    with store.write() as txn:
        nodes = [MapNode.unpack(key, record) for key, record in txn.prefix("map", schema.KEY.pack(ino))]
        numbers = {number for node in nodes for number in node.blocks.values()}
        for number in numbers:
            for key, fragment in list(txn.prefix("payload", schema.KEY.pack(number))):
                txn.put("payload", key, fragment[:-1])
    return len(numbers)


async def damaged_file(volume: Volume) -> int:
    """A file of as many blocks as are wanted, all of them damaged."""
    inode, rng = volume.create(b"damaged"), random.Random(1)
    for number in range(CHUNKS):
        volume.write(inode, number * CHUNK, rng.randbytes(16))
    await volume.committer.sync()
    assert shorten(volume.store, inode.ino) == CHUNKS
    volume.reader.cache.clear()
    return inode.ino


async def test_reads_of_damage_beside_writers(tmp_path: Path) -> None:
    volume = Volume(tmp_path / "s")
    slots, errors_seen = 0, 0
    async with trio.open_nursery() as nursery:
        volume.reader.start(nursery)
        nursery.start_soon(volume.committer.run, nursery)
        ino = await damaged_file(volume)

        async def read(first: int) -> None:
            nonlocal errors_seen, slots
            for chunk in range(first, CHUNKS, READERS):
                with pytest.raises(BlockDamaged):
                    await volume.reader.read(volume.fs.inode(ino), chunk * CHUNK, 16 if chunk % 3 else 4 * CHUNK)
                errors_seen += 1
                slots = max(slots, reader_slots(volume.store))

        async def write(name: bytes) -> None:
            inode = volume.create(name)
            for turn in range(20):
                volume.write(inode, turn * 100, b"%d" % turn * 50)
                await volume.committer.sync_inode(inode.ino)

        async with trio.open_nursery() as readers:
            for first in range(READERS):
                readers.start_soon(read, first)
            for name in (b"a", b"b"):
                readers.start_soon(write, name)
        await volume.committer.finish()
        nursery.cancel_scope.cancel()
    assert errors_seen == CHUNKS
    assert slots <= SLOTS
    assert len(volume.reader.damaged) == CHUNKS
    volume.fs.close()
    volume.store.close()


async def test_failed_commits_hold_no_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path / "s") as volume:
        inode = volume.create(b"f")
        for turn in range(200):
            volume.write(inode, 0, b"%d" % turn * 100)
            await failing(volume, monkeypatch, errors.OutOfSpace("full"))
        assert reader_slots(volume.store) <= 4
        await volume.committer.sync()


async def test_an_error_told_to_many_collects_no_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume(tmp_path / "s")
    volume.create(b"f")
    async with trio.open_nursery() as nursery:
        volume.reader.start(nursery)
        nursery.start_soon(volume.committer.run, nursery)
        await failing(volume, monkeypatch, StoreError("broken"))
        for ask in (volume.committer.sync, volume.committer.admission.throttle) * 100:
            with pytest.raises(StoreError):
                await ask()
        nursery.cancel_scope.cancel()
    assert volume.committer.failure is not None
    assert volume.committer.failure.__traceback__ is None
    volume.fs.close()
    volume.store.close()


# -- a mount


def slots_of(store: Path) -> int:
    """Reader slots that the daemon has taken, as LMDB's lock file tells (0: it needs none)."""
    if not (store / "lock.mdb").exists():
        return 0
    env = lmdb.open(os.fspath(store), readonly=True, lib_version=schema.ENGINE)
    try:
        return len(env.readers().splitlines())
    finally:
        env.close()


@mounting
def test_damage_read_through_a_mount(tmp_path: Path) -> None:
    nnfs("mkfs", str(tmp_path / "store"), "--chunk-size", str(CHUNK))
    with Mount(tmp_path / "store") as mount:
        mount.expect_log("damaged")
        mount.deadline()
        rng, path = random.Random(2), mount.path / "damaged"
        with path.open("wb") as file:
            for number in range(CHUNKS):
                file.seek(number * CHUNK)
                file.write(rng.randbytes(16))
        ino = path.stat().st_ino
        mount.unmount()
        opened = Store.open(tmp_path / "store")
        assert shorten(opened, ino) == CHUNKS
        opened.close()
        mount.mount()
        mount.deadline()
        _read_and_write(mount, path)
        for command in (["df"], ["stat"], ["status"], ["scrub", "--wait"], ["stat"]):  # what meets the damage, too
            nnfs(command[0], str(mount.path), *command[1:], check=False)
        assert slots_of(mount.store) <= SLOTS
        (mount.path / "after").write_bytes(b"still writable")
        fd = os.open(mount.path / "after", os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def _read_and_write(mount: Mount, path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{mount.pid}/fd"))

    failures: list[str] = []
    eio = [0] * READERS

    def read(first: int) -> None:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for chunk in range(first, CHUNKS, READERS):
            try:
                os.pread(fd, 16, chunk * CHUNK)
                failures.append(f"chunk {chunk} was read")
            except OSError as error:
                eio[first] += error.errno == errno.EIO
        os.close(fd)

    def write(name: str) -> None:
        try:
            with (mount.path / name).open("wb") as file:
                for turn in range(30):
                    file.write(b"%d" % turn * 1000)
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            failures.append(f"{name}: {error}")

    before = descriptors()
    threads = [threading.Thread(target=read, args=(first,)) for first in range(READERS)]
    threads += [threading.Thread(target=write, args=(f"written-{n}",)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sum(eio) == CHUNKS
    assert slots_of(mount.store) <= SLOTS
    assert descriptors() <= before + 8


@mounting
def test_commands_on_a_damaged_store_end(tmp_path: Path) -> None:
    """Backups that fail half-way, df, stat and fsck: each again and again, and the mount goes on."""
    with Mount(tmp_path / "store") as mount:
        mount.expect_log("damaged|No space")
        (mount.path / "f").write_bytes(os.urandom(1 << 20))
        sync_fs(mount.path)
        before = len(os.listdir(f"/proc/{mount.pid}/fd"))
        small = tmp_path / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(small)], check=True)
        try:
            for _ in range(6):
                assert nnfs("backup", str(mount.path), str(small / "b"), check=False).returncode != 0
        finally:
            subprocess.run(["umount", str(small)], check=True)
        for _ in range(3):
            nnfs("stat", str(mount.path / "f"))
        assert slots_of(mount.store) <= SLOTS
        assert len(os.listdir(f"/proc/{mount.pid}/fd")) <= before + 8
        (mount.path / "g").write_bytes(b"goes on")
