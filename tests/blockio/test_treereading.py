"""A tree of cold files is decoded ahead of whoever reads it in the order of its listings."""

from __future__ import annotations

import pytest

from nnfs.errors import FsError
from nnfs.store.schema import ROOT_INO, Inode
from tests.blockio.test_cold import until
from tests.blockio.test_commit import CHUNK
from tests.blockio.test_reading import ColdVolume, Start, start

__all__ = ["start"]

FEW = 12  # files


async def files_of(volume: ColdVolume) -> list[Inode]:
    """Return files that are listed in another order than that in which they were stored."""
    files = [await volume.add(b"%d" % n, b"the content of file %d" % n * (n + 1)) for n in range(FEW)]
    files.reverse()
    volume.reader.listings.begin(ROOT_INO)
    for file in files:
        volume.reader.listings.listed(ROOT_INO, file.ino)
    return files


async def test_the_next_files_are_decoded_ahead(start: Start) -> None:
    async with start() as volume:
        files = await files_of(volume)
        assert await volume.content(files[0]) == b"the content of file 11" * FEW
        await until(lambda: all(volume.number(file) in volume.reader.cache for file in files))


async def test_who_reads_in_another_order_gets_nothing(start: Start) -> None:
    async with start() as volume:
        files = await files_of(volume)
        await volume.content(files[-1])
        assert not volume.fetcher._pending
        assert sum(volume.number(file) in volume.reader.cache for file in files) == 1


async def test_a_file_that_is_gone_holds_nothing_up(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    async with start() as volume:
        files, inode = await files_of(volume), volume.fs.inode

        def gone(ino: int) -> Inode:
            if ino == files[1].ino:
                raise FsError(2)
            return inode(ino)

        monkeypatch.setattr(volume.fs, "inode", gone)
        await volume.content(files[0])
        monkeypatch.undo()
        await until(lambda: all(volume.number(file) in volume.reader.cache for file in files[2:]))
        assert volume.number(files[1]) not in volume.reader.cache


async def test_only_a_share_of_the_cache_is_filled(start: Start) -> None:
    """A file that has no room any more is fetched as far as there is some."""
    async with start() as volume:
        volume.reader._ahead._most_bytes = 3 * CHUNK
        large = b"".join(bytes([n]) * CHUNK for n in range(1, 9))
        files = [await volume.add(b"first", b"first" * 50), await volume.add(b"large", large)]
        files.append(await volume.add(b"last", b"last" * 50))
        volume.reader.listings.begin(ROOT_INO)
        for file in files:
            volume.reader.listings.listed(ROOT_INO, file.ino)
        await volume.content(files[0])
        await until(lambda: not volume.fetcher._pending)
        there = [volume.number(files[1], chunk) in volume.reader.cache for chunk in range(8)]
        assert there == [True] * 3 + [False] * 5
        assert volume.number(files[2]) not in volume.reader.cache


async def test_hot_files_cost_no_look(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    async with start() as volume:
        files = [volume.create(b"%d" % n) for n in range(FEW)]
        volume.reader.listings.begin(ROOT_INO)
        for n, file in enumerate(files):
            volume.write(file, 0, b"hot %d" % n)
            volume.reader.listings.listed(ROOT_INO, file.ino)
        await volume.committer.sync()
        asked: list[int] = []
        monkeypatch.setattr(volume.reader._ahead, "_is_cold", lambda _, number: asked.append(number))
        for n, file in enumerate(files):
            assert await volume.content(file) == b"hot %d" % n
        assert not asked
