"""Changes of a part of a cold chunk: the writer waits for its old content, nobody else does; nothing is half done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio

from nnfs.blockio.writer import Writer
from nnfs.errors import BlockDamaged, CodecError, ModelMissing, NnfsError, StoreDamaged, TimedOut, WorkerError
from nnfs.store.schema import Inode
from tests.blockio.test_cold import until
from tests.blockio.test_reading import ColdVolume, Start, start
from tests.workers.conftest import Gate

__all__ = ["start"]  # a fixture

OLD = b"abcdefgh" * 100


async def write(volume: ColdVolume, inode: Inode, offset: int, content: bytes) -> None:
    found = await Writer(volume.data, volume.reader, volume.committer).write(inode.ino, offset, content)
    found.size = max(found.size, offset + len(content))
    volume.fs.touch(found)


async def truncate(volume: ColdVolume, inode: Inode, size: int) -> None:
    found = await Writer(volume.data, volume.reader, volume.committer).truncate(inode.ino, size, volume.fs.new_ino())
    found.size = size
    volume.fs.touch(found)


CHANGES = [(write, (2, b"new")), (write, (30, b"far over the end" * 60)), (truncate, (3,))]


def changed(change: Callable[..., Any], arguments: tuple[Any, ...], old: bytes) -> bytes:
    if change is truncate:
        return old[: int(arguments[0])]
    offset: int
    new: bytes
    offset, new = arguments
    return old[:offset] + new + old[offset + len(new) :]


async def decoding(volume: ColdVolume) -> None:
    """Return when a worker has a block in hand."""
    await until(
        lambda: volume.fetcher._pending and all(p.progress.has_begun() for p in volume.fetcher._pending.values())
    )


@pytest.mark.parametrize(("change", "arguments"), CHANGES, ids=["in the middle", "at the end", "truncate"])
async def test_the_writer_waits_and_nobody_else(
    start: Start, gate: Gate, change: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    async with start() as volume, trio.open_nursery() as nursery:
        held = await volume.add(b"held", gate.chunk)
        nursery.start_soon(change, volume, held, *arguments)
        await decoding(volume)
        other = volume.create(b"other")
        for step in range(3):
            await write(volume, other, 0, b"%d" % step)
            await volume.committer.sync_inode(other.ino)
        assert volume.data.size == 0  # what waits has not been accepted
        assert volume.fs.inode(held.ino).size == len(gate.chunk)
        gate.open()
        await until(lambda: not volume.reader.waiting)
        assert not list(volume.data.overlays())
        await volume.committer.sync_inode(held.ino)
        volume.reader.cache.clear()
        assert await volume.content(volume.fs.inode(held.ino)) == changed(change, arguments, gate.chunk)


ERRORS = [
    WorkerError("no worker"), CodecError("needs torch"), ModelMissing("no model"), TimedOut("late"),
    BlockDamaged(1, "rotten"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("change", "arguments"), CHANGES, ids=["in the middle", "at the end", "truncate"])
async def test_what_cannot_be_merged_is_not_accepted(
    start: Start, monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any], arguments: tuple[Any, ...],
    error: NnfsError,
) -> None:  # fmt: skip
    async def broken(*_args: Any, **_more: Any) -> bytes:
        await trio.lowlevel.checkpoint()
        raise error

    async with start() as volume:
        file = await volume.add(b"file", OLD)
        with monkeypatch.context() as context:
            context.setattr(volume.cold, "decode", broken)
            with pytest.raises(type(error)):
                await change(volume, file, *arguments)
        assert volume.data.size == 0
        await volume.committer.sync_inode(file.ino)
        assert await volume.content(file) == OLD


@pytest.mark.parametrize("size", [0, 800, 5000])
async def test_a_truncation_that_cuts_no_chunk_decodes_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    async with start() as volume:
        file = await volume.add(b"file", OLD)
        before = volume.number(file)
        with monkeypatch.context() as context:
            context.setattr(volume.fetcher, "cold", None)
            await truncate(volume, file, size)
        await volume.committer.sync_inode(file.ino)
        assert volume.number(file) == (before if size else 0)
        assert await volume.content(file) == OLD[:size].ljust(size, b"\0")


async def test_a_chunk_wholly_rewritten_decodes_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    async with start() as volume:
        file = await volume.add(b"file", OLD)
        monkeypatch.setattr(volume.fetcher, "cold", None)
        await write(volume, file, 0, b"x" * len(OLD))
        await volume.committer.sync_inode(file.ino)
        assert await volume.content(file) == b"x" * len(OLD)


async def test_chunks_of_an_inode_that_is_gone_lie_over_nothing(start: Start) -> None:
    async with start() as volume:
        gone = 1 << 40
        volume.data.write(gone, 5, b"part", 1000)
        assert volume.committer.bases.in_use() == set()
        volume.data.drop(gone)


async def test_what_is_about_to_turn_cold_is_merged_at_once(start: Start) -> None:
    """Else the commit after the swap would have to wait for a worker."""
    async with start() as volume:
        file = volume.create(b"file")
        await write(volume, file, 0, OLD)
        await volume.committer.sync()
        await write(volume, file, 3, b"new")
        assert volume.committer.bases.in_use() == {volume.number(file)}  # so it is not swapped
        await volume.committer.sync()
        assert volume.committer.bases.in_use() == set()
        with volume.committer.bases.cooling({volume.number(file)}):
            await write(volume, file, 5, b"newer")
        assert volume.committer.bases.in_use() == set()
        assert await volume.content(file) == OLD[:3] + b"nenewer" + OLD[10:]


async def test_a_block_that_changes_meanwhile(start: Start, gate: Gate) -> None:
    """Somebody else rewrites the chunk while its old content is being decoded: that is what is written over."""
    async with start() as volume, trio.open_nursery() as nursery:
        held = await volume.add(b"held", gate.chunk)
        nursery.start_soon(write, volume, held, 2, b"new")
        await decoding(volume)
        await write(volume, held, 0, b"x" * len(gate.chunk))
        await volume.committer.sync_inode(held.ino)
        gate.open()
        await until(lambda: not volume.reader.waiting)
        assert await volume.content(held) == b"xxnew".ljust(len(gate.chunk), b"x")


async def test_a_chunk_written_over_while_it_is_committed_as_a_cold_one(start: Start, gate: Gate) -> None:
    """The commit finds that equal content is stored, and cold: the next one must not wait for a worker."""
    async with start() as volume:
        await volume.add(b"held", gate.chunk)
        copy = volume.create(b"copy")
        await write(volume, copy, 0, gate.chunk)
        original = volume.committer.encoding.changes

        async def changes(*arguments: Any) -> Any:
            found = await original(*arguments)
            volume.committer.encoding.changes = original  # type: ignore[method-assign]
            await write(volume, copy, 2, b"new")
            return found

        volume.committer.encoding.changes = changes  # type: ignore[method-assign, assignment]
        await volume.committer.sync()
        await volume.committer.sync_inode(copy.ino)
        assert await volume.content(volume.fs.inode(copy.ino)) == changed(write, (2, b"new"), gate.chunk)


async def test_the_live_inode_is_changed(start: Start, gate: Gate) -> None:
    """While a writer waits, the inode may leave memory and come back as another object."""
    async with start() as volume, trio.open_nursery() as nursery:
        held = await volume.add(b"held", gate.chunk)
        nursery.start_soon(write, volume, held, 2, b"new")
        await decoding(volume)
        volume.fs._inodes.clear()
        await truncate(volume, held, 5000)
        await volume.committer.sync_inode(held.ino)
        gate.open()
        await until(lambda: not volume.reader.waiting)
        await volume.committer.sync_inode(held.ino)
        volume.fs._inodes.clear()
        expected = changed(write, (2, b"new"), gate.chunk).ljust(5000, b"\0")
        assert await volume.content(volume.fs.inode(held.ino)) == expected


async def test_what_is_in_memory_is_not_decoded_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    async with start() as volume:
        file = await volume.add(b"file", OLD)
        await volume.content(file)
        monkeypatch.setattr(volume.fetcher, "cold", None)
        await write(volume, file, 3, b"new")
        await volume.committer.sync_inode(file.ino)
        assert await volume.content(file) == changed(write, (3, b"new"), OLD)


async def test_nothing_is_accepted_after_a_failure(start: Start, gate: Gate) -> None:
    """The store breaks while a writer waits."""
    async with start() as volume, trio.open_nursery() as nursery:
        held = await volume.add(b"held", gate.chunk)
        failed: list[Exception] = []

        async def try_to_write() -> None:
            try:
                await write(volume, held, 2, b"new")
            except StoreDamaged as error:
                failed.append(error)

        nursery.start_soon(try_to_write)
        await decoding(volume)
        volume.committer.backlog.failure = StoreDamaged("broken")
        gate.open()
        await until(lambda: not volume.reader.waiting)
        await until(lambda: bool(failed))
        assert volume.data.size == 0
