"""Group commit on a real store, without a mount: failed commits, waiters, releases, what readers see meanwhile."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from nnfs.blockio.commit import Committer
from nnfs.blockio.dirty import DirtyData
from nnfs.blockio.space import Space
from nnfs.errors import OutOfSpace, StoreDamaged
from nnfs.fs import fsck
from nnfs.fs.apply import apply
from nnfs.fs.filesystem import Filesystem
from nnfs.fs.namespace import Namespace
from nnfs.fs.xattrs import Xattrs
from nnfs.mount.daemon import SWITCH_INTERVAL
from nnfs.store import schema
from nnfs.store.env import Store
from nnfs.store.schema import Inode
from nnfs.store.txn import WriteTxn
from tests.blockio.kit import make_reader
from tests.harness import WAIT_S

CHUNK = schema.MIN_CHUNK_SIZE


class Volume:
    """The daemon's parts without FUSE."""

    def __init__(self, path: Path, timeout: float = WAIT_S) -> None:
        self.store = Store.open(path) if path.exists() else Store.create(path, CHUNK)
        self.data = DirtyData(CHUNK)
        self.fs = Filesystem(self.store, on_release=self.data.drop)
        self.names = Namespace(self.fs, Xattrs(self.fs))
        self.fetcher, self.reader = make_reader(self.store, self.fs, self.data, timeout=timeout)
        self.committer = Committer(
            self.store, self.fs, self.data, self.reader, Space(path, 4 << 20), lambda *args: apply(self.store, *args)
        )

    def create(self, name: bytes) -> Inode:
        return self.names.create(schema.ROOT_INO, name, 0o100644, 0, 0, 0)

    def write(self, inode: Inode, offset: int, content: bytes) -> None:
        self.committer.encoding.offer(self.data.write(inode.ino, offset, content, inode.size))
        inode.size = max(inode.size, offset + len(content))
        self.fs.touch(inode)

    async def content(self, inode: Inode) -> bytes:
        return bytes(await self.reader.read(inode, 0, inode.size))


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[Volume]:
    volume = Volume(path)
    sys.setswitchinterval(SWITCH_INTERVAL)
    async with trio.open_nursery() as nursery:
        volume.reader.start(nursery)
        nursery.start_soon(volume.committer.run, nursery)
        yield volume
        await volume.committer.finish()
        nursery.cancel_scope.cancel()
    volume.fs.close()
    report = fsck.check(volume.store, data=True, repair=False, progress=lambda *_: None)
    volume.store.close()
    assert not report.problems, report.problems


