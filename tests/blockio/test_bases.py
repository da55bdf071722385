"""Chunks written in part whose old content is not at hand: nobody else waits for it, and nothing of it is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from nnfs.errors import BlockDamaged, CodecError, ModelMissing, NnfsError, TimedOut, WorkerError
from nnfs.fs.filesystem import Filesystem
from nnfs.store.schema import Inode
from tests.blockio.test_reading import ColdVolume, Start, start
from tests.codec.conftest import Gate

__all__ = ["start"]  # a fixture


def truncate(volume: ColdVolume, inode: Inode, size: int) -> None:
    volume.data.truncate(inode.ino, inode.size, size, volume.fs.new_ino())
    inode.size = size
    volume.fs.touch(inode)


def break_workers(volume: ColdVolume, error: Exception) -> Callable[[], None]:
    """Have cold blocks fail to decode, until what is returned is called."""
    assert volume.reader.cold is not None
    context = pytest.MonkeyPatch()

    async def broken(*_args: Any, **_more: Any) -> bytes:
        await trio.lowlevel.checkpoint()
        raise error

    context.setattr(volume.reader.cold, "decode", broken)
    return context.undo


async def test_commits_do_not_wait_for_old_content(start: Start, gate: Gate) -> None:
    async with start() as volume:
        held = await volume.add(b"held", gate.chunk)
        volume.write(held, 2, b"new")
        other = volume.create(b"other")
        volume.write(other, 0, b"other")
        await volume.committer.sync()
        await volume.committer.sync_inode(other.ino)
        assert held.ino in volume.committer._bases
        for step in range(3):
            volume.write(other, 0, b"%d" % step)
            await volume.committer.sync_inode(other.ino)
        gate.open()
        await volume.committer.sync_inode(held.ino)
        volume.reader.cache.clear()
        expected = gate.chunk[:2] + b"new" + gate.chunk[5:]
        assert await volume.content(held) == expected
        assert volume.data.size == 0


ERRORS = [WorkerError("no worker"), CodecError("needs torch"), ModelMissing("no model"), TimedOut("late")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_new_bytes_outlive_what_keeps_old_ones(start: Start, error: NnfsError) -> None:
    async with start() as volume:
        cut, written = await volume.add(b"cut", b"abcdefgh" * 100), await volume.add(b"written", b"ABCDEFGH" * 100)
        mend = break_workers(volume, error)
        truncate(volume, cut, 100)
        volume.write(written, 40, b"new")
        for inode in (cut, written):
            with pytest.raises(type(error)):
                await volume.committer.sync_inode(inode.ino)
        mend()
        truncate(volume, cut, 500)
        for inode in (cut, written):
            await volume.committer.sync_inode(inode.ino)
        volume.reader.cache.clear()
        assert await volume.content(cut) == (b"abcdefgh" * 100)[:100] + bytes(400)
        old = b"ABCDEFGH" * 100
        assert await volume.content(written) == old[:40] + b"new" + old[43:]


@pytest.mark.parametrize("grow", ["truncate", "write"])
async def test_bytes_cut_off_before_a_crash_stay_away(start: Start, grow: str) -> None:
    """The size was committed, the cut was not, since its base could not be had; then the daemon died."""
    async with start() as volume:
        file = await volume.add(b"file", b"abcdefgh" * 100)
        mend = break_workers(volume, WorkerError("no worker"))
        truncate(volume, file, 100)
        await volume.committer.sync()
        mend()
        volume.data.active.chunks.clear()  # what was in memory only is gone
        volume.data.active.size = 0
        volume.data.generation += 1
        volume.fs.snapshot.close()
        volume.fs.__init__(volume.store, on_release=volume.data.drop)  # type: ignore[misc]
        assert isinstance(volume.fs, Filesystem)
        file = volume.fs.inode(file.ino)
        assert file.size == 100
        if grow == "truncate":
            truncate(volume, file, 400)
        else:
            volume.write(file, 300, b"x" * 100)
        expected = (b"abcdefgh" * 100)[:100] + (bytes(300) if grow == "truncate" else bytes(200) + b"x" * 100)
        assert await volume.content(file) == expected
        await volume.committer.sync_inode(file.ino)
        volume.reader.cache.clear()
        assert await volume.content(file) == expected


async def test_growing_a_sound_file_rewrites_nothing(start: Start) -> None:
    async with start() as volume:
        file = await volume.add(b"file", b"abcdefgh" * 100)
        before = volume.number(file)
        truncate(volume, file, 5000)
        await volume.committer.sync_inode(file.ino)
        assert volume.number(file) == before
        assert await volume.content(file) == b"abcdefgh" * 100 + bytes(4200)


async def test_damage_below_new_bytes_is_told(start: Start) -> None:
    async with start() as volume:
        file = await volume.add(b"file", b"abcdefgh" * 100)
        break_workers(volume, BlockDamaged(volume.number(file), "rotten"))
        volume.write(file, 3, b"new")
        with pytest.raises(BlockDamaged):
            await volume.committer.sync_inode(file.ino)
        await volume.committer.sync_inode(file.ino)  # told once


async def test_who_fills_memory_with_it_waits_alone(start: Start, gate: Gate) -> None:
    async with start() as volume:
        held = await volume.add(b"held", gate.chunk)
        volume.write(held, 2, b"new")
        await volume.committer.sync()
        volume.committer.space.dirty_limit = 1
        async with trio.open_nursery() as nursery:
            admitted = trio.Event()

            async def admit() -> None:
                await volume.committer.admit(0, held.ino)
                admitted.set()

            nursery.start_soon(admit)
            await trio.testing.wait_all_tasks_blocked()
            assert not admitted.is_set()
            gate.open()
        assert admitted.is_set()