async def failing(volume: Volume, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """One commit that fails as late as it can, when blocks have got their numbers already."""

    def broken(self: WriteTxn, *args: object) -> None:
        raise error

    with monkeypatch.context() as context:
        context.setattr(WriteTxn, "put_state", broken)
        with pytest.raises(type(error)):
            await volume.committer.sync()


async def test_sync_is_durable(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        inode = volume.create(b"f")
        volume.write(inode, 5, b"content")
        before = volume.store.state.commit
        await volume.committer.sync()
        assert volume.store.state.commit > before
        assert volume.data.size == 0
        await volume.committer.sync()  # nothing to do
        assert await volume.content(inode) == bytes(5) + b"content"


async def test_a_failed_commit_never_shows_other_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block numbers of the failed transaction are given to other blocks by the next one."""
    rng = random.Random(1)
    async with running(tmp_path / "s") as volume:
        files = [volume.create(b"f%d" % number) for number in range(4)]
        truth = {inode.ino: bytearray(rng.randbytes(3 * CHUNK)) for inode in files}
        for inode in files:
            volume.write(inode, 0, bytes(truth[inode.ino]))
        await volume.committer.sync()
        for step in range(30):
            for inode in rng.sample(files, 3):
                offset, piece = rng.randrange(2 * CHUNK), rng.randbytes(rng.randrange(1, 300))
                truth[inode.ino][offset : offset + len(piece)] = piece
                volume.write(inode, offset, piece)
            if step % 3:
                await failing(volume, monkeypatch, OutOfSpace("full"))
            else:
                await volume.committer.sync()
            for inode in files:
                assert await volume.content(inode) == bytes(truth[inode.ino]), f"step {step}"
        await volume.committer.sync()
        for inode in files:
            assert await volume.content(inode) == bytes(truth[inode.ino])
        volume.reader.cache.clear()
        for inode in files:
            assert await volume.content(inode) == bytes(truth[inode.ino])


async def test_another_failure_is_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = Volume(tmp_path / "s")
    async with trio.open_nursery() as nursery:
        volume.reader.start(nursery)
        nursery.start_soon(volume.committer.run, nursery)
        inode = volume.create(b"f")
        volume.write(inode, 0, b"kept in memory")
        await failing(volume, monkeypatch, StoreDamaged("a page is damaged"))
        assert volume.committer.failure is not None
        with pytest.raises(StoreDamaged):
            await volume.committer.admission.admit(1)
        with pytest.raises(StoreDamaged):
            await volume.committer.sync()
        assert await volume.content(inode) == b"kept in memory"
        nursery.cancel_scope.cancel()
    volume.fs.close()
    volume.store.close()


async def test_dirty_memory_is_bounded(tmp_path: Path) -> None:
    """Writers wait for commits; nothing grows beyond the limit and one request."""
    async with running(tmp_path / "s") as volume:
        inode = volume.create(b"f")
        request = random.Random(2).randbytes(1 << 20)
        most = 0
        for number in range(24):
            await volume.committer.admission.admit(len(request))
            volume.write(inode, number << 20, request)
            most = max(most, volume.data.size)
        assert most <= volume.committer.space.dirty_limit
        assert await volume.content(inode) == request * 24
        for number in range(8000):
            await volume.committer.admission.admit(4096)
            volume.create(b"n%d" % number)
            waiting = len(volume.fs.active.inodes) + (len(volume.fs.frozen.inodes) if volume.fs.frozen else 0)
            assert waiting * 1024 <= volume.committer.space.dirty_limit


async def test_no_space_goes_to_the_writer(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        volume.committer.space.refresh = lambda: None  # type: ignore[method-assign]
        assert volume.committer.space.reserve is not None
        volume.committer.space.reserve.works = False  # a filesystem that can only be asked
        volume.committer.space.free = 1 << 20
        inode = volume.create(b"f")
        with pytest.raises(OutOfSpace):
            await volume.committer.admission.admit(2 << 20)
        await volume.committer.admission.admit(1 << 19)
        volume.write(inode, 0, bytes(1 << 19))


async def test_reads_while_commits_go_on(tmp_path: Path) -> None:
    """Every read sees one of the versions written, never a mixture and never nothing."""
    async with running(tmp_path / "s") as volume:
        inode = volume.create(b"f")
        volume.write(inode, 0, b"\x01" * CHUNK)
        stop = False

        async def look() -> None:
            while not stop:
                content = await volume.content(inode)
                assert len(content) == CHUNK
                assert len(set(content)) == 1
                volume.reader.cache.clear()
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            for version in range(2, 30):
                volume.write(inode, 0, bytes([version]) * CHUNK)
                await volume.committer.sync()
            stop = True


async def test_what_a_failed_commit_cut_stays_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An overlay written after the truncation must not be merged over what the store still has."""
    async with running(tmp_path / "s") as volume:
        inode = volume.create(b"f")
        volume.write(inode, 0, b"old" * (CHUNK // 3))
        await volume.committer.sync()
        volume.data.truncate(inode.ino, inode.size, 0, 0)
        inode.size = 0
        volume.fs.touch(inode)
        await failing(volume, monkeypatch, OutOfSpace("full"))
        inode.size = CHUNK  # ftruncate up again
        volume.fs.touch(inode)
        volume.write(inode, 5000, b"new" * 30)
        expected = bytes(5000) + b"new" * 30 + bytes(CHUNK - 5090)
        assert await volume.content(inode) == expected
        await volume.committer.sync()
        volume.reader.cache.clear()
        assert await volume.content(inode) == expected


async def test_equal_chunks_are_read_ahead_once(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        inode = volume.create(b"f")
        volume.write(inode, 0, b"a" * CHUNK + b"b" * CHUNK * 10)
        await volume.committer.sync()
        assert bytes(await volume.reader.read(inode, 0, CHUNK)) == b"a" * CHUNK
        assert await volume.content(inode) == b"a" * CHUNK + b"b" * CHUNK * 10


async def test_nothing_to_commit_is_no_reason_to_spin(tmp_path: Path) -> None:
    async with running(tmp_path / "s") as volume:
        volume.committer.backlog.want_commit()
        for _ in range(50):
            await trio.lowlevel.checkpoint()
        assert volume.committer.backlog.wanted <= volume.committer.backlog.durable


async def test_what_is_durable_is_not_committed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out behind the txn: the mount ends well or not, but the store has each change once."""
    async with running(tmp_path / "store") as volume:
        inode = volume.create(b"file")
        volume.write(inode, 0, os.urandom(3 * CHUNK))

        def broken() -> None:
            raise MemoryError

        monkeypatch.setattr(volume.data, "committed", broken)
        with pytest.raises(StoreDamaged, match="mount again"):
            await volume.committer.sync()
        assert volume.committer.backlog.no_space is None  # that would try again
        monkeypatch.setattr(volume.committer, "finish", trio.lowlevel.checkpoint)
